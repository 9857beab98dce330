"""Properties of the settings of every network that transformers or diffusers describe."""

import inspect
import json
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType
from typing import Any, NamedTuple

import diffusers
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convert import gpt2, scheduler, sequence, t5, unet, vae, vocoder
from convert.configs import builtin, divides, integer, integers, number, one_of, required
from convert.table import ConversionError
from mfm_jax.models.gpt2 import GPT2Config


class Described(NamedTuple):
    network: ModuleType
    theirs: str  # what makes the network, or its config, in diffusers or transformers
    file: str  # as reconstructed from the sources of AudioLDM 2
    known: dict  # what the reconstruction leaves open

    @property
    def library(self) -> Callable:
        """What makes it there. It is imported by its use alone, since that takes seconds."""
        return getattr(diffusers, self.theirs, None) or getattr(transformers, self.theirs)


DESCRIBED = {
    "unet": Described(unet, "AudioLDM2UNet2DConditionModel", "unet_base", {}),
    "large unet": Described(unet, "AudioLDM2UNet2DConditionModel", "unet_large", {}),
    "vae": Described(vae, "AutoencoderKL", "vae", {"scaling_factor": 0.41}),
    "vocoder": Described(vocoder, "SpeechT5HifiGanConfig", "vocoder", {}),
    "t5": Described(t5, "T5Config", "text_encoder_2", {}),
    "gpt2": Described(gpt2, "GPT2Config", "language_model", {}),
    "scheduler": Described(scheduler, "DDIMScheduler", "scheduler", {}),
}


@pytest.fixture(params=DESCRIBED.values(), ids=DESCRIBED)
def described(request) -> Described:
    return request.param


@pytest.fixture
def released(reference, described) -> dict:
    path = reference / "audioldm2/configs" / f"{described.file}.json"
    return json.loads(path.read_text()) | described.known


def fixed(network: ModuleType) -> dict[str, Any]:
    """Settings that have one value here, whether or not a file must say so."""
    return getattr(network, "REQUIRED", {}) | network.BUILT_IN


def stated(network: ModuleType) -> tuple[str, ...]:
    """Settings that a file must have."""
    more = ("REQUIRED", "LEVELS")
    return (*network.READ, *(name for group in more for name in getattr(network, group, ())))


def write(network: ModuleType, ours: Any) -> dict:
    theirs = network.their_config(*(ours, 50257) if network is gpt2 else (ours,))
    return json.loads(json.dumps(theirs))


def defaults(library: Callable) -> dict[str, Any]:
    """The value that the library takes for each setting that a file leaves out."""
    if issubclass(library, transformers.PreTrainedConfig):
        # Two of T5's follow from how it feeds forward, which a file must say.
        options = {"feed_forward_proj": "gated-gelu"} if library is transformers.T5Config else {}
        return library(**options).to_dict()
    parameters = inspect.signature(library).parameters
    return {name: p.default for name, p in parameters.items()} | {"_class_name": library.__name__}


def test_what_we_write_is_what_the_release_says(described, released):
    network = described.network
    theirs = write(network, network.config(released))
    assert network.config(theirs) == network.config(released)
    both = theirs.keys() & released.keys()
    assert both >= set(stated(network))
    assert {name: theirs[name] for name in both} == {name: released[name] for name in both}


def test_what_a_file_may_leave_out_is_what_the_library_takes(described):
    taken = defaults(described.library)
    for name, value in described.network.BUILT_IN.items():
        assert taken[name] == value, name


def test_a_missing_setting_is_named(described, released):
    for name in stated(described.network):
        without = {key: value for key, value in released.items() if key != name}
        with pytest.raises(ConversionError, match=rf"config: {name} not given$"):
            described.network.config(without)


def test_all_missing_settings_are_named_at_once(described):
    with pytest.raises(ConversionError) as error:
        described.network.config({})
    assert all(name in str(error.value) for name in stated(described.network))


def test_a_setting_of_another_value_is_named(described, released):
    for name, value in fixed(described.network).items():
        with pytest.raises(ConversionError, match=rf"config: {name} must be .*, is another$"):
            described.network.config(released | {name: "another"})
        assert described.network.config(released | {name: value}) is not None


@pytest.mark.parametrize("value", [None, "8", -1, [], {}, [None]], ids=repr)
def test_a_setting_of_another_kind_is_named(described, released, value):
    for name in stated(described.network):
        with pytest.raises(ConversionError, match=rf"config: {name} "):
            described.network.config(released | {name: value})


def test_other_keys_are_left_alone(described, released):
    more = released | {"transformers_version": "4.30.0", "_name_or_path": "x", "dtype": "float16"}
    assert described.network.config(more) == described.network.config(released)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
values = st.recursive(
    scalars, lambda each: st.lists(each, max_size=4) | st.dictionaries(st.text(), each, max_size=2)
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_nothing_but_a_conversion_error_comes_of_a_wrong_file(described, released, data):
    name = data.draw(st.sampled_from(sorted(released)))
    with suppress(ConversionError):
        described.network.config(released | {name: data.draw(values)})


WHAT = "some config"


@pytest.mark.parametrize("value", [None, "8", [8], {}, 7, True])
def test_a_sequence_of_another_length_is_refused(value):
    projection = {"text_encoder_dim": 5, "text_encoder_1_dim": 6, "langauge_model_dim": 8}
    with pytest.raises(ConversionError, match="max_new_tokens must be 8 or 512, is"):
        sequence.config(projection, {"max_new_tokens": value}, GPT2Config(8, 1, 2, 4))


def test_required_lists_all():
    required({"a": 1, "b": None}, ["a", "b"], WHAT)
    with pytest.raises(ConversionError, match=r"^some config: c, d not given$"):
        required({"a": 1}, ["a", "c", "d"], WHAT)


def test_builtin_lets_a_file_be_silent():
    builtin({}, {"a": 1}, WHAT)
    builtin({"a": 1, "b": 2}, {"a": 1}, WHAT)
    with pytest.raises(ConversionError, match=r"^some config: a must be None, is 0$"):
        builtin({"a": 0}, {"a": None}, WHAT)


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "1", None, [1]])
def test_integer_is_positive(value):
    assert integer({"a": 3}, "a", WHAT) == 3
    message = r"^some config: a must be a positive integer, is "
    with pytest.raises(ConversionError, match=message):
        integer({"a": value}, "a", WHAT)


@pytest.mark.parametrize("value", [3, [], [1, 0], [[1]], None, "12"])
def test_integers_are_a_list_of_positive_integers(value):
    assert integers({"a": [3, 1]}, "a", WHAT) == (3, 1)
    message = r"^some config: a must be a list of positive integers, is "
    with pytest.raises(ConversionError, match=message):
        integers({"a": value}, "a", WHAT)


@pytest.mark.parametrize("value", [0, -0.1, True, float("inf"), float("nan"), "1", None])
def test_number_is_positive_and_finite(value):
    assert number({"a": 2}, "a", WHAT) == 2.0
    with pytest.raises(ConversionError, match=r"^some config: a must be a positive number, is "):
        number({"a": value}, "a", WHAT)


def test_one_of_translates():
    assert one_of({"a": "x"}, "a", {"x": 1, "y": 2}, WHAT) == 1
    with pytest.raises(ConversionError, match=r"^some config: a must be x or y, is \['x'\]$"):
        one_of({"a": ["x"]}, "a", {"x": 1, "y": 2}, WHAT)


def test_divides():
    divides(12, "width", 4, "heads", WHAT)
    with pytest.raises(ConversionError, match=r"^some config: width 12 is no multiple of heads 5$"):
        divides(12, "width", 5, "heads", WHAT)

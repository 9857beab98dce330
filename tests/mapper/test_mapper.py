"""The mapper: goldens of AudioLDM2's own GPT-2, and the properties every mapper must have."""

import dataclasses
import functools
import json
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from convert import mapper as conversion
from convert.sequence import table
from mfm_jax.bundle import Bundle, Source, write_bundle
from mfm_jax.mapper import MapperConfig, Stream, build_mapper
from mfm_jax.models.audiomae import LOA
from mfm_jax.models.gpt2 import GPT2Config
from mfm_jax.storage.weights import abstract, named_weights, with_weights
from tests.bundles import filled
from tests.table_checks import check_table

SMALL = MapperConfig(
    encoders=(("cavp", 5, 12), ("timechat", 7, 10)),
    loa_width=14,
    loa=LOA(grid=(6, 2), pool=(1, 2)),
    gpt2=GPT2Config(width=16, depth=2, heads=2, positions=24),
    head=True,
)
TWICE = (("cavp", 5, 12), ("cavp:2", 5, 12))


def sequence_config(first: int, second: int, gpt2: GPT2Config) -> MapperConfig:
    return MapperConfig(
        encoders=(("clap", 1, first), ("t5", 7, second)),
        loa_width=gpt2.width,
        fusion="wrapped",
        gpt2=gpt2,
    )


@jax.jit
def forward(mapper, streams, loa):
    return mapper(streams, loa)


@jax.jit
def fused(mapper, streams):
    return mapper.fusion(streams)


@jax.jit
def generate(mapper, streams):
    return mapper.generate(streams)


def with_their_weights(config: MapperConfig, state):
    weights = {name: jax.device_put(array) for name, array in table(config).to_ours(state)}
    return with_weights(abstract(lambda rngs: build_mapper(config, rngs=rngs)), weights)


def conditions(clap, t5, t5_mask):
    def stream(tokens, mask):
        return Stream(jnp.asarray(tokens), jnp.zeros(tokens.shape[:2]), jnp.asarray(mask))

    return {
        "clap": stream(clap, np.ones(clap.shape[:2], bool)),
        "t5": stream(t5, t5_mask.astype(bool)),
    }


@pytest.mark.parity
def test_golden_of_the_original_generator(reference, parity):
    golden = reference / "audioldm2/golden"
    sizes = json.loads((golden / "sequence_config.json").read_text())
    io = load_file(golden / "sequence_io.safetensors")
    gpt2 = GPT2Config(sizes["dim"], sizes["layers"], sizes["heads"], sizes["positions"])
    mapper = with_their_weights(
        sequence_config(sizes["first"], sizes["second"], gpt2),
        load_file(golden / "sequence_weights.safetensors"),
    )
    streams = conditions(io["in.clap"], io["in.t5"], io["in.t5_mask"])
    prefix, mask = fused(mapper, streams)
    against = "golden sequence_io"
    parity("AudioLDM2 sequence, packed", against, prefix, io["packed"], 1e-5)
    np.testing.assert_array_equal(mask, io["packed_mask"].astype(bool))
    generated = generate(mapper, streams)
    parity("AudioLDM2 sequence, generated", against, generated, io["generated"], 3e-5)


@pytest.mark.parity
@pytest.mark.parametrize("depth", [2, 12])
def test_golden_of_gpt2_at_full_width(reference, parity, depth):
    golden = np.load(reference / f"audiomae/golden/gpt2_{depth}layer.npz")
    manifest = json.loads((reference / "audiomae/manifest_sequence_gen.json").read_text())
    manifest = {
        k: v
        for k, v in manifest.items()
        if not k.startswith("model.h.") or int(k.split(".")[2]) < depth
    }
    manifest.pop("model.wte.weight")
    recipe = runpy.run_path(str(reference / "audiomae/recipe.py"))
    state = recipe["weights"](manifest, 31415)
    config = sequence_config(512, 1024, GPT2Config(width=768, depth=depth, heads=12))
    mapper = with_their_weights(config, {**state, "model.wte.weight": np.zeros(0)})
    streams = conditions(golden["clap"], golden["flan_t5"], golden["flan_t5_mask"])
    target = jnp.asarray(golden["target"])
    against = f"golden gpt2_{depth}layer"

    prefix, mask = fused(mapper, streams)
    assert prefix.shape[1] == golden["cond_end"]
    np.testing.assert_array_equal(mask, golden["cond_mask"].astype(bool))
    parity("GPT-2 input", against, prefix, golden["input_embeds"], 3e-5)
    predicted = forward(mapper, streams, target)
    parity("GPT-2 teacher forcing", against, predicted, golden["teacher_forced_output"], 3e-5)
    l1 = jnp.abs(predicted - target).mean()
    parity("GPT-2 L1", against, l1, golden["l1"], 3e-5)
    parity("GPT-2 training loss (2 x L1)", against, 2 * l1, golden["training_step_return"], 3e-5)
    generated = generate(mapper, streams)
    parity("GPT-2 generation", against, generated, golden["generated"], 3e-5)

    if "smallscale_teacher_forced_output" in golden:
        small = {
            k: v * np.float32(0.01)
            if k.startswith(("start_", "end_", "input_")) or "wpe" in k
            else v
            for k, v in state.items()
        }
        mapper = with_their_weights(config, {**small, "model.wte.weight": np.zeros(0)})
        predicted = forward(mapper, streams, target * 0.01)
        expected = golden["smallscale_teacher_forced_output"]
        parity("GPT-2 teacher forcing, small inputs", against, predicted, expected, 3e-5)
        loss = 2 * jnp.abs(predicted - target * 0.01).mean()
        expected = golden["smallscale_training_step_return"]
        parity("GPT-2 training loss, small inputs", against, loss, expected, 3e-5)


def test_conversion_table_of_the_sequence_generator(reference):
    manifest = json.loads((reference / "audiomae/manifest_sequence_gen.json").read_text())
    config = sequence_config(512, 1024, GPT2Config.small())
    check_table(table(config), manifest, abstract(lambda rngs: build_mapper(config, rngs=rngs)))


@pytest.fixture
def streams():
    keys = jax.random.split(jax.random.key(0), 2)
    seconds = {n: jnp.linspace(0.0, 0.9, n)[None].repeat(2, 0) for n in (5, 7)}
    return {
        "cavp": Stream(jax.random.normal(keys[0], (2, 5, 12)), seconds[5]),
        "timechat": Stream(jax.random.normal(keys[1], (2, 7, 10)), seconds[7]),
    }


@functools.cache
def lively(config):
    """A mapper whose every weight is away from its initial value."""
    mapper = filled(abstract(functools.partial(build_mapper, config)), 0)
    rng = np.random.default_rng(7)
    leaves, tree = jax.tree.flatten(mapper)
    moved = [np.asarray(x) + 0.2 * rng.random(x.shape, np.float32) for x in leaves]
    return jax.tree.unflatten(tree, jax.device_put(moved))


VARIANTS = {
    "tokens": SMALL,
    "channels": dataclasses.replace(SMALL, fusion="channels"),
    "wrapped": dataclasses.replace(SMALL, fusion="wrapped"),
    "one encoder": dataclasses.replace(SMALL, encoders=SMALL.encoders[:1]),
    "one twice": dataclasses.replace(SMALL, encoders=TWICE),
    "no head": dataclasses.replace(SMALL, head=False, loa_width=16),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_generation_equals_reading_its_own_output_again(name, streams):
    config = VARIANTS[name]
    mapper = lively(config)
    generated = generate(mapper, streams)
    assert generated.shape == (2, config.loa.tokens, config.loa_width)
    # Teacher forcing on what was generated must predict exactly what was generated.
    again = jax.jit(lambda m, y: m.restore(y))(mapper, forward(mapper, streams, generated))
    np.testing.assert_allclose(again, generated, atol=1e-5)


@jax.jit
def gradient(mapper, streams, loa, k):
    return jax.grad(lambda y: mapper(streams, y)[0, k].sum())(loa)


@pytest.mark.parametrize("fusion", ["tokens", "channels", "wrapped"])
@pytest.mark.parametrize("padded", [False, True])
def test_following_a_video_that_was_read_before_changes_nothing(fusion, padded, streams):
    mapper = lively(dataclasses.replace(SMALL, fusion=fusion))
    if padded:
        mask = jnp.ones(streams["cavp"].tokens.shape[:2], bool).at[0, 1].set(False)
        streams = {**streams, "cavp": streams["cavp"]._replace(mask=mask)}
    loa = jax.random.normal(jax.random.key(4), (2, SMALL.loa.tokens, SMALL.loa_width))
    followed = jax.jit(lambda m, streams, loa: m.teacher_force(m.prefill(streams), loa))
    np.testing.assert_allclose(
        followed(mapper, streams, loa), forward(mapper, streams, loa), atol=1e-5
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_predictions_do_not_see_the_token_they_predict(name, streams):
    config = VARIANTS[name]
    mapper = lively(config)
    loa = jax.random.normal(jax.random.key(3), (2, config.loa.tokens, config.loa_width))
    for k in (0, 3, config.loa.tokens - 1):
        grad = np.asarray(gradient(mapper, streams, loa, k))
        assert np.all(grad[0, k:] == 0)
        assert k == 0 or np.all(np.abs(grad[0, :k]).max(-1) > 0)


@pytest.mark.parametrize("kind", ["gpt2", "linear_pooled", "linear_flat"])
def test_every_encoder_matters_and_no_other_example_does(kind, streams):
    mapper = lively(dataclasses.replace(SMALL, kind=kind))
    whole = generate(mapper, streams)
    for name in streams:
        changed = streams[name]._replace(tokens=streams[name].tokens.at[0, 1, 0].add(2.0))
        result = generate(mapper, {**streams, name: changed})
        assert jnp.abs(result[0] - whole[0]).max() > 1e-4
        np.testing.assert_array_equal(result[1], whole[1])


@pytest.mark.parametrize("fusion", ["tokens", "channels"])
def test_the_order_of_tokens_is_told_by_their_times(fusion, streams):
    """Shuffling an encoder's tokens together with their times shuffles the prefix, no more."""
    mapper = lively(dataclasses.replace(SMALL, fusion=fusion))
    prefix, _ = fused(mapper, streams)
    order = np.array([3, 0, 4, 1, 2])
    cavp = jax.tree.map(np.asarray, streams["cavp"])
    shuffled = Stream(cavp.tokens[:, order], cavp.seconds[:, order])
    again, _ = fused(mapper, {**streams, "cavp": shuffled})
    np.testing.assert_allclose(again[:, :5], np.asarray(prefix)[:, order], atol=1e-6)


@pytest.mark.parametrize("fusion", ["tokens", "channels", "wrapped"])
def test_masked_tokens_change_nothing(fusion, streams):
    mapper = lively(dataclasses.replace(SMALL, fusion=fusion))
    mask = jnp.ones((2, 7), bool).at[:, 5:].set(False)
    masked = streams["timechat"]._replace(mask=mask)
    other = masked._replace(tokens=masked.tokens.at[:, 5:].add(9.0))
    np.testing.assert_array_equal(
        generate(mapper, {**streams, "timechat": masked}),
        generate(mapper, {**streams, "timechat": other}),
    )


def test_standard_units_go_there_and_back():
    mapper = lively(SMALL)
    loa = jax.random.normal(jax.random.key(0), (2, 6, 14))
    np.testing.assert_allclose(mapper.restore(mapper.standardise(loa)), loa, atol=1e-5)


def test_real_size_mapper_has_the_size_of_gpt2():
    mapper = abstract(lambda rngs: build_mapper(MapperConfig.base(), rngs=rngs))
    predicted = nnx.eval_shape(
        lambda m: m.generate(
            {
                "cavp": Stream(jnp.zeros((2, 40, 512)), jnp.zeros((2, 40))),
                "timechat": Stream(jnp.zeros((2, 96, 768)), jnp.zeros((2, 96))),
            }
        ),
        mapper,
    )
    assert predicted.shape == (2, MapperConfig.base().loa.tokens, 768) == (2, 8, 768)


@pytest.mark.parametrize(
    ("field", "value"), [("kind", "gpt3"), ("fusion", "gated"), ("timechat", "audio")]
)
def test_unknown_choices_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field}='{value}' is not one of"):
        build_mapper(dataclasses.replace(SMALL, **{field: value}), rngs=nnx.Rngs(0))


def test_a_missing_encoder_is_named(streams):
    with pytest.raises(ValueError, match="missing: timechat"):
        lively(SMALL).generate({"cavp": streams["cavp"]})


@pytest.mark.parametrize("fusion", ["tokens", "channels", "wrapped"])
def test_a_stream_read_twice_is_a_second_encoder_that_says_the_same(fusion, streams):
    twice = lively(dataclasses.replace(SMALL, fusion=fusion, encoders=TWICE))
    named = {"cavp": "cavp", "cavp:2": "timechat"}
    encoders = tuple((named[n], tokens, width) for n, tokens, width in TWICE)
    two = lively(dataclasses.replace(SMALL, fusion=fusion, encoders=encoders))
    assert twice.config.streams == ("cavp",)
    weights = {
        name.replace("proj.cavp:2.", "proj.timechat."): weight
        for name, weight in named_weights(twice).items()
    }
    two = with_weights(two, weights)
    cavp = streams["cavp"]
    np.testing.assert_array_equal(
        generate(twice, {"cavp": cavp}), generate(two, {"cavp": cavp, "timechat": cavp})
    )


@pytest.mark.parametrize("kind", ["linear_pooled", "linear_flat"])
def test_a_linear_mapper_reads_a_stream_twice(kind, streams):
    mapper = lively(dataclasses.replace(SMALL, kind=kind, encoders=TWICE))
    single = lively(dataclasses.replace(SMALL, kind=kind, encoders=TWICE[:1]))
    weights = dict(named_weights(single))
    # Two readings of the same numbers are one reading with the sum of their weights.
    weights["proj.kernel"] = sum(jnp.split(mapper.proj.kernel[...], 2))
    weights |= {n: w for n, w in named_weights(mapper).items() if n != "proj.kernel"}
    single = with_weights(single, weights)
    cavp = {"cavp": streams["cavp"]}
    np.testing.assert_allclose(generate(mapper, cavp), generate(single, cavp), atol=1e-5)


@pytest.mark.parametrize("fusion", ["tokens", "channels", "wrapped"])
def test_a_mapper_that_reads_a_stream_twice_is_stored_and_converted(fusion, tmp_path):
    config = dataclasses.replace(SMALL, fusion=fusion, encoders=TWICE)
    mapper, source = lively(config), Source("tests", "none")
    write_bundle(tmp_path, {"mapper": (config, mapper, source)})
    stored = named_weights(Bundle.open(tmp_path).load("mapper"))
    rows = conversion.table(config)
    theirs = dict(rows.to_theirs({n: np.asarray(w) for n, w in stored.items()}))
    back = dict(rows.to_ours(theirs))
    assert back.keys() == named_weights(mapper).keys()
    for name, weight in named_weights(mapper).items():
        np.testing.assert_array_equal(back[name], weight, err_msg=name)


@pytest.mark.parametrize(
    ("encoders", "message"),
    [
        ((TWICE[0], TWICE[0]), "names cavp twice: tell them apart, as cavp:2 does"),
        ((TWICE[0], ("cavp:2", 5, 13)), "cavp:2 is 5 tokens of 13, but cavp was 5 of 12"),
    ],
    ids=["same name", "other size"],
)
def test_readings_of_a_stream_have_names_of_their_own_and_one_size(encoders, message):
    with pytest.raises(ValueError, match=message):
        build_mapper(dataclasses.replace(SMALL, encoders=encoders), rngs=nnx.Rngs(0))


def test_a_missing_stream_is_named_once(streams):
    with pytest.raises(ValueError, match=r"reads cavp, cavp:2; missing: cavp$"):
        lively(VARIANTS["one twice"]).generate({"timechat": streams["timechat"]})

"""The mapper's recipe on a small random linear world: LOA is a linear map of the video tokens."""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.bundle import Source, write_bundle
from mfm_jax.data.clips import DataError
from mfm_jax.data.features import FeatureSource
from mfm_jax.data.sources import ClipFiles
from mfm_jax.errors import SettingError
from mfm_jax.mapper import MapperConfig, build_mapper
from mfm_jax.models.audiomae import LOA
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.runtime.config import override
from mfm_jax.storage.weights import abstract, named_weights
from mfm_jax.train.losses import clip_contrast
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.mapper import MapperRecipe
from mfm_jax.train.recipes.unet import UNetRecipe
from tests.bundles import filled, untrained_bundle, untrained_component
from tests.feature_folder import write_features
from train import train

LOA_GRID = LOA(grid=(4, 2), pool=(1, 2))
NETWORK = MapperConfig(
    encoders=(("cavp", 4, 6), ("timechat", 3, 5)),
    loa_width=7,
    loa=LOA_GRID,
    gpt2=GPT2Config(width=32, depth=1, heads=2, positions=32),
    head=True,
)
SEVEN = GPT2Config(width=7, depth=1, heads=1, positions=32)


def world(clips: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Each LOA vector maps the CAVP token of its moment and the mean of the others."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    from_cavp, from_timechat = fixed.standard_normal((6, 7)), fixed.standard_normal((5, 7))
    elements = []
    for _ in range(clips):
        cavp, timechat = rng.standard_normal((4, 6)), rng.standard_normal((3, 5))
        loa = 3 + cavp @ from_cavp + timechat.mean(axis=0) @ from_timechat
        tokens = np.concatenate([np.zeros((1, 7)), np.repeat(loa, 2, axis=0)])
        arrays = {
            "cavp": cavp,
            "cavp_seconds": LOA_GRID.times(),
            "timechat": timechat,
            "timechat_seconds": np.full(3, 0.32),
            "audiomae": tokens,
        }
        elements.append({name: array.astype(np.float32) for name, array in arrays.items()})
    return elements


@dataclass(frozen=True)
class Linear(MapperRecipe):
    """With the world above for clips."""

    network: MapperConfig = NETWORK

    def check(self, workdir: Path) -> None:
        """No files are read."""

    def prepare(self, workdir: Path):
        return tuple([self.read(e) for e in world(n, n)] for n in (256, 32))

    def finish(self, module, workdir, command):
        """Nothing is kept."""


def test_the_mapper_beats_the_mean_and_the_loa_of_another_clip(tmp_path):
    config = TrainConfig(
        recipe=Linear(),
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=10, weight_decay=0.0),
        steps=150,
        batch=32,
        eval_every=1000,
        save_every=1000,
    )
    assert train(config, tmp_path, "test") == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    before, after = lines[0], lines[-1]
    assert (before["step"], after["step"]) == (0, 150)
    error = after["heldout_loa_error"]
    assert error < 0.5 * after["heldout_loa_error_mean"]
    assert error < 0.5 * after["heldout_loa_error_shuffled"]
    assert error < 0.5 * before["heldout_loa_error"]
    # LOA is standardised by the training set: predicting the mean is off by one deviation.
    assert 0.5 < after["heldout_loa_error_mean"] < 1.5


@pytest.mark.parametrize("start", ["gpt2", "sequence"])
def test_the_mapper_starts_from_a_trained_gpt2(tmp_path, start):
    wrapped = replace(NETWORK, fusion="wrapped", head=False, loa_width=32)
    parts = {
        "gpt2": (NETWORK.gpt2, filled(abstract(partial(GPT2, NETWORK.gpt2)), 1)),
        "sequence": (wrapped, filled(abstract(partial(build_mapper, wrapped)), 2)),
    }
    source = Source("tests", "none")
    write_bundle(tmp_path, {n: (*part, source) for n, part in parts.items()}, dtype=jnp.float16)
    recipe = MapperRecipe(bundle=str(tmp_path), network=NETWORK, init_from=start)
    module = filled(abstract(recipe.build), 0)
    begun = recipe.warm_start(module, [{"loa": np.ones((8, 7), np.float32)}])
    trained = parts[start][1] if start == "gpt2" else parts[start][1].gpt2
    for name, weight in named_weights(trained).items():
        found = named_weights(begun.gpt2)[name]
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, weight.astype(jnp.float16).astype(jnp.float32))
    larger = replace(NETWORK, gpt2=replace(NETWORK.gpt2, depth=2))
    with pytest.raises(SettingError, match=r"recipe\.init_from: "):
        replace(recipe, network=larger).warm_start(module, [])


PLAIN = MapperRecipe(network=NETWORK, contrast_weight=0.0, scheduled_sampling=0.0)
"""Teacher forcing on true LOA, and the squared error alone."""


def batch_of(recipe: MapperRecipe, clips: int = 6) -> dict[str, jax.Array]:
    elements = [recipe.read(element) for element in world(clips, seed=3)]
    return jax.device_put(jax.tree.map(lambda *arrays: np.stack(arrays), *elements))


def mapper_of(recipe: MapperRecipe):
    """Untrained, with the mean and the spread of LOA of the batch above."""
    elements = [recipe.read(element) for element in world(6, seed=3)]
    return recipe.warm_start(filled(abstract(recipe.build), 0), elements)


def cosine(made, true):
    products = (made * true).sum(-1)
    return (1 - products / np.sqrt((made**2).sum(-1) * (true**2).sum(-1))).mean()


def contrast(made, true, temperature=0.1):
    """Cross entropy of choosing a clip's own LOA, both ways."""
    made, true = (x.reshape(len(x), -1) for x in (made, true))
    made, true = (x / np.sqrt((x**2).sum(1, keepdims=True)) for x in (made, true))
    logits = made @ true.T / temperature
    ways = [np.log(np.exp(way).sum(1)) - np.diag(way) for way in (logits, logits.T)]
    return np.mean(ways)


TERMS = {
    "mse": ({}, lambda made, true: ((made - true) ** 2).mean()),
    "l1": ({"error": "l1"}, lambda made, true: np.abs(made - true).mean()),
    "cosine": (
        {"cosine_weight": 0.7},
        lambda made, true: ((made - true) ** 2).mean() + 0.7 * cosine(made, true),
    ),
    "contrast": (
        {"contrast_weight": 0.3},
        lambda made, true: ((made - true) ** 2).mean() + 0.3 * contrast(made, true),
    ),
    "all": (
        {"error": "l1", "cosine_weight": 0.5, "contrast_weight": 0.2, "temperature": 0.4},
        lambda made, true: (
            np.abs(made - true).mean() + 0.5 * cosine(made, true) + 0.2 * contrast(made, true, 0.4)
        ),
    ),
}


@pytest.mark.parametrize("name", TERMS)
def test_the_loss_is_what_its_formula_says(name):
    changes, formula = TERMS[name]
    recipe = replace(PLAIN, **changes)
    mapper, batch = mapper_of(recipe), batch_of(recipe)
    made = jax.jit(lambda m, batch: m(recipe.streams(batch), batch["loa"]))(mapper, batch)
    made = np.asarray(made, np.float64)
    true = (np.asarray(batch["loa"]) - np.asarray(mapper.loa_mean)) / np.asarray(mapper.loa_std)
    loss, metrics = jax.jit(recipe.loss)(mapper, batch, jax.random.key(0))
    assert float(loss) == pytest.approx(formula(made, true), rel=1e-5)
    expected = {recipe.error, *(n for n in ("cosine", "contrast") if f"{n}_weight" in changes)}
    assert metrics.keys() == expected


def test_the_contrast_multiplies_in_the_precision_of_what_is_predicted():
    keys = jax.random.split(jax.random.key(0))
    made, true = (jax.random.normal(key, (16, 4, 96)) for key in keys)
    made = made + true

    def value(made):
        return clip_contrast(made, true, 0.1)

    exact, half = (jax.value_and_grad(value)(made.astype(d)) for d in (jnp.float32, jnp.bfloat16))
    assert half[0].dtype == jnp.float32
    assert float(half[0]) == pytest.approx(contrast(*np.float64((made, true))), abs=2e-3)
    error = half[1].astype(jnp.float32) - exact[1]
    assert jnp.linalg.norm(error) < 0.02 * jnp.linalg.norm(exact[1])
    products = [
        equation.invars
        for equation in jax.make_jaxpr(value)(made.astype(jnp.bfloat16)).eqns
        if equation.primitive.name == "dot_general"
    ]
    assert [[x.aval.dtype for x in inputs] for inputs in products] == [[jnp.bfloat16] * 2]


@jax.jit
def predicted(mapper, streams, loa):
    return mapper.restore(mapper(streams, loa))


def fed(recipe: MapperRecipe, mapper, *, clips: int = 400, seed: int = 0):
    """LOA as the mapper would be fed it, and the true LOA, of enough clips to see the shares."""
    loa = jax.random.normal(jax.random.key(9), (clips, 4, 7)) * 3 + 5
    own = loa
    if recipe.scheduled_sampling:
        own = predicted(mapper, recipe.streams(batch_of(recipe, clips)), loa)
    return np.asarray(recipe.feed(mapper, loa, own, jax.random.key(seed))), np.asarray(loa)


def test_without_a_remedy_true_loa_is_fed():
    given, true = fed(PLAIN, mapper_of(PLAIN))
    np.testing.assert_array_equal(given, true)


@pytest.mark.parametrize("head", [True, False], ids=["standardised", "own units"])
def test_noise_has_a_level_for_each_clip_up_to_the_largest(head):
    """Of 0.8 deviations, which are the training set's, or without a head the batch's."""
    network = NETWORK if head else replace(NETWORK, head=False, loa_width=7, gpt2=SEVEN)
    recipe = replace(PLAIN, network=network, noise_std=0.8)
    mapper = mapper_of(recipe)
    given, true = fed(recipe, mapper)
    spread = np.asarray(mapper.loa_std) if head else true.std(axis=(0, 1))
    noise = (given - true) / spread
    levels = noise.std(axis=(1, 2))
    # The levels are uniform; a clip of 28 numbers tells its own to within a seventh or so.
    assert np.mean(levels) == pytest.approx(0.4, abs=0.04)
    assert [np.mean(levels < bound) for bound in (0.2, 0.4, 0.6)] == pytest.approx(
        [0.25, 0.5, 0.75], abs=0.08
    )
    np.testing.assert_allclose(noise.std(axis=(0, 1)), np.sqrt(0.8**2 / 3), rtol=0.1)
    assert np.abs(noise.mean(axis=(0, 1))).max() < 0.05


def test_blank_tokens_are_the_mean():
    recipe = replace(PLAIN, token_dropout=0.3)
    mapper = mapper_of(recipe)
    given, true = fed(recipe, mapper)
    mean = np.asarray(mapper.loa_mean)
    blank = np.isclose(given, mean, atol=1e-5).all(-1)
    assert blank.mean() == pytest.approx(0.3, abs=0.04)
    np.testing.assert_array_equal(given[~blank], true[~blank])


def test_tokens_of_the_mappers_own_get_no_noise():
    recipe = replace(PLAIN, scheduled_sampling=0.4, noise_std=0.8)
    mapper = mapper_of(recipe)
    given, true = fed(recipe, mapper)
    streams = recipe.streams(batch_of(recipe, 400))
    own = np.asarray(predicted(mapper, streams, jax.device_put(true)))
    mine = np.isclose(given, own, atol=1e-4).all(-1)
    assert mine.mean() == pytest.approx(0.4, abs=0.04)
    assert not np.isclose(given[~mine], true[~mine], atol=1e-6).all(-1).any()


def test_a_linear_mapper_is_fed_nothing_that_could_be_spoilt():
    network = replace(NETWORK, kind="linear_pooled")
    recipe = replace(PLAIN, network=network, noise_std=1.0, token_dropout=1.0)
    mapper, batch = mapper_of(recipe), batch_of(recipe, 3)
    streams = recipe.streams(batch)
    predicted = recipe.predict(mapper, streams, batch["loa"], jax.random.key(0))
    np.testing.assert_array_equal(predicted, mapper(streams, batch["loa"]))


def test_reading_the_video_once_for_both_passes_changes_no_gradient():
    recipe = replace(PLAIN, scheduled_sampling=0.5, noise_std=0.1)
    mapper, batch, key = mapper_of(recipe), batch_of(recipe, 4), jax.random.key(5)
    streams, loa = recipe.streams(batch), jnp.asarray(batch["loa"])

    def twice(mapper):
        own = jax.lax.stop_gradient(mapper.restore(mapper(streams, loa)))
        return mapper(streams, recipe.feed(mapper, loa, own, key))

    def squared(predict, mapper):
        return (predict(mapper) ** 2).mean()

    once = partial(squared, lambda m: recipe.predict(m, streams, loa, key))
    made, expected = (
        jax.jit(jax.value_and_grad(f))(mapper) for f in (once, partial(squared, twice))
    )
    for one, two in zip(*map(jax.tree.leaves, (made, expected)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["scheduled_sampling", "token_dropout"])
@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_a_share_is_a_share(name, value):
    with pytest.raises(SettingError, match=rf"recipe\.{name} is a share from 0 to 1, not {value}"):
        replace(PLAIN, **{name: value})


def test_one_encoder_twice_reads_one_stream(tmp_path):
    """Set from the command line, as the comparison with two encoders needs it."""
    assignment = 'network.encoders=[["cavp", 4, 6], ["cavp:2", 4, 6]]'
    recipe = override(Linear(), [assignment])
    element = recipe.read(world(1, 0)[0])
    assert element.keys() == {"cavp", "cavp_seconds", "loa"}
    config = TrainConfig(
        recipe=recipe,
        optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=10),
        steps=60,
        batch=32,
    )
    assert train(config, tmp_path, "test") == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["heldout_loa_error"] < 0.8 * lines[0]["heldout_loa_error"]


def test_the_first_clips_of_a_larger_folder_are_used(tmp_path):
    bundle = write_bundle(tmp_path / "bundle", {})
    element = world(1, 0)[0]
    shapes = {name: array.shape for name, array in element.items()}
    for part, clips in (("train", 9), ("heldout", 5)):
        write_features(bundle, tmp_path / "features" / part, clips, shapes)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "features").rglob("*")}
    source = ClipFiles(str(tmp_path / "features"), limit=4)
    recipe = MapperRecipe(network=NETWORK, source=source, bundle=str(tmp_path / "bundle"))
    sources = recipe.prepare(tmp_path / "run")
    assert [len(source) for source in sources] == [4, 5]
    for source, part in zip(sources, ("train", "heldout"), strict=True):
        whole = FeatureSource(tmp_path / "features" / part)
        for i in range(len(source)):
            assert source[i].keys() == recipe.read(whole[i]).keys()
            for name, array in recipe.read(whole[i]).items():
                np.testing.assert_array_equal(source[i][name], array)
    assert {f: f.stat().st_mtime_ns for f in (tmp_path / "features").rglob("*")} == before
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timechat": "frame"}, r'timechat is "video", not "frame"'),
        ({"loa": LOA(grid=(8, 8), pool=(1, 8))}, r"grid is \[16, 8\], not \[8, 8\]"),
    ],
    ids=["tensor", "grid"],
)
def test_features_of_other_tokens_are_refused(tmp_path, change, message):
    bundle = untrained_bundle(tmp_path / "bundle")
    for part in ("train", "heldout"):
        write_features(bundle, tmp_path / "features" / part, 2)
    recipe = MapperRecipe(
        source=ClipFiles(str(tmp_path / "features")), bundle=str(tmp_path / "bundle")
    )
    recipe.prepare(tmp_path)
    with pytest.raises(DataError, match=message):
        replace(recipe, network=replace(MapperConfig.tiny(), **change)).prepare(tmp_path)


def test_only_encoders_that_are_read_have_to_be_those_of_the_bundle(tmp_path):
    """A UNet in training goes on though TimeChat, which trains beside it, is done meanwhile."""
    bundle = untrained_bundle(tmp_path / "bundle")
    for part in ("train", "heldout"):
        write_features(bundle, tmp_path / "features" / part, 2)
    timechat = untrained_component("timechat", bundle.config("timechat"), seed=77)
    later = write_bundle(tmp_path / "later", {"timechat": timechat}, base=bundle.path)
    common = {"source": ClipFiles(str(tmp_path / "features")), "bundle": str(later.path)}
    assert len(UNetRecipe(**common).prepare(tmp_path).train) == 2
    with pytest.raises(DataError, match=r"encoders\.timechat is"):
        MapperRecipe(**common).prepare(tmp_path)
    of_cavp = replace(MapperConfig.tiny(), encoders=(("cavp", 32, 64),))
    assert len(MapperRecipe(**common, network=of_cavp).prepare(tmp_path).train) == 2


def test_features_that_lack_a_stream_are_refused():
    element = world(1, 0)[0]
    other = {**element, "cavp": element["cavp"][:, :5]}
    with pytest.raises(DataError, match="the features have cavp of width 5, the network reads 6"):
        PLAIN.read(other)
    del element["timechat"]
    with pytest.raises(DataError, match="the features have no timechat: extract them"):
        PLAIN.read(element)

"""Stage 2 on noise: what it computes, and what it changes."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.bundle import COMPONENTS, Bundle, Settings, Source, write_bundle
from mfm_jax.data.clips import DataError
from mfm_jax.diffusion import Schedule
from mfm_jax.errors import SettingError
from mfm_jax.mapper import MapperConfig
from mfm_jax.models.audiomae import LOA, pool_loa
from mfm_jax.models.gpt2 import GPT2Config
from mfm_jax.models.text import EmptyTextConfig
from mfm_jax.models.unet import UNetConfig
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh
from mfm_jax.storage.weights import abstract, initialise, named_weights, with_weights
from mfm_jax.train.optimizer import OptimizerConfig, build_optimizer, lr_multipliers
from mfm_jax.train.recipes.stage2 import ONLY_MAPPER, WITH_LORA, Stage2Recipe
from mfm_jax.train.step import init_state, make_step, trainable
from tests.bundles import filled

MAPPER = MapperConfig(
    encoders=(("cavp", 4, 6), ("timechat", 3, 5)),
    loa_width=7,
    loa=LOA(grid=(4, 2), pool=(1, 2)),
    gpt2=GPT2Config(width=16, depth=1, heads=2, positions=32),
    head=True,
)
UNET = UNetConfig(
    channels=(8,),
    attentions=((0,),),
    contexts=(7,),
    heads=2,
    latent_channels=3,
    resnets=1,
    groups=4,
    timed=True,
)
TEXT = EmptyTextConfig(width=9, tokens=2)
READS_TEXT = replace(UNET, attentions=((0, 1),), contexts=(7, 9))
CLIPS = 6
ONE = Layout(make_mesh(MeshConfig()))


def made_bundle(path: Path, prediction: str = "v", **configs) -> str:
    """A bundle of drawn weights; the folder's name."""
    parts = {
        name: (
            config,
            filled(abstract(partial(COMPONENTS[name].build, config)), i),
            Source("x", "none"),
        )
        for i, (name, config) in enumerate(configs.items())
    }
    mapper = parts["mapper"][1]
    mapper.loa_mean[...] = jnp.linspace(-2.0, 2.0, mapper.config.loa_width)
    mapper.loa_std[...] = jnp.linspace(0.5, 3.0, mapper.config.loa_width)
    write_bundle(path, parts, settings=Settings(schedule=Schedule(prediction=prediction)))
    return str(path)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage2")
    return Stage2Recipe(bundle=made_bundle(folder, mapper=MAPPER, unet=UNET))


@pytest.fixture(scope="module")
def elements():
    rng = np.random.default_rng(0)
    shapes = {"cavp": (4, 6), "timechat": (3, 5), "audiomae": (9, 7), "latents": (8, 4, 3)}
    times = {"cavp_seconds": np.arange(4) * 0.16, "timechat_seconds": np.full(3, 0.32)}
    return [
        {
            **{
                name: rng.standard_normal(shape).astype(np.float16)
                for name, shape in shapes.items()
            },
            **{name: seconds.astype(np.float32) for name, seconds in times.items()},
        }
        for _ in range(CLIPS)
    ]


@pytest.fixture(scope="module")
def batch(recipe, elements):
    return jax.device_put(jax.tree.map(lambda *x: np.stack(x), *map(recipe.read, elements)))


def started(recipe):
    return recipe.warm_start(abstract(recipe.build), [])


@pytest.fixture(scope="module")
def module(recipe):
    return started(recipe)


@partial(jax.jit, static_argnums=0)
def loss_of(recipe, module, batch, key):
    return recipe.loss(module, batch, key)


@jax.jit
def generated(module, streams):
    return module.mapper.generate(streams)


def copied(weights):
    return {name: np.array(weight) for name, weight in weights.items()}


def test_the_mapper_learns_and_nothing_else_changes(recipe, batch, module):
    """At a rate and a decay that no weight can miss."""
    abstract_module = abstract(recipe.build)
    multiplier = lr_multipliers(ONLY_MAPPER, trainable(abstract_module))
    tx = build_optimizer(
        OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5), 10, multiplier
    )
    state = init_state(started(recipe), tx, multiplier, ema=False, seed=5, layout=ONE)
    assert {name.split(".")[0] for name in state.params} == {"mapper"}
    assert {name.split(".")[0] for name in state.frozen} == {"unet"}
    assert set(state.opt[1].mu) == set(state.opt[1].nu) == set(state.params)
    assert set(state.stats) == {"mapper.loa_mean", "mapper.loa_std"}
    before = copied(state.weights(averaged=False))
    step = make_step(abstract_module, recipe.loss, tx, ema_decay=None, layout=ONE)
    state, metrics = step(state, batch)
    first, _ = loss_of(recipe, module, batch, jax.random.fold_in(jax.random.key(5), 0))
    assert float(metrics["loss"]) == pytest.approx(float(first), rel=1e-4)
    state, _ = step(state, batch)
    for name, weight in copied(state.weights(averaged=False)).items():
        same = np.array_equal(weight, before[name])
        assert same != (name in state.params), name


def test_it_starts_from_the_bundles_networks(recipe, module):
    bundle = Bundle.open(Path(recipe.bundle))
    for name in ("mapper", "unet"):
        stored, found = named_weights(bundle.load(name)), named_weights(getattr(module, name))
        assert stored.keys() == found.keys()
        for weight in stored:
            np.testing.assert_array_equal(found[weight], stored[weight], err_msg=weight)


class GivenChoices(Stage2Recipe):
    """The recipe, but what the UNet reads of each clip is told by the batch."""

    def draw(self, batch, key):
        chosen = {name: batch[name] for name in ("true", "unconditional")}
        return super().draw(batch, key)._replace(**chosen)


@pytest.fixture(scope="module")
def gradients(recipe, module, batch):
    """Of the diffusion loss and of the squared error of LOA, by weight of the mapper.

    A function of the share of the clips of which the UNet reads the true LOA, and of those of which
    it reads nothing: none or all.
    """
    chosen = GivenChoices(bundle=recipe.bundle)

    @jax.jit
    def found(module, batch):
        weights = named_weights(module)

        def parts(mapper):
            whole = with_weights(module, {**weights, **mapper})
            return chosen.loss(whole, batch, jax.random.key(5))[1]

        return jax.jacrev(parts)({n: w for n, w in weights.items() if n.startswith("mapper.")})

    def at(true, unconditional):
        choices = {"true": np.full(CLIPS, true), "unconditional": np.full(CLIPS, unconditional)}
        return found(module, {**batch, **jax.device_put(choices)})

    return at


def test_the_diffusion_loss_reaches_every_weight_of_the_mapper(gradients):
    """Also those that read its own output: it is differentiated through all its steps."""
    found = gradients(False, False)["diffusion"]
    positions = 4 + 3 + 1 + MAPPER.loa.tokens - 1
    rows = np.abs(found["mapper.gpt2.wpe.embedding"]).max(axis=1)
    np.testing.assert_array_equal(rows > 0, np.arange(len(rows)) < positions)
    assert np.any(found["mapper.loa_in.kernel"])
    for name, value in found.items():
        # A bias of the keys adds the same to all scores of a query, which the softmax ignores.
        if not name.endswith("attn.k.bias"):
            assert np.any(value), name


@pytest.mark.parametrize("choices", [(True, False), (False, True)], ids=["true", "nothing"])
def test_where_the_unet_reads_no_prediction_the_mapper_has_no_gradient(gradients, choices):
    """But that of the anchor."""
    found = gradients(*choices)
    for name, value in found["diffusion"].items():
        assert not np.any(value), name
    assert np.any(found["mse"]["mapper.loa_out.kernel"])


@jax.jit
def unet_output(unet, x, t, loa, seconds):
    return unet(x, t, (loa,), context_seconds=seconds)


@pytest.mark.parametrize("prediction", ["v", "epsilon"])
def test_the_loss_is_that_worked_out_by_hand(tmp_path, batch, elements, prediction):
    place = made_bundle(tmp_path, prediction, mapper=MAPPER, unet=UNET)
    recipe = Stage2Recipe(bundle=place, true_loa_prob=0.4, uncond_prob=0.3, loa_weight=0.7)
    module, key = started(recipe), jax.random.key(5)
    loss, metrics = loss_of(recipe, module, batch, key)

    draws = recipe.draw(batch, key)
    chosen = np.asarray(draws.true).astype(int), np.asarray(draws.unconditional).astype(int)
    assert all(0 < sum(which) < CLIPS for which in chosen)
    made = np.asarray(generated(module, recipe.streams(batch)))
    tokens = jnp.asarray(np.stack([e["audiomae"] for e in elements]), jnp.float32)
    true = np.asarray(pool_loa(tokens, (4, 2), (1, 2)))
    read = np.stack(
        [
            np.zeros_like(made[i])
            if draws.unconditional[i]
            else true[i]
            if draws.true[i]
            else made[i]
            for i in range(CLIPS)
        ]
    )
    schedule = Schedule(prediction)
    data = schedule.alphas_cumprod[np.asarray(draws.t)][:, None, None, None]
    latents = np.stack([e["latents"] for e in elements]).astype(np.float32)
    noise = np.asarray(draws.noise)
    noised = np.sqrt(data) * latents + np.sqrt(1 - data) * noise
    seconds = jnp.asarray(MAPPER.loa.times())
    output = unet_output(module.unet, jnp.asarray(noised), draws.t, jnp.asarray(read), seconds)
    velocity = np.sqrt(data) * noise - np.sqrt(1 - data) * latents
    wanted = velocity if prediction == "v" else noise
    diffusion = np.mean((np.asarray(output) - wanted) ** 2)
    mse = np.mean(((made - true) / np.asarray(module.mapper.loa_std)) ** 2)
    assert float(metrics["diffusion"]) == pytest.approx(diffusion, rel=1e-4)
    assert float(metrics["mse"]) == pytest.approx(mse, rel=1e-4)
    assert float(loss) == pytest.approx(diffusion + 0.7 * mse, rel=1e-4)


def test_what_is_left_to_chance_has_the_shares_it_should(recipe):
    many = {"latents": jnp.zeros((4000, 2, 2, 3))}
    draws = recipe.draw(many, jax.random.key(1))
    assert float(draws.true.mean()) == pytest.approx(0.25, abs=0.03)
    assert float(draws.unconditional.mean()) == pytest.approx(0.1, abs=0.02)
    assert float((draws.true & draws.unconditional).mean()) == pytest.approx(0.025, abs=0.01)
    assert int(draws.t.min()) < 10
    assert int(draws.t.max()) in range(990, 1000)
    never = replace(recipe, true_loa_prob=0.0, uncond_prob=0.0).draw(many, jax.random.key(1))
    always = replace(recipe, true_loa_prob=1.0, uncond_prob=1.0).draw(many, jax.random.key(1))
    assert not np.any(never.true | never.unconditional)
    assert np.all(always.true & always.unconditional)


def test_a_unet_that_reads_text_is_told_the_empty_text(tmp_path, batch):
    place = made_bundle(tmp_path, mapper=MAPPER, unet=READS_TEXT, text=TEXT)
    recipe = Stage2Recipe(bundle=place)
    module, key = started(recipe), jax.random.key(5)
    assert "text.states" not in trainable(module)
    stored = Bundle.open(tmp_path).load("text").states
    np.testing.assert_array_equal(module.text.states, stored)
    loss, _ = loss_of(recipe, module, batch, key)
    module.text.states[...] = module.text.states[...] + 1
    other, _ = loss_of(recipe, module, batch, key)
    assert abs(float(other - loss)) > 1e-4


def test_held_out_noise_is_the_same_every_time(recipe, elements, module):
    source = [recipe.read(element) for element in elements]
    scores = recipe.evaluate(module, source, 4)
    assert scores == recipe.evaluate(module, source, 4)
    assert {"loa_error", "loa_error_mean", "loa_error_shuffled"} < scores.keys()
    other = started(recipe)
    other.mapper.loa_out.bias[...] = other.mapper.loa_out.bias[...] + 1.0
    changed = recipe.evaluate(other, source, 4)
    assert changed["diffusion_true"] == scores["diffusion_true"]
    assert changed["diffusion"] != scores["diffusion"]
    # Of a mapper that is right, both are the same.
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *source)
    made = np.asarray(generated(module, recipe.streams(stacked)))
    told = [{**e, "loa": loa} for e, loa in zip(source, made, strict=True)]
    right = recipe.evaluate(module, told, 4)
    assert right["diffusion"] == pytest.approx(right["diffusion_true"], rel=1e-5)
    assert right["loa_error"] == pytest.approx(0.0, abs=1e-8)


def test_networks_that_do_not_fit_are_named(tmp_path):
    place = made_bundle(tmp_path, mapper=MAPPER, unet=replace(UNET, contexts=(8,)))
    with pytest.raises(SettingError, match="reads LOA of width 8, the mapper predicts 7"):
        abstract(Stage2Recipe(bundle=place).build)


def test_with_lora_the_unet_changes_through_its_factors_alone(recipe, batch, module, tmp_path):
    lora = replace(recipe, lora_rank=2)
    abstract_module = abstract(lora.build)
    network = lora.warm_start(initialise(lora.build, 0, shapes_only=lora.loaded), [])
    same, _ = loss_of(lora, network, batch, jax.random.key(5))
    expected, _ = loss_of(recipe, module, batch, jax.random.key(5))
    assert float(same) == pytest.approx(float(expected), rel=1e-6), "it begins as no change"
    multiplier = lr_multipliers(WITH_LORA, trainable(abstract_module))
    tx = build_optimizer(OptimizerConfig(learning_rate=0.01, warmup_steps=0), 10, multiplier)
    state = init_state(network, tx, multiplier, ema=False, seed=5, layout=ONE)
    assert {name.split(".")[0] for name in state.params} == {"mapper", "lora"}
    before = copied(state.weights(averaged=False))
    step = make_step(abstract_module, lora.loss, tx, ema_decay=None, layout=ONE)
    for _ in range(2):
        state, _ = step(state, batch)
    after = copied(state.weights(averaged=False))
    assert all(np.array_equal(after[n], before[n]) for n in before if n.startswith("unet."))
    assert all(np.any(after[n] != before[n]) for n in before if n.startswith("lora."))

    trained = with_weights(abstract_module, jax.device_put(after))
    lora.finish(trained, tmp_path, "test")
    bundle, base = Bundle.open(tmp_path), Bundle.open(Path(recipe.bundle))
    assert bundle.entries["unet"].source.made_by == "x; test"
    first, second = (named_weights(b.load("unet")) for b in (base, bundle))
    changed = {name for name in first if np.any(first[name] != second[name])}
    assert changed == {n for n in first if ".attn2." in n and n.endswith("kernel")}
    a, b = after["lora.factors.0.a"], after["lora.factors.0.b"]
    name = trained.lora.names[0]
    np.testing.assert_allclose(second[name], first[name] + a @ b, atol=1e-6)


def test_lora_of_nothing_is_refused(recipe):
    with pytest.raises(SettingError, match=r"LoRA: no matrix is called 'nose\.\*'"):
        abstract(replace(recipe, lora_rank=2, lora_targets=("nose.*",)).build)


@pytest.mark.parametrize("name", ["true_loa_prob", "uncond_prob"])
def test_a_share_is_a_share(name):
    with pytest.raises(SettingError, match=rf"recipe\.{name} is a share from 0 to 1, not 2"):
        Stage2Recipe(**{name: 2.0})


def test_features_without_latents_are_refused(recipe, elements):
    element = {name: array for name, array in elements[0].items() if name != "latents"}
    with pytest.raises(DataError, match="the features have no latents: extract them"):
        recipe.read(element)

import dataclasses
import json
import runpy

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from convert.cnn14 import TABLE
from mfm_jax.models.cnn14 import Cnn14, Cnn14Config, Cnn14Tagger
from mfm_jax.storage.weights import abstract, named_weights, with_weights
from tests.bundles import in_half

SEED = 1234


def log_mel_db(wave: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """PANNs' input by definition, in double precision: `[frames, 64]` of `[samples]` at 16 kHz."""
    padded = np.pad(wave.astype(np.float64), 256, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, 512)[::160]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    return (10 * np.log10(np.maximum(power @ filters, 1e-10))).astype(np.float32)


@pytest.fixture(scope="module")
def tagger(reference) -> Cnn14Tagger:
    """The real size, with weights drawn by the recipe: 81 M numbers."""
    recipe = runpy.run_path(str(reference / "metrics/recipe.py"))
    manifest = json.loads((reference / "metrics/manifest.json").read_text())
    formulas = {k: np.zeros(s) for k, (s, _) in manifest.items() if "extractor" in k}
    state = recipe["weights"](manifest, SEED) | formulas
    weights = {name: jax.device_put(a) for name, a in TABLE.to_ours(state)}
    return with_weights(abstract(lambda rngs: Cnn14Tagger(Cnn14Config.panns(), rngs=rngs)), weights)


@pytest.mark.slow
@pytest.mark.parity
def test_panns_golden(reference, parity, tagger):
    golden = np.load(reference / "metrics/cnn14.npz")
    clips = np.load(reference / "metrics/clips.npz")
    filters = golden["cnn14_melW"]
    tag = jax.jit(lambda net, mel: net(mel))

    def mel_of(clip):
        wave = clip.astype(np.float64) / 32768
        return log_mel_db(wave - wave.mean(), filters)

    parity(
        "PANNs log-mel by definition",
        "golden logmel_db_ref_00",
        mel_of(clips["ref"][0]),
        golden["logmel_db_ref_00"],
        2e-3,
    )
    for side in ("ref", "gen"):
        embedding, logits = tag(tagger, np.stack([mel_of(c) for c in clips[side]]))
        parity("PANNs Cnn14", f"golden emb_{side}", embedding, golden[f"emb_{side}"], 1e-4)
        parity("PANNs Cnn14", f"golden logits_{side}", logits, golden[f"logits_{side}"], 1e-4)

    short = clips["ref"][0][:24000].astype(np.float64) / 32768
    mel = log_mel_db(np.pad(short - short.mean(), (0, 8000)), filters)
    embedding, logits = tag(tagger, mel[None])
    part = "ref_00_first_1_5_s"
    parity("PANNs Cnn14", f"golden emb_{part}", embedding[0], golden[f"emb_{part}"], 1e-4)
    parity("PANNs Cnn14", f"golden logits_{part}", logits[0], golden[f"logits_{part}"], 1e-4)


def random_weights(build):
    net, rng = abstract(build), np.random.default_rng(0)
    weights = {}
    for name, leaf in named_weights(net).items():
        n = rng.standard_normal(leaf.shape)
        if name.endswith("kernel"):
            n *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
        n = np.exp(0.2 * n) if name.endswith("var") else n
        weights[name] = jax.device_put(n.astype(np.float32))
    return with_weights(net, weights)


def random_mel(config: Cnn14Config, batch=2, frames=64) -> jax.Array:
    shape = (batch, frames, config.mels)
    return jnp.asarray(np.random.default_rng(0).random(shape), jnp.float32)


@pytest.mark.parametrize(
    ("config", "steps"),
    [(Cnn14Config.cavp(), 4), (Cnn14Config.panns(), 2), (Cnn14Config.tiny(), 16)],
)
def test_steps_of_the_trunk(config, steps):
    net = abstract(lambda rngs: Cnn14(config, rngs=rngs))
    mel = jax.ShapeDtypeStruct((2, 64, config.mels), jnp.float32)
    shape = jax.eval_shape(lambda n, x: n(x), net, mel).shape
    assert shape == (2, steps, config.widths[-1])


def test_dropout_draws_in_training_only():
    config = dataclasses.replace(Cnn14Config.tiny(), dropout=0.5)
    net = random_weights(lambda rngs: Cnn14(config, rngs=rngs))
    mel = random_mel(config)
    draw = jax.jit(lambda net, seed: net(mel, rngs=nnx.Rngs(dropout=jax.random.key(seed))))
    np.testing.assert_array_equal(draw(net, 1), draw(net, 2))
    net.train()
    one = draw(net, 1)
    np.testing.assert_array_equal(one, draw(net, 1))
    assert np.abs(one - draw(net, 2)).max() > 1e-3
    with pytest.raises(ValueError, match="rngs"):
        jax.eval_shape(lambda net: net(mel), net)


@pytest.mark.xfail(
    jax.__version_info__ >= (0, 12),
    reason="jaxlib 0.12 on a CPU compiles some bfloat16 convolutions to NaN; run eagerly they hold",
    strict=True,
)
def test_bfloat16_weights_compute_in_bfloat16():
    net = random_weights(lambda rngs: Cnn14Tagger(Cnn14Config.tiny(), 7, rngs=rngs))
    mel = random_mel(Cnn14Config.tiny())
    tag = jax.jit(lambda net: net(mel))
    for ours, exact in zip(tag(in_half(net)), tag(net), strict=True):
        assert ours.dtype == jnp.bfloat16
        assert np.abs(ours.astype(jnp.float32) - exact).max() < 0.1 * exact.std()


def test_config_refuses_blocks_without_pools():
    with pytest.raises(ValueError, match="6 blocks need as many pools"):
        dataclasses.replace(Cnn14Config.tiny(), pools=((2, 2),))

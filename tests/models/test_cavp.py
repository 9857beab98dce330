import dataclasses
import json
import runpy
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp
from safetensors.numpy import load_file

from convert.cavp import TABLE
from mfm_jax.models.cavp import CAVP, CAVPConfig, CAVPVideo, ConvNorm
from mfm_jax.models.cnn14 import Cnn14Config
from mfm_jax.storage.weights import abstract, named_weights, parameter_count, with_weights
from tests.bundles import in_half

SEED = 20240
GOLDEN = dataclasses.replace(
    CAVPConfig.diff_foley(),
    width=8,
    embed=32,
    audio=dataclasses.replace(Cnn14Config.cavp(), widths=(4, 8, 8, 16, 16, 32)),
)


def converted(config: CAVPConfig, state) -> CAVP:
    weights = {name: jax.device_put(a) for name, a in TABLE.to_ours(state)}
    return with_weights(abstract(lambda rngs: CAVP(config, rngs=rngs)), weights)


def random_tiny(network):
    """The tiny variant with every weight away from its initial value."""
    net, rng = (
        abstract(lambda rngs: network(CAVPConfig.tiny(), rngs=rngs)),
        np.random.default_rng(0),
    )
    weights = {}
    for name, leaf in named_weights(net).items():
        n = rng.standard_normal(leaf.shape)
        if name.endswith("kernel"):
            n *= np.sqrt(2 / np.prod(leaf.shape[:-1]))
        elif name.endswith(("scale", "var")):
            n = np.exp(0.2 * n)
        else:
            n *= 0.1
        weights[name] = jax.device_put(n.astype(np.float32))
    return with_weights(net, weights)


@pytest.fixture(scope="module")
def small(reference) -> CAVP:
    folder = reference / "cavp/golden"
    shapes = json.loads((folder / "tiny_manifest.json").read_text())
    state = load_file(folder / "tiny.safetensors")  # stores scalars as [1]
    return converted(GOLDEN, {k: a.reshape(shapes[k][0]) for k, a in state.items()})


@pytest.fixture(scope="module")
def full(reference) -> CAVP:
    """The real size, with weights drawn by the recipe: 113 M numbers."""
    recipe = runpy.run_path(str(reference / "cavp/recipe.py"))
    manifest = json.loads((reference / "cavp/manifest.json").read_text())
    return converted(CAVPConfig.diff_foley(), recipe["weights"](manifest, SEED))


@pytest.fixture(scope="module")
def tiny() -> CAVP:
    return random_tiny(CAVP)


def frames_of(golden) -> jax.Array:
    frames = jnp.asarray(golden["frames_uint8"], jnp.float32) / 255.0
    return frames if frames.ndim == 5 else frames[None]


def random_clip(batch, frames, size, seed=0) -> jax.Array:
    shape = (batch, frames, size, size, 3)
    return jnp.asarray(np.random.default_rng(seed).random(shape), jnp.float32)


@partial(jax.jit, static_argnames=("pool", "normalize"))
def encode_video(net: CAVP, frames, **options) -> jax.Array:
    return net.video(frames, **options)


@partial(jax.jit, static_argnames=("pool", "normalize"))
def encode_audio(net: CAVP, mel, **options) -> jax.Array:
    return net.audio(mel, **options)


@jax.jit
def video_stages(video: CAVPVideo, frames) -> dict[str, jax.Array]:
    """Activations of the tower by their names in the goldens, channels last."""
    tower = video.tower
    found = {"act_stem": jax.nn.relu(tower.stem(frames))}
    x = found["act_stem_pool"] = tower.pool(found["act_stem"])
    for number, stage in enumerate(tower.stages, start=1):
        for block in stage:
            x = block(x)
        found[f"act_layer{number}"] = x
    found["act_gap"] = tower(frames)[:, :, None, None, :]
    return found


@jax.jit
def audio_stages(net: CAVP, mel) -> dict[str, jax.Array]:
    x = net.audio.trunk.norm(jnp.swapaxes(mel, 1, 2))[..., None]
    found = {}
    for number, block in enumerate(net.audio.trunk.blocks, start=1):
        x = found[f"act_block{number}"] = block(x)
    return found


@jax.jit
def video_outputs(video: CAVPVideo, frames) -> dict[str, jax.Array]:
    found = {
        "features_raw": video(frames, normalize=False),
        "features": video(frames),
    }
    if frames.shape[1] >= video.steps:
        found["pooled_raw"] = video(frames, pool=True, normalize=False)
        found["pooled"] = video(frames, pool=True)
    return found


@jax.jit
def audio_outputs(net: CAVP, mel) -> dict[str, jax.Array]:
    return {
        "features_raw": net.audio(mel, normalize=False),
        "features": net.audio(mel),
        "pooled": net.audio(mel, pool=True),
    }


def as_stored(name: str, found: dict[str, jax.Array]) -> np.ndarray:
    """The activation that a golden calls `name`: channels second, whole or reduced."""
    act, _, kind = name.rpartition("_")
    if kind == "spatialmean":
        return np.asarray(found[act].mean(axis=(2, 3))).swapaxes(1, 2)
    if kind == "pixel00":
        return np.asarray(found[act][:, :, 0, 0]).swapaxes(1, 2)
    if kind == "freqmean":
        return np.asarray(found[act].mean(axis=2)).swapaxes(1, 2)
    return np.moveaxis(np.asarray(found[name]), -1, 1)


def compare(parity, part, file, golden, outputs, stages, tolerance):
    """Every array of the golden but its input; unit features are held to 5e-6."""
    inputs = {"frames_uint8", "spec"}
    acts = {name for name in golden.files if name.startswith("act_")}
    assert set(golden.files) == inputs & set(golden.files) | acts | outputs.keys()
    for name, ours in outputs.items():
        unit = name in ("features", "pooled")
        parity(f"CAVP {part}", f"{file} {name}", ours, golden[name], 5e-6 if unit else tolerance)
    for name in acts:
        parity(f"CAVP {part}", f"{file} {name}", as_stored(name, stages), golden[name], tolerance)


@pytest.mark.parity
@pytest.mark.parametrize("file", ["tiny_video", "tiny_video_t20"])
def test_small_video_golden(reference, parity, small, file):
    golden = np.load(reference / f"cavp/golden/{file}.npz")
    frames = frames_of(golden)
    outputs = video_outputs(small.video, frames)
    stages = video_stages(small.video, frames) if file == "tiny_video" else {}
    compare(parity, "video tower", file, golden, outputs, stages, 1e-4)


@pytest.mark.parity
def test_small_audio_golden(reference, parity, small):
    golden = np.load(reference / "cavp/golden/tiny_spec.npz")
    mel = jnp.asarray(golden["spec"])
    outputs, stages = audio_outputs(small, mel), audio_stages(small, mel)
    compare(parity, "audio tower", "tiny_spec", golden, outputs, stages, 2e-5)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize("file", ["full_video_t16_112x112", "full_video_t4_224x224"])
def test_full_video_golden(reference, parity, full, file):
    golden = np.load(reference / f"cavp/golden/{file}.npz")
    frames = frames_of(golden)
    outputs, stages = video_outputs(full.video, frames), video_stages(full.video, frames)
    compare(parity, "video tower", file, golden, outputs, stages, 1e-4)


@pytest.mark.slow
@pytest.mark.parity
def test_full_audio_golden(reference, parity, full):
    golden = np.load(reference / "cavp/golden/full_spec.npz")
    mel = jnp.asarray(golden["spec"])
    outputs, stages = audio_outputs(full, mel), audio_stages(full, mel)
    compare(parity, "audio tower", "full_spec", golden, outputs, stages, 1e-4)


def test_real_size(reference):
    """Every number of the release but BatchNorm's step counters, counted without allocating any."""
    net = abstract(lambda rngs: CAVP(CAVPConfig.diff_foley(), rngs=rngs))
    manifest = json.loads((reference / "cavp/manifest.json").read_text())
    counters = sum(key.endswith("num_batches_tracked") for key in manifest)
    assert parameter_count(net) == 113_476_163 - counters
    clip = jax.ShapeDtypeStruct((2, 40, 224, 224, 3), jnp.float32)
    assert jax.eval_shape(lambda n, x: n.video(x), net, clip).shape == (2, 40, 512)


def test_tiny_towers_agree_on_time(tiny):
    config = CAVPConfig.tiny()
    assert hash(config) == hash(CAVPConfig.tiny())
    assert 300_000 < parameter_count(tiny) < 600_000
    clip = random_clip(2, 32, config.size)
    mel = jnp.asarray(np.random.default_rng(0).random((2, 128, 128)), jnp.float32)
    video, audio = encode_video(tiny, clip), encode_audio(tiny, mel)  # 1 + 40959 // 320 columns
    assert video.shape == audio.shape == (2, 32, config.embed)
    np.testing.assert_allclose(np.linalg.norm(video, axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(audio, axis=-1), 1.0, atol=1e-5)


def test_both_towers_at_once(tiny):
    clip = random_clip(2, 32, 32)
    mel = jnp.asarray(np.random.default_rng(0).random((2, 128, 128)), jnp.float32)
    video, audio, scale = jax.jit(lambda net, *inputs: net(*inputs))(tiny, clip, mel)
    np.testing.assert_allclose(video, encode_video(tiny, clip, pool=True), atol=1e-6)
    np.testing.assert_allclose(audio, encode_audio(tiny, mel, pool=True), atol=1e-6)
    assert video.shape == audio.shape == (2, 64)
    np.testing.assert_allclose(scale, np.exp(tiny.logit_scale[...]), rtol=1e-6)


@pytest.mark.parametrize(("kernel", "stride"), [((1, 7, 7), 2), ((1, 1, 1), 2), ((3, 1, 1), 1)])
def test_folded_convolution_is_a_3d_convolution(kernel, stride):
    unit = ConvNorm(3, 5, kernel, stride=stride, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 9, 11, 3)), jnp.float32)
    theirs = jax.lax.conv_general_dilated(
        x,
        unit.conv.kernel[...].reshape(*kernel, 3, 5),
        (1, stride, stride),
        [(k // 2, k // 2) for k in kernel],
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
    )
    np.testing.assert_allclose(unit(x), unit.norm(theirs), atol=1e-5)


def test_one_frame_reaches_as_far_as_the_temporal_blocks(tiny):
    clip, changed = random_clip(1, 16, 32), 7
    reach = sum(CAVPConfig.tiny().blocks[2:])
    encode = partial(encode_video, tiny, normalize=False)
    difference = encode(clip) - encode(clip.at[:, changed].multiply(0.5))
    moved = np.flatnonzero(np.abs(difference).max(axis=(0, 2)) > 0)
    np.testing.assert_array_equal(moved, np.arange(changed - reach, changed + reach + 1))


@pytest.mark.parametrize("size", [(32, 32), (45, 27)])
def test_any_frame_size(tiny, size):
    clip = random_clip(1, 2, 48)[:, :, : size[0], : size[1]]
    assert encode_video(tiny, clip).shape == (1, 2, 64)


def test_inference_does_not_look_at_the_batch(tiny):
    clip = random_clip(3, 4, 32)
    encode = partial(encode_video, tiny, normalize=False)
    # Another size of batch is another program, which rounds otherwise: relative to the values.
    np.testing.assert_allclose(encode(clip)[1:2], encode(clip[1:2]), rtol=1e-5, atol=1e-5)


def test_training_looks_at_the_batch_and_keeps_its_statistics():
    net = random_tiny(CAVPVideo)
    clip = random_clip(3, 4, 32)
    norm = net.tower.stem.norm
    mean, var = np.asarray(norm.mean[...]), np.asarray(norm.var[...])
    x = np.asarray(net.tower.stem.conv(clip), np.float64)
    net.train()
    encode = nnx.jit(lambda n, x: n(x, normalize=False))
    alone = encode(nnx.clone(net), clip[1:2])
    together = encode(net, clip)[1:2]
    assert np.abs(together - alone).max() > 1e-3
    axes = (0, 1, 2, 3)
    np.testing.assert_allclose(norm.mean[...], 0.9 * mean + 0.1 * x.mean(axes), atol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 * var + 0.1 * x.var(axes), atol=1e-5)
    net.eval()
    before = named_weights(net)
    encode(net, clip)
    after = named_weights(net)
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


@pytest.mark.parametrize("frames", [3, 31, 64, 70])
def test_pooling_refuses_other_lengths(tiny, frames):
    clip = jax.ShapeDtypeStruct((1, frames, 8, 8, 3), jnp.float32)
    with pytest.raises(ValueError, match=rf"32 to 63 time steps, got {frames};"):
        encode_video.eval_shape(tiny, clip, pool=True)


def test_pooling_refuses_short_sound(tiny):
    mel = jax.ShapeDtypeStruct((1, 128, 64), jnp.float32)
    with pytest.raises(ValueError, match="32 to 63 time steps, got 16;"):
        encode_audio.eval_shape(tiny, mel, pool=True)


def test_bfloat16_weights_compute_in_bfloat16(tiny):
    clip = random_clip(1, 2, 32)
    ours, exact = encode_video(in_half(tiny), clip), encode_video(tiny, clip)
    assert ours.dtype == jnp.bfloat16
    assert np.abs(ours.astype(jnp.float32) - exact).max() < 0.03

"""Synchformer's towers and sync transformer against goldens of the original at reduced sizes.

The released sizes are compared in `tests/convert/test_goldens.py`, after the conversion.
"""

import json
import runpy
from dataclasses import replace

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from convert.synchformer import table
from mfm_jax.models.synchformer import SyncConfig, Synchformer, SynchformerConfig
from mfm_jax.models.synchformer_audio import AudioTower, AudioTowerConfig
from mfm_jax.models.synchformer_video import VideoTower, VideoTowerConfig, normalise
from mfm_jax.storage.weights import abstract, parameter_count, with_weights
from tests.bundles import in_half

SEED = 20261
GOLDEN = SynchformerConfig(
    video=VideoTowerConfig(
        frames=12, image=(20, 28), patch=4, width=44, depth=3, heads=4, mlp_width=132
    ),
    audio=AudioTowerConfig(
        columns=38, bins=26, patch=6, stride=(5, 4), width=36, depth=3, heads=3, mlp_width=100
    ),
    sync=SyncConfig(segments=3, width=32, depth=2, heads=4, mlp_width=128, offsets=9),
)
"""The three reduced networks of the goldens are the parts of one."""
SMALL_SCALE = {
    "vfeat_extractor.": (
        0.01,
        (
            *("patch_embed_3d.proj.", "cls_token", "pos_embed", "temp_embed", "norm."),
            "spatial_attn_agg.cls_token",
        ),
    ),
    "afeat_extractor.ast.": (1e-4, ("embeddings.",)),
    "afeat_extractor.": (0.01, ("ast.layernorm.", "freq_attn_agg.cls_token")),
    "": (0.01, ("vproj.", "aproj.")),
    "transformer.": (
        0.01,
        ("OFF_tok", "MOD_tok", "pos_emb_cfg.pos_emb", "vis_in_lnorm.", "aud_in_lnorm."),
    ),
}
"""Weights that are scaled down so that the LayerNorms' epsilons count: the goldens' README."""


def scaled(key: str, value: np.ndarray) -> np.ndarray:
    for prefix, (factor, names) in SMALL_SCALE.items():
        if key.startswith(tuple(prefix + name for name in names)):
            return value * np.float32(factor)
    return value


@pytest.fixture(scope="module")
def theirs(reference):
    """The weights of the three goldens, by the recipe."""
    folder = reference / "synchformer"
    draw = runpy.run_path(str(folder / "recipe.py"))["weights"]
    state = {}
    for part in ("video", "audio", "head"):
        manifest = json.loads((folder / f"golden/tiny_{part}_manifest.json").read_text())
        state |= draw(manifest, SEED)
    return state


def converted(state) -> Synchformer:
    weights = {name: jnp.asarray(a) for name, a in table(GOLDEN).to_ours(state)}
    return with_weights(abstract(lambda rngs: Synchformer(GOLDEN, rngs=rngs)), weights)


@pytest.fixture(scope="module")
def networks(theirs) -> dict[str, Synchformer]:
    """The golden network, and the one whose epsilons count, by the prefix of their outputs."""
    small = {key: scaled(key, value) for key, value in theirs.items()}
    return {"": converted(theirs), "smallscale_": converted(small)}


def flat(patches: jax.Array) -> jax.Array:
    """Return the patches of all steps as one sequence."""
    return patches.reshape(len(patches), -1, patches.shape[-1])


@jax.jit
def video_stages(tower: VideoTower, frames) -> dict[str, jax.Array]:
    """Activations of segments by their names in the goldens."""
    first, patches = tower.embed(frames)
    found = {"patch_embed": flat(tower.patch_embed(tower.patchify(frames)))}
    for number, block in enumerate(tower.blocks):
        first, patches = block(first, patches)
        found[f"block{number}"] = jnp.concatenate([first, flat(patches)], axis=1)
    return found | {"norm": flat(tower.norm(patches)), "features": tower(frames)}


@jax.jit
def audio_stages(tower: AudioTower, mel) -> dict[str, jax.Array]:
    x = tower.embed(mel)
    found = {"embeddings": x}
    for number, block in enumerate(tower.blocks):
        x = found[f"block{number}"] = block(x)
    return found | {"layernorm": tower.norm(x), "features": tower(mel)}


@jax.jit
def sync_stages(network: Synchformer, video, audio) -> dict[str, jax.Array]:
    sync = network.sync
    found = {"vproj": sync.video_proj(video), "aproj": sync.audio_proj(audio)}
    for name, norm in (("vis", sync.video_norm), ("aud", sync.audio_norm)):
        tokens = found["vproj" if name == "vis" else "aproj"]
        found[f"{name}_in_lnorm"] = norm(tokens.reshape(len(tokens), -1, tokens.shape[-1]))
    x = found["tokens"] = sync.embed(video, audio)
    for number, block in enumerate(sync.blocks):
        x = found[f"block{number}"] = block(x)
    return found | {"ln_f": sync.norm(x), "logits": sync(video, audio)}


def as_stored(name: str, stages: dict[str, jax.Array], shape: tuple[int, ...]) -> np.ndarray:
    """The activation that a golden calls `name`: whole, or reduced as the README tells."""
    stage, _, kind = name.removeprefix("smallscale_").rpartition("_")
    if kind == "tokenmean":
        return np.asarray(stages[stage].mean(axis=1))
    if kind == "segment1":
        return np.asarray(stages[stage][1])
    found = np.asarray(stages[name.removeprefix("smallscale_")])
    if name.startswith("smallscale_block") and found.ndim > len(shape):
        return found[1]
    return found.reshape(shape)


def compare(parity, part: str, golden, inputs: set[str], stages: dict[str, dict]) -> None:
    """Compare every array of a golden, at the tolerances of the goldens' README."""
    tolerances = {"features": 1e-5, "logits": 2e-5}
    for name in sorted(set(golden.files) - inputs):
        prefix = "smallscale_" if name.startswith("smallscale_") else ""
        found = as_stored(name, stages[prefix], golden[name].shape)
        tolerance = tolerances.get(name.removeprefix(prefix), 5e-5)
        parity(f"Synchformer {part}", f"golden tiny {name}", found, golden[name], tolerance)


@pytest.mark.parity
def test_video_tower(networks, reference, parity):
    golden = np.load(reference / "synchformer/golden/tiny_video.npz")
    segments = golden["frames_uint8"].reshape(-1, *golden["frames_uint8"].shape[2:])
    frames = normalise(jnp.asarray(segments))
    stages = {p: video_stages(network.video, frames) for p, network in networks.items()}
    compare(parity, "video", golden, {"frames_uint8"}, stages)


@pytest.mark.parity
def test_audio_tower(networks, reference, parity):
    golden = np.load(reference / "synchformer/golden/tiny_audio.npz")
    mel = jnp.asarray(golden["x"].reshape(-1, *golden["x"].shape[2:]))
    stages = {p: audio_stages(network.audio, mel) for p, network in networks.items()}
    compare(parity, "audio", golden, {"x"}, stages)


@pytest.mark.parity
def test_sync_transformer(networks, reference, parity):
    golden = np.load(reference / "synchformer/golden/tiny_head.npz")
    inputs = golden["video_features"], golden["audio_features"]
    stages = {prefix: sync_stages(network, *inputs) for prefix, network in networks.items()}
    compare(parity, "sync", golden, {"video_features", "audio_features"}, stages)


def test_segments_are_encoded_each_by_itself(networks, reference):
    """The whole network is the sync transformer behind the towers, segment by segment."""
    network = networks[""]
    frames = np.load(reference / "synchformer/golden/tiny_video.npz")["frames_uint8"]
    mel = jnp.asarray(np.load(reference / "synchformer/golden/tiny_audio.npz")["x"])
    frames = normalise(jnp.asarray(frames))
    video = jax.jit(lambda network, segments: network.video(segments))
    apart = jnp.stack([video(network, frames[:, i]) for i in range(3)], 1)

    @jax.jit
    def both(network, frames, mel, apart):
        return network(frames, mel), network.sync(apart, network.encode_audio(mel))

    whole, by_parts = both(network, frames, mel, apart)
    assert whole.shape == (2, 9)
    np.testing.assert_allclose(whole, by_parts, atol=1e-5)


def test_the_released_network_has_its_size():
    net = abstract(lambda rngs: Synchformer(SynchformerConfig.released(), rngs=rngs))
    unused = 590_592  # the patch embedding of images
    assert parameter_count(net) == 237_460_245 - unused
    tiny = abstract(lambda rngs: Synchformer(SynchformerConfig.tiny(), rngs=rngs))
    assert 0.9e6 < parameter_count(tiny) < 1.5e6


def test_classes_are_offsets(reference):
    grid = np.load(reference / "synchformer/golden/desync.npz")["grid_float32"]
    np.testing.assert_allclose(SyncConfig().seconds(), grid, atol=1e-7, strict=True)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (VideoTowerConfig(), {"frames": 15}, "do not tile 15 frames of 224 x 224"),
        (VideoTowerConfig(), {"image": (224, 230)}, "do not tile 16 frames of 224 x 230"),
        (AudioTowerConfig(), {"columns": 15}, "15 x 128 is smaller than a patch: 16"),
    ],
)
def test_sizes_that_do_not_go_together_are_errors(config, change, message):
    with pytest.raises(ValueError, match=message):
        replace(config, **change)


def test_inputs_of_other_sizes_are_errors(networks):
    network = networks[""]
    with pytest.raises(ValueError, match="12 frames of 20 x 28, got 12 of 28 x 20"):
        network.video(jnp.zeros((1, 12, 28, 20, 3)))
    with pytest.raises(ValueError, match="38 columns x 26 bins, got 26 x 38"):
        network.audio(jnp.zeros((1, 26, 38)))
    with pytest.raises(ValueError, match="3 segments of video and of sound, got 2 and 2"):
        network.sync(jnp.zeros((1, 2, 6, 44)), jnp.zeros((1, 2, 7, 36)))


def test_bfloat16_weights_compute_in_bfloat16(networks):
    frames = jnp.zeros((1, 3, 12, 20, 28, 3))
    mel = jnp.zeros((1, 3, 38, 26))
    forward = jax.jit(lambda network: network(frames, mel))
    logits = forward(in_half(networks[""]))
    assert logits.dtype == jnp.bfloat16
    assert logits.shape == (1, 9)

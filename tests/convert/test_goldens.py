"""Checkpoints in the released formats and at the released sizes give the goldens' outputs.

The weights are those of the goldens' recipes; they go into a file as the authors saved theirs,
through the command, and come out of a bundle.
"""

import dataclasses
import json
import runpy

import jax
import numpy as np
import pytest
import torch
from jax import numpy as jnp
from safetensors.numpy import load_file

from convert.__main__ import main
from convert.model import CONFIG, OURS
from convert.synchformer import table
from mfm_jax.bundle import Bundle
from mfm_jax.models.audiomae import AudioMAEConfig, pool_loa
from mfm_jax.models.cavp import CAVPConfig
from mfm_jax.models.cnn14 import Cnn14Config
from mfm_jax.models.synchformer import Synchformer, SynchformerConfig
from mfm_jax.models.synchformer_video import normalise
from mfm_jax.runtime.config import to_json
from mfm_jax.storage.weights import abstract, with_weights
from tests.models.test_synchformer import flat

SMALL_CAVP = dataclasses.replace(
    CAVPConfig.diff_foley(),
    width=8,
    embed=32,
    audio=dataclasses.replace(Cnn14Config.cavp(), widths=(4, 8, 8, 16, 16, 32)),
)
UNUSED = "vfeat_extractor.patch_embed.proj"
SMALL_AUDIOMAE = AudioMAEConfig(frames=256, mels=64, width=48, depth=12, heads=4)


def weights_of(reference, network: str, manifest: str, seed: int) -> dict[str, torch.Tensor]:
    """Return the weights that the recipe draws for the manifest."""
    folder = reference / network
    recipe = runpy.run_path(str(folder / "recipe.py"))
    manifest = json.loads((folder / manifest).read_text())
    drawn = recipe["weights"](manifest, seed)
    return {key: torch.from_numpy(np.asarray(array)) for key, array in drawn.items()}


def saved_small(reference, network: str, shapes: dict) -> dict[str, torch.Tensor]:
    """Return the small golden's weights; the file stores scalars as `[1]`."""
    state = load_file(reference / network / "golden" / "tiny.safetensors")
    shaped = {k: a.reshape(shapes[k][0]) if shapes else a for k, a in state.items()}
    return {key: torch.from_numpy(np.array(array)) for key, array in shaped.items()}


def converted(tmp_path, model: str, *options: str):
    """Convert `checkpoint` with the command, and return the network in its bundle."""
    source, bundle = str(tmp_path / "checkpoint"), str(tmp_path / "bundle")
    assert main([model, source, "-o", bundle, *options]) == 0
    return Bundle.open(tmp_path / "bundle").load(model, verify=True)


def config_file(tmp_path, config) -> list[str]:
    """Write the config.json for sizes other than the released ones."""
    (tmp_path / CONFIG).write_text(json.dumps({OURS: to_json(config)}))
    return ["--config", str(tmp_path / CONFIG)]


def save_cavp(tmp_path, state) -> None:
    """Save weights as the trainer of Diff-Foley does from several GPUs."""
    nested = {f"module.{key}": tensor for key, tensor in state.items()}
    torch.save({"epoch": 66, "name": "cavp", "state_dict": nested}, tmp_path / "checkpoint")


@jax.jit
def video_features(network, frames):
    return network(frames)


def check_cavp(parity, network, golden, size: str) -> None:
    frames = jnp.asarray(golden["frames_uint8"], jnp.float32) / 255.0
    frames = frames if frames.ndim == 5 else frames[None]
    found, expected = video_features(network, frames), golden["features"]
    parity(f"CAVP {size}, converted", "golden features", found, expected, 5e-6)


@pytest.mark.parity
def test_small_cavp(reference, tmp_path, parity):
    shapes = json.loads((reference / "cavp/golden/tiny_manifest.json").read_text())
    save_cavp(tmp_path, saved_small(reference, "cavp", shapes))
    network = converted(tmp_path, "cavp", *config_file(tmp_path, SMALL_CAVP))
    check_cavp(parity, network, np.load(reference / "cavp/golden/tiny_video.npz"), "small")


def test_one_name_for_two_tensors_is_refused(reference, tmp_path, capsys):
    """The file has a tensor both with and without the prefix of multi-GPU training."""
    shapes = json.loads((reference / "cavp/golden/tiny_manifest.json").read_text())
    state = saved_small(reference, "cavp", shapes)
    save_cavp(tmp_path, state | {"module.logit_scale": torch.zeros(())})
    command = ["cavp", str(tmp_path / "checkpoint"), "-o", str(tmp_path / "bundle")]
    command += config_file(tmp_path, SMALL_CAVP)
    assert main(command) == 2
    assert "duplicated: logit_scale" in capsys.readouterr().err
    assert main([*command, "--excuse", "logit_scale"]) == 0


@pytest.mark.slow
@pytest.mark.parity
def test_full_cavp(reference, tmp_path, parity):
    save_cavp(tmp_path, weights_of(reference, "cavp", "manifest.json", 20240))
    network = converted(tmp_path, "cavp")
    golden = np.load(reference / "cavp/golden/full_video_t4_224x224.npz")
    check_cavp(parity, network, golden, "full")


def save_audiomae(tmp_path, state) -> None:
    """Save weights as AudioMAE's trainer did, in the format before zip files."""
    checkpoint = {"model": state, "epoch": 32}
    torch.save(checkpoint, tmp_path / "checkpoint", _use_new_zipfile_serialization=False)


@jax.jit
def audio_features(network, fbank):
    return network(fbank)


@pytest.mark.parity
def test_small_audiomae(reference, tmp_path, parity):
    save_audiomae(tmp_path, saved_small(reference, "audiomae", {}))
    network = converted(tmp_path, "audiomae", *config_file(tmp_path, SMALL_AUDIOMAE))
    golden = np.load(reference / "audiomae/golden/tiny.npz")
    found = audio_features(network, golden["x"][:, 0])
    parity("AudioMAE small, converted", "golden tiny embed", found, golden["embed"], 3e-5)


@pytest.mark.slow
@pytest.mark.parity
def test_full_audiomae(reference, tmp_path, parity):
    save_audiomae(tmp_path, weights_of(reference, "audiomae", "manifest.json", 31415))
    network = converted(tmp_path, "audiomae")
    golden = np.load(reference / "audiomae/golden/full.npz")
    embed = audio_features(network, golden["fbank"])
    parity("AudioMAE full, converted", "golden rows", embed[0, ::16], golden["embed_rows"], 3e-5)
    pooled = pool_loa(embed, AudioMAEConfig.base().grid, (8, 8))
    parity("AudioMAE full, converted", "golden LOA", pooled, golden["loa_t8_f8"], 3e-5)


@jax.jit
def synchformer_stages(network: Synchformer, frames, mel) -> dict[str, jax.Array]:
    """Activations of one segment by their names in the goldens; `a_` are those of the sound."""
    tower = network.video
    first, patches = tower.embed(frames)
    found = {"patch_embed": flat(tower.patch_embed(tower.patchify(frames)))}
    for number, block in enumerate(tower.blocks):
        first, patches = block(first, patches)
        found[f"block{number}"] = jnp.concatenate([first, flat(patches)], axis=1)
    normed = tower.norm(patches)
    # Not by the whole tower: its blocks take seconds.
    found |= {"norm": flat(normed), "features": tower.pool(normed[0])[None]}
    x = found["a_embeddings"] = network.audio.embed(mel)
    for number, block in enumerate(network.audio.blocks):
        x = found[f"a_block{number}"] = block(x)
    return found | {"a_layernorm": network.audio.norm(x), "a_features": network.audio(mel)}


def check_rows(parity, golden, stages, prefix: str) -> None:
    """Compare the rows and means of a tower's activations, as far as the golden has them."""
    rows = golden["rows"]
    for name in golden.files:
        stage, _, kind = name.rpartition("_")
        if stage and kind == "rows":
            without_class = stage in ("patch_embed", "norm") and not prefix
            at = rows[1:] - 1 if without_class else rows
            found = stages[prefix + stage][0, at]
        elif kind == "tokenmean":
            found = stages[prefix + stage][0].mean(axis=0)
        elif name == "features":
            found = stages[prefix + name][None]
        else:
            continue
        tolerance = 1e-5 if name == "features" else 5e-5
        tower = "audio" if prefix else "video"
        parity(f"Synchformer full {tower}", f"golden {name}", found, golden[name], tolerance)


def check_windows(parity, network: Synchformer, golden) -> None:
    """Compare the logits of the first and of the last 14 segments."""
    video, audio = (
        jnp.asarray(golden[f"{name}_features_int8"], jnp.float32) / 32
        for name in ("video", "audio")
    )
    sync = jax.jit(lambda network, video, audio: network.sync(video, audio))
    for name, cut in (("first14", slice(14)), ("last14", slice(-14, None))):
        found = sync(network, video[:, cut], audio[:, cut])
        parity("Synchformer full sync", f"golden {name}", found, golden[f"{name}_logits"], 2e-5)


@pytest.mark.slow
@pytest.mark.parity
def test_full_synchformer(reference, parity):
    """All of the network in, against the goldens, and out again; no file of 950 MB is written.

    `tests/convert/test_synchformer.py` has the command, with a small network.
    """
    recipe = runpy.run_path(str(reference / "synchformer" / "recipe.py"))
    manifest = json.loads((reference / "synchformer" / "manifest.json").read_text())
    state = recipe["weights"](manifest, 20261)
    config = SynchformerConfig.released()
    tensors = table(config)
    weights = dict(tensors.to_ours(state))
    written = dict(tensors.to_theirs(weights))
    # A convolution for single pictures, which the network has and does not use, stays in `kept`.
    assert state.keys() - written.keys() == {f"{UNUSED}.weight", f"{UNUSED}.bias"}
    assert all(np.array_equal(written[key], state[key]) for key in written)
    arrays = {name: jax.device_put(array) for name, array in weights.items()}
    network = with_weights(abstract(lambda rngs: Synchformer(config, rngs=rngs)), arrays)
    folder = reference / "synchformer/golden"
    video, audio = np.load(folder / "full_video.npz"), np.load(folder / "full_audio.npz")
    pixels = video["small_uint8"].repeat(7, axis=1).repeat(8, axis=2)
    frames = normalise(jnp.asarray(pixels))[None]
    stages = synchformer_stages(network, frames, jnp.asarray(audio["model_input"].T)[None])
    check_rows(parity, video, stages, "")
    check_rows(parity, audio, stages, "a_")
    check_windows(parity, network, np.load(folder / "full_head.npz"))

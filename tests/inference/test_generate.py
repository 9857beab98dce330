"""`mfm_jax.generate` does what `mfm generate` does, and raises what that prints."""

from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

import mfm_jax
from mfm_jax.cli import main
from mfm_jax.errors import UsageError
from mfm_jax.inference.generate import GenerationError
from mfm_jax.media.frames import windows
from mfm_jax.media.write import write_frames
from tests.bundles import untrained_bundle

pytestmark = pytest.mark.usefixtures("open_once")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two clips and a bundle."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        frames = rng.integers(0, 256, (25, 64, 96, 3), np.uint8)
        write_frames(iter(frames), folder / f"{name}.mp4", fps=25)
    untrained_bundle(folder / "bundle")
    return folder


def test_the_example_of_the_readme(folder, monkeypatch):
    monkeypatch.chdir(folder)
    mfm_jax.generate("a.mp4", "sound.mp4")
    model = mfm_jax.VideoToAudio.open(precision="float32")
    waves = model(list(windows(Path("a.mp4"), model.spec)))
    assert (folder / "sound.mp4").is_file()
    assert waves.shape == (1, 40_960)
    assert np.abs(waves).max() > 0.01


def test_it_writes_what_the_command_writes(folder, tmp_path):
    fast = {"steps": 2, "batch": 2, "seed": 3, "sampler": "ddim", "eta": 0.5, "guidance": 2}
    fast |= {"guidance_interval": [0.3, 3], "guidance_rescale": 0.5}
    videos = [folder / "a.mp4", str(folder / "b.mp4")]
    made = mfm_jax.generate(videos, tmp_path / "x", bundle=folder / "bundle", format="wav", **fast)
    assert made == [tmp_path / "x" / "a.wav", tmp_path / "x" / "b.wav"]
    options = []
    for name, value in fast.items():
        words = value if isinstance(value, list) else [value]
        options += [f"--{name.replace('_', '-')}", *map(str, words)]
    command = ["generate", str(folder), "-o", str(tmp_path / "y"), "--format", "wav", *options]
    assert main([*command, "--bundle", str(folder / "bundle")]) == 0
    for name in ("a.wav", "b.wav"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes()
    a, b = (soundfile.read(file)[0] for file in made)
    assert np.abs(a - b).max() > 1e-3


def test_a_video_that_fails_raises_once_the_others_are_done(folder, tmp_path):
    (tmp_path / "in").mkdir()
    bad = tmp_path / "in" / "bad.mp4"
    bad.touch()
    with pytest.raises(GenerationError, match=r"bad\.mp4 is empty") as failed:
        mfm_jax.generate(
            [bad, folder / "a.mp4"], tmp_path, bundle=folder / "bundle", steps=2, batch=2
        )
    assert len(failed.value.failures) == 1
    assert (tmp_path / "a.mp4").is_file()


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_precision_is_a_word(folder, precision):
    model = mfm_jax.VideoToAudio.open(str(folder / "bundle"), precision)
    assert model.networks.encoders["cavp"] is not None
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(model.networks.unet)}
    assert precision in kinds


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 1000}, "steps must be at most 999"),
        (
            {"precision": "float8"},
            "use float32, bfloat16, float16",
        ),
        ({"sampler": "euler"}, "sampler 'euler' is not known: use ddim, dpm"),
        ({"format": "ogg"}, "format 'ogg' is not known: use mp4, mov"),
        ({"prompt": "a dog"}, "has no text encoder"),
        ({"videos": []}, "no videos are given"),
        ({"guidance_interval": (3, 0.3)}, "guidance_interval is two noise levels.*got 3 0.3"),
        ({"guidance_interval": [1]}, "guidance_interval is two noise levels.*got 1$"),
        ({"guidance_rescale": 1.5}, "guidance_rescale must be from 0 to 1, got 1.5"),
    ],
)
def test_wrong_arguments_say_what_to_do(folder, tmp_path, wrong, message):
    arguments = {"videos": folder / "a.mp4", "bundle": folder / "bundle", **wrong}
    with pytest.raises(UsageError, match=message):
        mfm_jax.generate(arguments.pop("videos"), tmp_path / "x.wav", **arguments)
    assert not (tmp_path / "x.wav").exists()

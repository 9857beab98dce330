"""Guidance moves away from a sound that is given, whenever it sounds in its file."""

import numpy as np
import pytest
import soundfile

import mfm_jax
from mfm_jax.bundle import Bundle
from mfm_jax.errors import MediaError, UsageError
from mfm_jax.foley.world import World, generate_clip
from mfm_jax.inference.unwanted import unwanted_loa
from mfm_jax.media.write import write_frames
from mfm_jax.storage.paths import TINY_BUNDLE
from tests.bundles import untrained_bundle

pytestmark = pytest.mark.usefixtures("open_once")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A video, a bundle, and sounds: of a clip, later in the file, of another clip, and silent."""
    folder = tmp_path_factory.mktemp("sounds")
    clip, other = (generate_clip(World(), seed) for seed in (5, 6))
    write_frames(iter(clip.frames), folder / "a.mp4", fps=25)
    untrained_bundle(folder / "bundle")
    for name, wave in {
        "sound": clip.audio,
        "later": np.roll(clip.audio, 7680),
        "other": other.audio,
        "silent": np.zeros(32_000, np.float32),
    }.items():
        soundfile.write(folder / f"{name}.wav", wave, 16_000)
    soundfile.write(folder / "high.flac", np.repeat(clip.audio, 2), 32_000)
    return folder


def test_it_is_the_mean_over_time_of_what_sounds(folder):
    bundle = Bundle.open(TINY_BUNDLE)
    found = {
        name: unwanted_loa(bundle, folder / name, dtype=np.float32)
        for name in ("sound.wav", "later.wav", "other.wav", "high.flac")
    }
    grid = bundle.config("mapper").loa
    sound = found["sound.wav"]
    assert sound.shape == (grid.tokens, bundle.config("mapper").loa_width)
    in_time = sound.reshape(*grid.shape, -1)
    np.testing.assert_array_equal(in_time, np.broadcast_to(in_time[:1], in_time.shape))
    apart = {name: np.square(loa - sound).mean() for name, loa in found.items()}
    assert apart["later.wav"] < apart["other.wav"] / 2
    assert apart["high.flac"] < apart["other.wav"] / 2


def test_the_sound_is_another_and_the_record_names_the_file(folder, tmp_path):
    fast = {"bundle": folder / "bundle", "steps": 2, "batch": 2, "format": "wav"}
    for name, more in {
        "plain": {},
        "away": {"negative_sound": folder / "sound.wav"},
        "joint": {"negative_sound": folder / "sound.wav", "joint": True},
    }.items():
        mfm_jax.generate(folder / "a.mp4", tmp_path / name, **fast, **more)
    plain, away, joint = (
        soundfile.read(tmp_path / name / "a.wav")[0] for name in ("plain", "away", "joint")
    )
    assert np.abs(plain - away).max() > 1e-3
    np.testing.assert_allclose(away, joint, atol=1e-4)  # it has one window
    assert '"negative_sound": null' in (tmp_path / "plain/generated.jsonl").read_text()
    assert '"negative_sound": "' in (tmp_path / "away/generated.jsonl").read_text()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"negative_sound": "silent.wav"}, UsageError, r"silent\.wav is silent: leave it out"),
        ({"negative_sound": "absent.wav"}, MediaError, r"absent\.wav does not exist"),
        ({"negative_sound": "a.mp4"}, MediaError, r"a\.mp4 has no sound"),
        ({"negative_sound": "sound.wav", "guidance": 1}, UsageError, "guidance 1 keeps away from"),
    ],
)
def test_what_cannot_be_kept_away_from_is_one_line(folder, tmp_path, wrong, error, message):
    wrong["negative_sound"] = folder / wrong["negative_sound"]
    with pytest.raises(error, match=message):
        mfm_jax.generate(
            folder / "a.mp4", tmp_path / "x.wav", bundle=folder / "bundle", batch=2, **wrong
        )
    assert not (tmp_path / "x.wav").exists()

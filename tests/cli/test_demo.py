"""`mfm demo`, and that the bundle it ships has learned something."""

import json
import re

import jax
import numpy as np
import pytest
import soundfile

from mfm_jax.bundle import Bundle
from mfm_jax.cli import main
from mfm_jax.data.clips import Clip
from mfm_jax.data.features import FeatureSource
from mfm_jax.foley.world import SPLITS, World, write_clip
from mfm_jax.inference.extract import extract
from mfm_jax.media.probe import probe
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.train.recipes.mapper import MapperRecipe


def test_demo_writes_its_files_and_a_report(tmp_path, capsys):
    assert main(["demo", "-o", str(tmp_path / "demo")]) == 0
    made = tmp_path / "demo"
    names = ["real.mp4", "report", "silent.mp4", "sound.mp4", "sound.wav", "spectrogram.png"]
    assert sorted(p.name for p in made.iterdir()) == names
    silent, sound = probe(made / "silent.mp4"), probe(made / "sound.mp4")
    assert (silent.has_audio, sound.has_audio) == (False, True)
    wave, rate = soundfile.read(made / "sound.wav")
    assert (rate, len(wave)) == (16_000, round(silent.seconds * 16_000))
    assert np.abs(wave).max() > 0.01
    assert (made / "spectrogram.png").read_bytes().startswith(b"\x89PNG")
    (clip,) = json.loads((made / "report" / "report.json").read_text())["clips"]
    assert clip["contacts"]
    assert (made / "report" / clip["media"]["video"]).is_file()
    printed = capsys.readouterr().out
    for words in (
        "contacts at",
        "heard: ",
        "within 50 ms",
        "with the right material",
        "report/index.html",
    ):
        assert words in printed
    farthest = re.search(r"no contact is more than (\d+) ms from a sound", printed)
    assert farthest is not None
    assert int(farthest[1]) <= 30


@pytest.mark.slow
def test_the_shipped_mapper_beats_the_mean_and_another_clips_loa(tmp_path):
    """On held-out clips, through mp4 files, as `train.py` measures it."""
    bundle = Bundle.open(TINY_BUNDLE)
    seeds = SPLITS["test"][:24]
    clips = [Clip(str(s), write_clip(World(), s, tmp_path)) for s in seeds]
    assert extract(bundle, clips, tmp_path / "features", batch=8) == []
    recipe = MapperRecipe(network=bundle.config("mapper"))
    source = FeatureSource(tmp_path / "features")
    mapper = bundle.load("mapper", np.float32)
    examples = [recipe.read(source[i]) for i in range(len(source))]
    batch = jax.device_put(jax.tree.map(lambda *x: np.stack(x), *examples))
    made = jax.jit(type(mapper).generate)(mapper, recipe.streams(batch))
    made, true = (np.asarray(mapper.standardise(x)) for x in (made, batch["loa"]))
    error, shuffled = (((x - true) ** 2).mean() for x in (made, np.roll(made, 1, axis=0)))
    mean = ((true - true.mean(axis=0)) ** 2).mean()
    assert error < 0.85 * mean
    assert error < 0.6 * shuffled

"""DeSync reaches the clips that it is defined for, with a small Synchformer of random weights."""

from functools import partial
from pathlib import Path

import numpy as np

from mfm_jax.evaluation.clips import Pairing, Sound
from mfm_jax.evaluation.desync import add_desync, video_of
from mfm_jax.evaluation.measure import Measured
from mfm_jax.inference.generate import layout_and_batch
from mfm_jax.media.audio import write_sound
from mfm_jax.models.synchformer import Synchformer
from mfm_jax.storage.weights import abstract
from tests.bundles import filled
from tests.media.field import write_clip
from tests.metrics.test_desync import SMALL


def test_clips_that_are_long_enough_are_scored_and_others_left_out(tmp_path):
    noise = np.random.default_rng(0).normal(size=26_000).astype(np.float32) / 10
    real, made = {}, {}
    for name, frames, samples in (("a", 37, 26_000), ("b", 37, 9_000), ("c", 20, 26_000)):
        write_clip(tmp_path / f"{name}.mp4", range(frames))
        real[name], made[name] = (Sound(tmp_path / f"{name}-{i}.wav") for i in (0, 1))
        write_sound(real[name].path, noise)
        write_sound(made[name].path, noise[:samples])
    shown = {name: Sound(tmp_path / f"{name}.mp4") for name in real}
    clips = [
        Measured(name, {}, {}, {"reference": {}, "made": {}, "shown": {}}, {}) for name in real
    ]
    pairing = Pairing(tuple(real), real, {"made": made, "shown": shown}, {})
    layout, batch = layout_and_batch(2)
    network = filled(abstract(partial(Synchformer, SMALL)), 0)
    add_desync(network, pairing, clips, layout=layout, batch=batch, seconds=1.44)
    scores = {clip.name: {s: its["desync"] for s, its in clip.scores.items()} for clip in clips}
    assert 0 <= scores["a"]["reference"] <= 2
    assert scores["a"]["made"] == scores["a"]["reference"]  # the same sound
    assert np.isnan(scores["b"]["made"])
    assert np.isfinite(scores["b"]["reference"])
    assert np.isnan(list(scores["c"].values())).all()


def test_the_video_is_that_of_the_reference_if_it_has_one():
    wav, mp4, other = (Sound(Path(name)) for name in ("a.wav", "a.mp4", "b.mp4"))
    assert video_of({"reference": {"x": mp4}, "made": {"x": other}}, "x") == mp4
    assert video_of({"reference": {"x": wav}, "made": {"x": other}}, "x") == other
    assert video_of({"reference": {"x": wav}, "made": {"x": wav}}, "x") is None

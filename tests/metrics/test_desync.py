"""DeSync against the scores of av-benchmark, and from files to the score with a small network."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.errors import MediaError, SettingError
from mfm_jax.inference.desync import desync_inputs, desync_logits
from mfm_jax.metrics.desync import DesyncError, desync, desync_per_window
from mfm_jax.models.synchformer import SyncConfig, Synchformer, SynchformerConfig
from mfm_jax.models.synchformer_audio import AudioTowerConfig
from mfm_jax.models.synchformer_video import VideoTowerConfig, normalise
from mfm_jax.storage.weights import abstract
from tests.bundles import filled
from tests.media.field import write_clip

SIZES = {"width": 8, "depth": 1, "heads": 2, "mlp_width": 8}
SMALL = SynchformerConfig(
    video=VideoTowerConfig(image=(16, 16), patch=8, **SIZES),
    audio=AudioTowerConfig(**SIZES),
    sync=SyncConfig(segments=2, **SIZES),
)


@pytest.mark.parity
def test_scores(reference, parity):
    golden = np.load(reference / "synchformer/golden/desync.npz")
    seconds = SyncConfig().seconds()
    parity("DeSync grid", "golden", seconds, golden["grid_float32"], 1e-7)
    windows = desync_per_window(golden["logits"], seconds)
    parity("DeSync windows", "golden", windows, golden["score_per_window"], 1e-6)
    parity("DeSync clips", "golden", windows.mean(axis=1), golden["score_per_clip"], 1e-6)
    parity("DeSync", "golden", desync(golden["logits"], seconds), golden["desync"], 1e-6)
    chosen = golden["logits"].argmax(axis=-1)
    np.testing.assert_array_equal(chosen, golden["top_class"])


def test_what_has_no_score_is_an_error(reference):
    seconds = SyncConfig().seconds()
    logits = np.zeros((1, 2, 21), np.float32)
    with pytest.raises(ValueError, match="no clips"):
        desync(logits[:0], seconds)
    logits[0, 1, 3] = np.nan
    with pytest.raises(DesyncError, match=r"not finite.*or the sync transformer is not trained"):
        desync(logits, seconds)


def test_a_clip_is_compared_in_its_first_and_last_segments(tmp_path):
    """36 frames are three segments; the network reads two at once."""
    network = filled(abstract(partial(Synchformer, SMALL)), 0)
    clip = write_clip(tmp_path / "a.mp4", range(37))
    wave = np.random.default_rng(0).normal(size=26_000).astype(np.float32) / 10
    pictures, mel = desync_inputs(SMALL, clip, wave, 1.44)
    assert (pictures.shape, mel.shape) == ((36, 16, 16, 3), (3, 66, 128))
    logits = desync_logits(network, jnp.asarray(pictures[None]), jnp.asarray(mel[None]))

    @jax.jit
    def first_and_last(network, frames, mel):
        cut = jnp.stack([frames[8 * i : 8 * i + 16] for i in range(3)])
        frames = normalise(cut)
        both = ((frames[:2], mel[:2]), (frames[1:], mel[1:]))
        return jnp.stack([network(x[None], y[None])[0] for x, y in both])

    expected = first_and_last(network, jnp.asarray(pictures), jnp.asarray(mel))
    assert logits.shape == (1, 2, 21)
    np.testing.assert_allclose(logits[0], expected, atol=1e-5)
    assert 0 <= desync(logits, SMALL.sync.seconds()) <= 2
    with pytest.raises(ValueError, match="3 segments of frames, 2 of sound"):
        desync_logits(network, jnp.asarray(pictures[None]), jnp.asarray(mel[None, :2]))


def test_clips_that_are_too_short_are_told(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", range(30))
    with pytest.raises(MediaError, match=r"the sound for .* is 1.000 s long.* 1.2 s"):
        desync_inputs(SMALL, clip, np.zeros(16_000, np.float32), 1.2)
    with pytest.raises(MediaError, match="has 30 frames"):
        desync_inputs(SMALL, clip, np.zeros(26_000, np.float32), 1.6)
    with pytest.raises(SettingError, match=r"at least 0.96 s of a clip, not 0.8"):
        desync_inputs(SMALL, clip, np.zeros(26_000, np.float32), 0.8)
    released = replace(SMALL, sync=SyncConfig())
    with pytest.raises(SettingError, match=r"at least 4.8 s"):
        desync_inputs(released, clip, np.zeros(80_000, np.float32), 4.7)

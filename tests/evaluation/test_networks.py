"""What networks hear of files: batches, lengths and windows change nothing but the speed."""

from functools import partial

import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.evaluation import networks
from mfm_jax.evaluation.clips import Sound
from mfm_jax.evaluation.measure import Wave
from mfm_jax.evaluation.networks import Ear, hear
from mfm_jax.inference.generate import layout_and_batch
from mfm_jax.media.audio import write_sound
from mfm_jax.metrics.spectra import cnn14_log_mel, prepare_for_cnn14
from mfm_jax.models.cnn14 import Cnn14Config, Cnn14Tagger
from mfm_jax.storage.weights import abstract
from tests.bundles import filled

RATE = 16_000
SMALL = Cnn14Config(
    mels=64, widths=(2, 2, 3, 3, 4, 5), pools=((2, 2),) * 5 + ((1, 1),), dropout=0.0
)


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Two sides of three clips; the last one is longer."""
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    found: dict = {}
    for side in ("reference", "made"):
        for name, seconds in (("a", 2.1), ("b", 2.1), ("c", 3.0)):
            path = folder / f"{side}-{name}.wav"
            write_sound(path, 0.1 * rng.normal(size=round(seconds * RATE)))
            found.setdefault(side, {})[name] = Sound(path)
    return found


def ear(exact):
    network = filled(abstract(partial(Cnn14Tagger, SMALL, 7)), 0)

    def pieces(key, wave, seconds):
        return networks._cnn14_pieces(key, wave, seconds, exact=exact)

    return Ear("cnn14", network, pieces, networks.encode_cnn14)


@pytest.mark.parametrize("exact", [True, False])
def test_cnn14_hears_every_clip_as_it_would_alone(sides, exact):
    layout, batch = layout_and_batch(2)
    cnn14, lengths = ear(exact), {"a": 2.1, "b": 2.1, "c": 3.0}
    heard = hear(cnn14, sides, ("a", "b", "c"), lengths, layout=layout, batch=batch)
    for side, its in heard.items():
        for row, sound in enumerate(sides[side].values()):
            mel = cnn14_log_mel(prepare_for_cnn14(Wave.read(sound).own)).astype(np.float32)
            used = mel if exact else mel[: len(mel) // 32 * 32]
            embedding, logits = networks.encode_cnn14(cnn14.network, jnp.asarray(used[None]))
            np.testing.assert_allclose(its.embeddings["cnn14"][row], embedding[0], atol=1e-5)
            np.testing.assert_allclose(its.logits[row], logits[0], atol=1e-5)


def test_audiomae_hears_windows_of_both_sides_at_the_same_places():
    """3.5 windows of 2.56 s are four, the last one half full; a rest of less is left out."""
    wave = Wave(np.random.default_rng(0).normal(size=10 * RATE).astype(np.float32), RATE)
    counts = {
        seconds: [
            p.filled for p in networks._audiomae_pieces(("x", "a"), wave, seconds, frames=256)
        ]
        for seconds in (1.0, 2.56, 3.5, 3.9, 8.96)
    }
    assert [len(its) for its in counts.values()] == [1, 1, 1, 2, 4]
    assert counts[8.96][-1] == pytest.approx(0.5)
    assert counts[1.0] == [pytest.approx(1 / 2.56)]


def test_windows_are_averaged_by_what_is_no_padding_in_them():
    loud, quiet = np.ones(3), np.zeros(3)
    loa = np.zeros((8, 3))
    heard = networks._collected(
        Ear("audiomae", None, lambda *_: iter(()), lambda *_: None),
        [[(1.0, (loud, loa)), (0.5, (quiet, loa))]],
    )
    np.testing.assert_allclose(heard.embeddings["audiomae"], [[2 / 3] * 3])
    assert [len(its) for its in heard.loa] == [16]

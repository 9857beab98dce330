"""Seams are where windows overlap, and a click there is seen in the statistics."""

from pathlib import Path

import numpy as np

from mfm_jax.data.decoded import ClipSpec
from mfm_jax.foley.scores import Contacts
from miniature.seams import seam_frames, spreads, tables
from miniature.sounds import KnownClip
from miniature.unwanted import others, table

SPEC = ClipSpec.tiny().windows


def test_seams_are_in_the_middle_of_overlaps():
    assert seam_frames(SPEC, 2.56) == []
    assert seam_frames(SPEC, 7.0) == [240, 464]


def test_a_jump_at_every_seam_is_above_nearly_all_places_elsewhere():
    rng = np.random.default_rng(0)
    even = (0.1 * rng.standard_normal(16_000 * 20)).astype(np.float32)
    level = np.ones(len(even), np.float32)
    for number, frame in enumerate(seam_frames(SPEC, 20.0)):
        level[frame * 160 :] = 1.0 if number % 2 else 0.05
    smooth, jumps = spreads([even], SPEC), spreads([even * level], SPEC)
    for name in ("change", "level"):
        assert jumps[name].summary()["median_rank"] > 0.9
        assert 0.1 < smooth[name].summary()["median_rank"] < 0.9
        assert jumps[name].summary()["above_95"] > 0.5
    assert jumps["flux"].summary()["seams"] > smooth["flux"].summary()["seams"]
    assert smooth["flux"].summary()["count"] == len(seam_frames(SPEC, 20.0))


def test_the_tables_have_a_row_for_each_statistic_and_length():
    its = {name: spread.summary() for name, spread in _spreads().items()}
    scores = dict.fromkeys(
        ("onset_f1_50", "onset_f1_100", "material", "event_f1", "log_mel", "onsets_per_second"), 0.5
    )
    rows = [{"way": "joint", "seconds": 30.0, "scores": scores, "statistics": its}]
    peaks = [{"seconds": 10.0, "peak_mib": {"cross-faded": 600.4, "joint": 601.0}}]
    by_score, by_seam, memory = tables(rows, peaks)
    assert by_score["rows"][0][:3] == ["joint", "30", "0.500"]
    assert [row[2] for row in by_seam["rows"]] == ["flux", "change", "level"]
    assert memory["rows"] == [["10 s", "600", "601"]]
    away = [{"negative": "mean", "guidance": 2.0, "wanted": scores, "unwanted": scores}]
    assert table(away)["rows"] == [["mean", "2", *["0.500"] * 6]]


def _spreads():
    noise = np.random.default_rng(1).standard_normal(16_000 * 9).astype(np.float32)
    return spreads([noise * 0.1], SPEC)


def test_the_other_clip_has_another_material():
    clips = [
        KnownClip(Path(), Contacts(np.zeros(1), (name,)), np.zeros(1, np.float32), "")
        for name in ("wood", "glass", "glass", "wood")
    ]
    assert others(clips) == [1, 3, 3, 1]

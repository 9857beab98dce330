"""The order of known sounds, and what is said where a score does not see it."""

from types import SimpleNamespace

import pytest

from mfm_jax.evaluation.catalogue import Metric
from mfm_jax.evaluation.figures import Figure
from miniature.evaluation import LABELS, blind_spots, table, verdict

CLIPS = 20


def report(values, *, better="higher", per_clip=True, spread=0.0, half=0.5):
    """Return a report with one score, of which every clip differs a little from its mean."""
    metric = Metric("score", "Score", "Timing", better, "", "", per_clip=per_clip)
    sides = dict(zip(LABELS, values, strict=True))
    clips = [
        SimpleNamespace(
            scores={
                side: {"score": value + spread * (-1) ** (number + place)}
                for place, (side, value) in enumerate(sides.items())
            }
        )
        for number in range(CLIPS)
    ]
    figures = {
        side: {"score": Figure(value, value - half, value + half, CLIPS)}
        for side, value in sides.items()
    }
    found = SimpleNamespace(
        systems=list(sides), figures=figures, clips=clips, metrics=[metric],
        protocol={"clips": CLIPS},
    )  # fmt: skip
    return found, metric


@pytest.mark.parametrize(
    ("values", "settings", "told"),
    [
        ((1, 0.9, 0.8, 0.7, 0.1), {}, "ordered"),
        ((1, 1, 1, 1, 1), {}, "ordered"),
        ((0, 1, 2, 3, 4), {"better": "lower"}, "ordered"),
        ((1, 0.8, 0.9, 0.7, 0.1), {}, r"true LOA beats VAE by 0.100 (significantly: p = 0.0001)"),
        (
            (1, 0.8, 0.9, 0.7, 0.1), {"spread": 1.0},
            "true LOA beats VAE by 0.100 (by chance, as it seems: p = ",
        ),
        (
            (1, 0.8, 0.9, 0.7, 0.1), {"per_clip": False},
            "true LOA beats VAE (their intervals overlap)",
        ),
        (
            (9, 0.8, 3, 0.7, 0.1), {"per_clip": False},
            "true LOA beats VAE (their intervals are apart)",
        ),
        ((1, 0.8, None, 0.7, 0.1), {}, "VAE, true LOA: undefined; true LOA, generated: undefined"),
    ],
)  # fmt: skip
def test_neighbours_that_are_not_in_order_are_named(values, settings, told):
    found, metric = report([0.0 if v is None else float(v) for v in values], **settings)
    for side, value in zip(LABELS, values, strict=True):
        if value is None:
            found.figures[side]["score"] = Figure(None)
    assert verdict(found, metric).startswith(told)


def test_a_score_that_cannot_tell_two_sounds_apart_says_so():
    found, metric = report([1.0, 0.5, 0.4, 0.3, 0.3])
    assert blind_spots(found, metric) == "generated = shuffled"
    (row,) = table(found)["rows"]
    assert row == [
        "Score", "higher", "1.000", "0.500", "0.400", "0.300", "0.300", "ordered",
        "generated = shuffled",
    ]  # fmt: skip

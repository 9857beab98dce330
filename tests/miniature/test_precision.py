"""Features in two precisions are compared clip by clip, and the mappers against one truth."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from miniature.precision import PRECISIONS, Difference, differences, report
from miniature.report import print_tables

CLIPS, SEEDS = 64, 2


def test_the_difference_is_relative_to_the_reference():
    reference = [np.full((2, 3), 4.0), np.full((2, 3), 3.0)]
    others = [np.full((2, 3), 4.4), np.full((2, 3), 3.0)]
    found = differences(reference, others)
    assert found.rms == pytest.approx(0.4 / 5.0)
    assert found.largest == pytest.approx(0.1)
    assert differences(reference, reference) == Difference(0.0, 0.0)


def line(run, hits):
    """Return the line of a run with so many of four events right in each clip."""
    four = np.full(CLIPS, 4.0)
    counts = {
        "loa_error": 0.1 * np.ones(CLIPS), "found_loa": np.ones(CLIPS), "hits_50": hits,
        "hits_100": hits, "event_hits": hits, "found": four, "true": four,
        "materials": np.ones(CLIPS), "materials_hit": np.ones(CLIPS), "log_mel": 1 - hits / 4,
    }  # fmt: skip
    return {
        "key": f"{run.part} {run.name} {run.seed}", "seed": run.seed, "seconds": 1.0,
        "counts": {name: values.tolist() for name, values in counts.items()},
    }  # fmt: skip


@pytest.mark.parametrize(("lost", "zero"), [(0.0, "within"), (1.0, "outside")])
def test_the_report_says_whether_zero_is_within_the_interval(lost, zero, capsys):
    runs: Any = [
        SimpleNamespace(part="mapper", name=name, share=1.0, seed=seed)
        for name in PRECISIONS
        for seed in range(SEEDS)
    ] + [SimpleNamespace(part="ceiling", name=name, share=1.0, seed=0) for name in PRECISIONS]
    hits = np.random.default_rng(0).integers(2, 4, CLIPS).astype(float)
    lines = [
        line(run, hits - lost * (run.name == PRECISIONS[1] and run.part == "mapper"))
        for run in runs
    ]
    found = report({"cavp": Difference(0.01, 0.02)}, runs, lines)
    gap = found["differences"]["event_f1"]
    assert gap["difference"] == pytest.approx(-lost / 4, abs=1e-3)
    assert gap["verdict"] == zero
    assert found["differences"]["recall_1"]["verdict"] == "within"
    assert found["scores"]["true LOA, bfloat16"]["event_f1"]["mean"] > 0.5
    print_tables(found["tables"])
    assert f"event F1          {0 - lost / 4:+.4f}" in capsys.readouterr().out
    assert {len(row) for table in found["tables"] for row in table["rows"]} == {3, 8}

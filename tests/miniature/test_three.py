"""The claims with three encoders: which systems are compared, and what is said of them."""

import json

import pytest

from miniature.three import CLAIMS, OURS, PARTS, SHARE, report, shown_name, systems


def line(seed, error):
    """A run whose LOA is as far off for each of four clips."""
    return {
        "seed": seed, "parameters": 7, "learning_rate": 1e-3, "steps": 10, "clips": 5,
        "counts": {"loa_error": [error] * 4, "found_loa": [1, 0, 1, 0]},
    }  # fmt: skip


def test_the_claims_are_about_systems_that_run():
    compared = systems(lambda names: tuple((name, 4, 8) for name in names))
    names = {system.name for system in compared}
    names |= {shown_name(part, compared[0].name, SHARE) for part in PARTS}
    assert {name for _, *pair in CLAIMS for name in pair} == names
    assert {system.network.loa.tokens for system in compared} == {2}
    assert sorted(len(s.network.encoders) for s in compared) == [1] * 5 + [2] + [3] * 3


def test_the_report_compares_what_the_claims_name():
    errors = {name: 0.5 for _, *pair in CLAIMS for name in pair} | {OURS: 0.2}
    lines = {name: [line(seed, error) for seed in range(2)] for name, error in errors.items()}
    found = report(lines)
    gaps = {name: gap["loa_error"] for name, gap in found["claims"].items()}
    assert gaps[f"(a) {OURS} minus cavp, gpt2"]["difference"] == pytest.approx(-0.3)
    assert gaps[f"(b) {OURS} minus three encoders, linear_flat"]["verdict"] == "holds"
    smaller = f"(c) {OURS}, 16% of the steps minus cavp, linear_flat"
    assert gaps[smaller]["verdict"] == "undecided"
    json.dumps(found)
    assert all(len(r) == len(t["columns"]) for t in found["tables"] for r in t["rows"])

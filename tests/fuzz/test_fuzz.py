"""A short form of `python -m tests.fuzz`: damaged files are read, or refused in one line."""

import pytest

from tests.fuzz.runner import run


@pytest.mark.parametrize(("kind", "cases"), [("media", 40), ("bundles", 12), ("checkpoints", 25)])
def test_damaged_files_are_read_or_refused_in_a_line(kind, cases):
    verdicts = run(kind, 7, range(cases))
    assert len(verdicts) == cases
    assert [f"{n}: {v}" for n, v in verdicts.items() if v.startswith("FAILED")] == []
    assert len(set(verdicts.values())) > 5

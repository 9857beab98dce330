"""Streams on the hard grade: hidden contacts are counted apart, and what a stream adds."""

import json

import numpy as np
import pytest

from mfm_jax.foley.clips import GRADES
from mfm_jax.foley.world import read_events, stage, write_world
from miniature.scores import open_clips
from miniature.streams import CEILING, PAPER, SETS, label, recalled, report
from miniature.study import PAPER_ENCODERS, STAGES, Budget, Study


def test_seen_and_hidden_contacts_are_counted_apart(tmp_path):
    world = GRADES["hard"]
    seed = next(s for s in range(50) if {e.hidden for e in stage(world, s).events} == {True, False})
    write_world(world, [seed], tmp_path, processes=1)
    (clip,) = open_clips(tmp_path)
    hidden = [event.hidden for event in read_events(clip.path)]
    found = recalled([clip, clip], [clip.wave, np.zeros_like(clip.wave)])
    assert found["hidden"] == [sum(hidden)] * 2
    assert found["seen"] == [len(hidden) - sum(hidden)] * 2
    assert found["hidden_hit"][1] == found["seen_hit"][1] == 0
    assert found["hidden_hit"][0] + found["seen_hit"][0] >= 0.8 * len(hidden)


def line(name, seed, hits, shuffled=None):
    """One run whose sounds hit `hits` of the ten contacts of each of four clips."""

    def counts(hits):
        ten = [10] * 4
        return {
            "found": ten, "true": ten, "hits_50": [hits] * 4, "hits_100": [hits] * 4,
            "event_hits": [hits] * 4, "materials": [1] * 4, "materials_hit": [1] * 4,
            "log_mel": [0.5] * 4,
            "seen": [8] * 4, "seen_hit": [hits] * 4, "hidden": [2] * 4, "hidden_hit": [1] * 4,
        }  # fmt: skip

    made = {"name": name, "seed": seed, "counts": counts(hits)}
    return made if shuffled is None else made | {"shuffled": counts(shuffled)}


def test_the_report_says_what_a_stream_adds():
    seeds = range(2)
    lines = [line(PAPER, seed, 3, shuffled=1) for seed in seeds]
    lines += [line(label(SETS[2]), seed, 8) for seed in seeds]
    lines += [line(label(SETS[5]), seed, 7) for seed in seeds]
    lines.append(line(CEILING, 0, 9))
    found = report(lines, Budget())
    row = found["rows"][label(SETS[2])]
    assert row["scores"]["event_f1"]["normalised"] == pytest.approx((0.8 - 0.1) / (0.9 - 0.1))
    assert row["recall"] == {"seen": 1.0, "hidden": 0.5}
    assert found["ablation"].keys() == {
        "motion, beside CAVP, TimeChat", "TimeChat, beside CAVP, motion"
    }  # fmt: skip
    gap = found["ablation"]["TimeChat, beside CAVP, motion"]["event_f1"]["difference"]
    assert gap == pytest.approx(0.1)
    json.dumps(found)
    assert all(len(r) == len(t["columns"]) for t in found["tables"] for r in t["rows"])


def test_only_what_the_sets_read_is_trained_and_extracted(tmp_path):
    few = Study.reading(tmp_path, Budget(), [SETS[2], SETS[7]])
    assert [stage.name for stage in few.stages] == ["cavp", "timechat", "backbone"]
    assert few.encoders == ("cavp", "timechat", "motion")
    every = Study.reading(tmp_path, Budget(), SETS)
    assert every == Study(tmp_path, Budget())
    assert every.stages == STAGES


def test_the_logs_of_other_budgets_are_left_out(tmp_path):
    budget = Budget(clips=20, start=5)
    study = Study.reading(tmp_path / "streams", budget, [PAPER_ENCODERS])
    ours = [f"{budget.name}-cavp-0", f"start-{budget.name}-cavp-0", "mapper_of20-cavp-0"]
    others = ["features-cavp-0", "mapper-cavp-0", "synchformer", f"{budget.name}5-cavp-0"]
    for name in [*(s.name for s in study.stages), *ours, *others]:
        folder = study.workdir / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "metrics.jsonl").write_text("{}\n")
        (folder / "done.json").write_text('{"steps": 1, "minutes": 2, "heldout": {}}')
    study.keep(tmp_path / "results", "streams_x", command="python -m miniature streams")
    kept = {file.stem for file in (tmp_path / "results" / "streams_x_training").iterdir()}
    assert kept == {"cavp", "timechat", "backbone", *ours}
    table = json.loads((tmp_path / "results" / "streams_x_training.json").read_text())["tables"][0]
    assert [row[0] for row in table["rows"]] == ["cavp", "timechat", "backbone"]

"""Reports on lines whose scores are known."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mfm_jax.foley.contacts import Counts
from mfm_jax.foley.scores import Heard
from mfm_jax.train.recipes.mapper import MapperConfig
from miniature import unknowns
from miniature.claims import ENCODERS, SHARES, Budget, Plan, Tuned, systems, tuned
from miniature.curves import draw, write_csv
from miniature.measures import SCORES, EvalSet, counts_by_clip, ratio
from miniature.report import CURVES, OURS, claims_report, combine_verdicts, compare, print_tables
from miniature.runs import Run, Workspace

CLIPS, SEEDS = 128, 3
EVAL_SET = EvalSet(Path("features"), Path("videos"), CLIPS)


def line(run, skill, rng):
    """Return the line of a mapper that gets a share `skill` of everything right."""
    hits = (rng.random((CLIPS, 4)) < skill).sum(axis=1)
    found = np.full(CLIPS, 4)
    counts = {
        "loa_error": 1 - skill + 0.05 * rng.random(CLIPS), "found_loa": hits > 1, "hits_50": hits,
        "hits_100": hits, "event_hits": hits, "found": found, "true": found,
        "materials": np.ones(CLIPS), "materials_hit": hits > 1, "log_mel": 1 - hits / 4,
    }  # fmt: skip
    return {
        "key": f"{run.part} {run.name} {run.share} {run.config.seed}", "seed": run.config.seed,
        "parameters": 7, "learning_rate": run.config.optimizer.learning_rate,
        "steps": run.config.steps,
        "clips": run.config.recipe.source.limit, "seconds": 1.0,
        "counts": {name: np.asarray(values, float).tolist() for name, values in counts.items()},
    }  # fmt: skip


def skill_of(run):
    """Return the skill of a run: ours is the best, and worse with less training."""
    if run.true:
        return 1.0
    if run.name == OURS:
        return 0.9 * run.share**0.3  # .34, .42, .52, .64, .9
    return {"gpt2": 0.6, "linear_pooled": 0.15, "linear_flat": 0.47}[run.name.split(", ")[1]]


@pytest.fixture(scope="module")
def experiment():
    """Return all runs of the claims with made-up lines."""
    plan = Plan(Workspace(Path("nowhere"), Path("nowhere"), "claims"), Budget(seeds=SEEDS), 1000)
    compared, chosen = systems(MapperConfig.tiny()), Tuned(1e-3, 500)
    runs = [run for system in compared for run in plan.seeds("systems", system, chosen, EVAL_SET)]
    for part in ("clips", "steps"):
        for share in SHARES:
            runs += plan.seeds(part, compared[0], chosen, EVAL_SET, share)
    runs.append(Run("ceiling", "true LOA", runs[0].config, EVAL_SET, true=True))
    rng = np.random.default_rng(0)
    lines = []
    for run in runs:
        lines.append(line(run, skill_of(run), rng))
        if run.floor:
            lines[-1]["shuffled"] = line(run, 0.1, rng)["counts"]
    return runs, lines


@pytest.fixture(scope="module")
def report(experiment):
    """The report on these runs, which takes seconds."""
    return claims_report(*experiment)


def test_scores_of_lines_are_those_of_what_was_heard():
    rng = np.random.default_rng(0)

    def counts(found, true):
        return Counts(int(rng.integers(0, min(found, true) + 1)), found, true)

    heard = []
    for found, true in rng.integers(1, 6, (8, 2)).tolist():
        near, wide, events = (counts(found, true) for _ in range(3))
        heard.append(Heard(near, wide, events, counts(2, 2), float(rng.random()), 1, 2.56))
    lines = [{"counts": counts_by_clip(heard)}]
    wanted = sum(heard, Heard()).scores()
    for name in ("onset_f1_50", "onset_f1_100", "event_f1", "material", "log_mel"):
        assert ratio(lines, name).values[0] == pytest.approx(wanted[name], abs=1e-4), name


def test_systems_differ_in_encoders_and_kind_alone():
    compared = systems(MapperConfig.tiny())
    assert len(compared) == len({system.name for system in compared}) == 11
    for system in compared:
        encoders, kind = system.name.split(", ")
        network = system.network
        assert tuple(name for name, *_ in network.encoders) == ENCODERS[encoders]
        assert network.kind == kind
        plain = replace(network, encoders=MapperConfig.tiny().encoders, kind="gpt2")
        assert plain == MapperConfig.tiny()


def test_curves_share_clips_or_steps_and_their_end_is_the_full_training(experiment):
    runs, _ = experiment
    by_share = {(run.part, run.share): run for run in runs}
    assert by_share["clips", 0.04].config.recipe.source.limit == 40
    assert by_share["clips", 0.04].config.steps == 500
    assert by_share["steps", 0.04].config.recipe.source.limit == 1000
    assert by_share["steps", 0.04].config.steps == 20
    full = [run for run in runs if run.name == OURS and run.share == 1 and not run.true]
    configs = {(run.config, run.floor) for run in full}
    assert len(full) == 3 * SEEDS
    assert len(configs) == SEEDS  # so the training at 100 % is run once


def test_every_other_rate_and_seed_is_kept_from_the_reported_runs(experiment):
    plan = Plan(Workspace(Path("nowhere"), Path("nowhere"), "claims"), Budget(), 1000)
    for system in systems(MapperConfig.tiny()):
        tries = plan.tuning(system, replace(EVAL_SET, sounds=0))
        pairs = {(run.config.optimizer.learning_rate, run.config.steps) for run in tries}
        assert len(pairs) == len(tries) == (3 if system.network.kind == "gpt2" else 6)
        assert {run.config.seed for run in tries}.isdisjoint(range(Budget().seeds))
        assert {run.eval_set.sounds for run in tries} == {0}


def test_tuning_takes_the_least_mean_error():
    tries = [
        {"learning_rate": rate, "steps": steps, "counts": {"loa_error": errors}}
        for rate, steps, errors in [(1, 10, [0.1, 0.9]), (2, 10, [0.4, 0.4]), (1, 30, [0.5, 0.5])]
    ]
    assert tuned(tries) == Tuned(2, 10)


def test_the_claims_hold_where_ours_is_better(report):
    for name in ("a", "b"):
        claim = report["claims"][name]
        assert set(claim["verdicts"].values()) == {"holds"}, name
        for pair in claim["comparisons"]:
            assert pair["ours"] == OURS
            gap = pair["scores"]["event_f1"]
            assert 0 < gap["low"] < gap["difference"] < gap["high"]
            assert pair["scores"]["loa_error"]["high"] < 0
    # Mappers of one kind are equally good, so these comparisons are undecided.
    secondary = report["claims"]["a"]["secondary"]
    assert {"undecided"} <= {pair["scores"]["event_f1"]["verdict"] for pair in secondary}


def test_the_training_needed_is_the_smallest_share_that_reaches_the_earlier_mapper(report):
    needed = report["claims"]["c"]
    for part in ("clips", "steps"):
        assert needed["targets"]["event_f1"]["best"] == "linear_flat"
        smallest = needed["smallest"][part]["event_f1"]
        # .34 is better than the pooled one's .15, and .52 than the flat one's .47.
        assert smallest == {"linear_pooled": 4, "linear_flat": 16, "best": 16}
        assert needed["smallest"][part]["loa_error"]["best"] == 16
        assert needed["verdicts"][part]["event_f1"] == "holds"
        numbers = [point["number"] for point in needed["curves"][part]["event_f1"]]
        assert numbers == {"clips": [40, 80, 160, 320, 1000], "steps": [20, 40, 80, 160, 500]}[part]


def test_worse_with_all_of_the_training_fails(experiment):
    runs, lines = experiment
    swapped = []
    for run, its in zip(runs, lines, strict=True):
        poor = run.part in ("clips", "steps")
        made = line(run, 0.2, np.random.default_rng(run.config.seed)) if poor else its
        swapped.append(made)
    needed = claims_report(runs, swapped)["claims"]["c"]
    assert needed["verdicts"]["clips"]["event_f1"] == "fails"
    assert needed["smallest"]["clips"]["event_f1"]["best"] is None


def test_scores_lie_between_floor_and_ceiling(report):
    for name, its in report["systems"].items():
        for score, found in its["scores"].items():
            assert 0 < found["normalised"] <= 1, (name, score)
    assert report["bounds"]["true LOA"]["event_f1"]["mean"] == 1
    assert report["systems"][OURS]["seeds"] == list(range(SEEDS))


def test_a_report_is_json_with_whole_tables(report, capsys):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    for table in report["tables"]:
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}
    print_tables(report["tables"])
    printed = capsys.readouterr().out
    assert "Claim (a): two encoders beat one" in printed
    assert len(printed.splitlines()) > sum(len(table["rows"]) for table in report["tables"])


def test_curves_are_written_and_drawn(experiment, report, tmp_path):
    runs, lines = experiment
    write_csv(tmp_path / "curves.csv", runs, lines)
    with (tmp_path / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(SHARES) * SEEDS * len(CURVES)
    last = [r for r in rows if r["part"] == "clips" and r["share"] == "1.0"]
    values = [float(r["value"]) for r in last if r["score"] == "event_f1"]
    assert np.mean(values) == pytest.approx(0.9, abs=0.05)
    draw(tmp_path / "curves.png", report["claims"]["c"])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_differences_are_over_the_seeds_that_both_have(experiment):
    runs, lines = experiment
    ours, theirs = (
        [x for run, x in zip(runs, lines, strict=True) if (run.part, run.name) == ("systems", name)]
        for name in (OURS, "cavp, gpt2")
    )
    assert compare(ours, theirs[::-1]) == compare(ours, theirs)
    assert compare(ours, theirs[:2]) == compare(ours[:2], theirs[:2])


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        (("holds", "holds"), "holds"),
        (("holds", "undecided"), "undecided"),
        (("undecided", "fails"), "fails"),
    ],
    ids=str,
)
def test_a_claim_holds_if_all_its_comparisons_do(verdicts, verdict):
    assert combine_verdicts(verdicts) == verdict


def test_one_change_is_compared_with_what_it_changes():
    plan = Plan(Workspace(Path("nowhere"), Path("nowhere"), "unknowns"), Budget(seeds=2), 1000)
    network = MapperConfig.tiny()
    default = plan.config(network, EVAL_SET, 1e-3, 500, 0, 1000)
    coarse = replace(network, loa=replace(network.loa, pool=(8, 8)))
    tried = [
        unknowns.Change(unknowns.DEFAULT, default, EVAL_SET),
        unknowns.Change("worse", replace(default, batch=8), EVAL_SET),
        unknowns.Change("coarse", plan.config(coarse, EVAL_SET, 1e-3, 500, 0, 1000), EVAL_SET),
    ]
    runs = [change.run(seed) for change in tried for seed in range(2)]
    runs += unknowns.ceilings(tried)
    assert [run.name for run in runs if run.true] == [
        "true LOA, pool (1, 8)",
        "true LOA, pool (8, 8)",
    ]
    rng = np.random.default_rng(0)
    skills = {"worse": 0.2}
    lines = [line(run, skills.get(run.name, 0.8), rng) for run in runs]
    found = unknowns.report(tried, runs, lines)
    default_row, worse, other = found["rows"]
    assert "differences" not in default_row
    assert worse["differences"]["event_f1"]["high"] < 0
    assert worse["differences"]["loa_error"]["low"] > 0
    # Errors on another grid are of other targets.
    assert set(SCORES) - set(other["differences"]) == {"loa_error"}
    json.dumps(found, allow_nan=False)
    for table in found["tables"]:
        assert {len(row) for row in table["rows"]} == {len(table["columns"])}

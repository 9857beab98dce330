"""Runs of two steps on untrained networks and eight clips: what is run, and what is not again."""

import json
import os
import shutil
import signal
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
import pytest

from mfm_jax.bundle import Bundle, Source, write_bundle
from mfm_jax.data.clips import DataError
from mfm_jax.foley.recipes.listener import foley_listener
from mfm_jax.foley.world import SPLITS, World, write_world
from mfm_jax.train.recipe import TrainConfig
from miniature.__main__ import main
from miniature.claims import Budget, Plan, Tuned, sizes, systems
from miniature.measures import Asked, Judge, studio_of, true_loa
from miniature.runs import HOW, PREDICTIONS, Place, Stage1, Stopped, perform, perform_all
from miniature.sounds import BATCH
from miniature.unknowns import DEFAULT, LONGER, Change, changes, second_stage
from tests.bundles import CONFIGS, untrained_bundle, untrained_component
from tests.feature_folder import write_features

CLIPS, HEARD = 8, 2


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """What the miniature's training leaves, as far as the experiments need it."""
    folder = tmp_path_factory.mktemp("miniature")
    bundle = untrained_bundle(folder / "bundle")
    listener = untrained_component("listener", foley_listener(), 9)
    bundle = write_bundle(bundle.path, {"listener": listener})
    for part in ("train", "heldout"):
        write_features(bundle, folder / "features" / part, CLIPS)
    start = SPLITS["validation"].start
    write_world(World(), range(start, start + HEARD), folder / "made")
    (folder / "clips").mkdir()
    for i in range(HEARD):  # named as the features are
        for suffix in (".mp4", ".json"):
            made = folder / "made" / f"{start + i}{suffix}"
            shutil.copy(made, folder / "clips" / f"clip{i:02d}{suffix}")
    return folder


@pytest.fixture
def place(workdir, tmp_path):
    """With no results yet, and no runs: their folder is that of the test."""
    name = os.path.relpath(tmp_path, workdir)
    return Place(workdir, tmp_path / "results.jsonl", name, workdir / "bundle")


def plan_of(place, **budget):
    return Plan(place, Budget(**{"steps": 2, "seeds": 1, "batch": 4, "count": 0, **budget}), CLIPS)


def asked_of(place, count=0):
    return Asked(place.features / "heldout", place.workdir / "clips", count)


def linear_runs(place, seeds=1, count=0):
    """Of the smallest system."""
    system = next(
        system
        for system in systems(sizes(place.features / "train"))
        if system.name == "timechat, linear_pooled"
    )
    plan = plan_of(place, seeds=seeds)
    return plan.seeds("systems", system, Tuned(1e-2, 2), asked_of(place, count))


def lines_in(place):
    return [json.loads(line) for line in place.results.read_text().splitlines()]


def test_a_run_in_the_results_is_not_run_again(place, capsys):
    first = perform_all(linear_runs(place), place, jobs=1)
    assert "1 runs, 1 to do" in capsys.readouterr().out
    shutil.rmtree(place.runs)
    assert perform_all(linear_runs(place), place, jobs=1) == first
    assert "1 runs, 0 to do" in capsys.readouterr().out
    assert not place.runs.exists()
    more = perform_all(linear_runs(place, seeds=2), place, jobs=1)
    assert "2 runs, 1 to do" in capsys.readouterr().out
    assert [line["seed"] for line in more] == [0, 1]
    assert more[0] == first[0]
    assert lines_in(place) == more
    assert more[0]["counts"]["loa_error"] != more[1]["counts"]["loa_error"]


def test_the_same_run_under_two_names_is_run_once(place):
    (run,) = linear_runs(place)
    lines = perform_all([run, replace(run, part="clips")], place, jobs=1)
    assert lines[0] == lines[1]
    assert len(lines_in(place)) == 1


def test_a_key_tells_what_a_line_depends_on_and_nothing_else(place, workdir, tmp_path):
    (run,) = linear_runs(place)
    config, recipe = run.config, run.config.recipe
    same = replace(run, part="steps", name="other", share=0.5)
    assert same.key(place) == run.key(place)
    others = [
        replace(run, config=replace(config, seed=1)),
        replace(run, config=replace(config, optimizer=replace(config.optimizer, rate=1.0))),
        replace(run, config=replace(config, recipe=replace(recipe, train=7))),
        replace(run, config=replace(config, recipe=replace(recipe, contrast=0.0))),
        replace(run, asked=asked_of(place, 1)),
        replace(run, asked=replace(run.asked, features=place.features / "train")),
        replace(run, floor=True),
        replace(run, true=True),
    ]
    keys = [other.key(place) for other in (run, *others[:5], *others[6:])]
    assert len(set(keys)) == len(keys)
    # Both folders of features have the same clips.
    assert others[5].key(place) == run.key(place)

    # Another vocoder changes what is heard, but not what is trained.
    moved = replace(place, bundle=tmp_path / "moved")
    shutil.copytree(place.bundle, moved.bundle)
    heard = replace(run, asked=asked_of(place, 1))
    assert (run.key(moved), heard.key(moved)) == (run.key(place), heard.key(place))
    vocoder = (CONFIGS["vocoder"], Bundle.open(moved.bundle).load("vocoder"), Source("x", "none"))
    write_bundle(moved.bundle, {"vocoder": vocoder})
    assert heard.key(moved) != heard.key(place)
    assert run.key(moved) == run.key(place)
    assert heard.training() == run.training()


def test_what_a_run_shows_is_no_part_of_its_key(place):
    """Another field in the key would make every line that there is another run's."""
    (run,) = linear_runs(place)
    assert replace(run, config=replace(run.config, samples=5)).key(place) == run.key(place)
    assert {field.name for field in fields(TrainConfig)} - set(HOW) == {
        "recipe", "optimizer", "steps", "batch", "seed", "ema", "log", "evaluate", "save", "keep",
    }  # fmt: skip


def test_a_trained_mapper_is_not_trained_again_to_be_heard(place):
    (run,) = linear_runs(place)
    perform(run, place)
    (folder,) = place.runs.iterdir()
    before = (folder / PREDICTIONS).stat().st_mtime_ns
    assert not (folder / "checkpoints").exists()
    assert perform(replace(run, floor=True), place)["counts"] == lines_in(place)[0]["counts"]
    assert (folder / PREDICTIONS).stat().st_mtime_ns == before


@dataclass(frozen=True)
class Told(Stage1):
    """Is told to stop, as often as `times` says."""

    times: ClassVar[list] = [1]

    def evaluate(self, module, source, batch):
        if self.times:
            self.times.pop()
            os.kill(os.getpid(), signal.SIGTERM)
        return super().evaluate(module, source, batch)


def test_a_stopped_run_leaves_no_line_and_goes_on(place):
    (run,) = linear_runs(place)
    recipe = run.config.recipe
    fields = {name: getattr(recipe, name) for name in recipe.__dataclass_fields__}
    told = replace(run, config=replace(run.config, recipe=Told(**fields)))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="the same command goes on from there"):
        perform(told, place)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not place.results.exists()
    assert perform(told, place)["counts"] == perform(run, place)["counts"]


def test_a_damaged_line_is_named(place):
    perform_all(linear_runs(place), place, jobs=1)
    with place.results.open("a") as file:
        file.write('{"key": "half a li')
    with pytest.raises(DataError, match=r"line 2 of .*results.jsonl is damaged: remove it"):
        perform_all(linear_runs(place), place, jobs=1)


def test_true_loa_is_the_ceiling(place):
    (run,) = linear_runs(place)
    line = perform(replace(run, true=True), place)
    assert line["counts"] == {"loa_error": [0.0] * CLIPS, "found_loa": [1] * CLIPS}
    assert line["parameters"] == 0
    assert not place.runs.exists()


def test_loa_is_scored_in_deviations_of_the_training_clips(place):
    loa = sizes(place.features / "train").loa
    judge = Judge.open(place.bundle, place.features / "train", asked_of(place), loa)
    known = true_loa(place.features / "train", loa)
    off = judge.true + 0.5 * known.std(axis=(0, 1))
    counts, waves = judge.measure(off)
    np.testing.assert_allclose(counts["loa_error"], 0.25, atol=1e-4)
    assert waves == []
    shuffled = judge.shuffled(judge.true, [])
    other = ((np.roll(judge.true, 1, axis=0) - judge.true) / known.std(axis=(0, 1))) ** 2
    np.testing.assert_allclose(shuffled["loa_error"], other.mean(axis=(1, 2)), atol=1e-3)


def test_sound_is_made_of_loa_with_the_same_noise_every_time(place):
    loa = sizes(place.features / "train").loa
    features = place.features / "train"
    judge = Judge.open(place.bundle, features, asked_of(place, HEARD), loa)
    counts, waves = judge.measure(judge.true)
    assert [len(wave) for wave in waves] == [len(clip.wave) for clip in judge.clips]
    assert {len(values) for name, values in counts.items() if name != "loa_error"} == {HEARD, CLIPS}
    # The first clip's sound does not depend on the second's LOA, nor on how many are heard.
    other = judge.true.copy()
    other[1] = 0.0
    again = judge.sounds(other)
    np.testing.assert_allclose(again[0], waves[0], atol=1e-6)
    assert np.abs(again[1] - waves[1]).max() > 1e-4
    alone = replace(judge, clips=judge.clips[:1])
    np.testing.assert_allclose(alone.sounds(judge.true)[0], waves[0], atol=1e-6)
    assert BATCH > HEARD


def test_another_grid_has_other_moments_and_the_same_networks(place):
    loa = sizes(place.features / "train").loa
    usual, coarse = (studio_of(place.bundle, x) for x in (loa, replace(loa, pool=(8, 8))))
    assert usual.model.networks.mapper.config.loa == loa
    assert coarse.model.networks.mapper.config.loa.tokens == 2
    assert coarse.model.networks.unet is usual.model.networks.unet


@pytest.mark.slow
def test_stage_2_goes_on_from_the_mapper_that_stage_1_trains_with_the_same_seed(place):
    plan, asked = plan_of(place), asked_of(place)
    first = changes(plan)[0]
    assert first.name == DEFAULT
    second = Change("stage 2", second_stage(plan, asked, 0), asked, begins=first)
    lines = [
        perform(change.run(place, seed), place) for seed in (0, 1) for change in (first, second)
    ]
    for before, after in (lines[:2], lines[2:]):
        assert after["parameters"] == before["parameters"]
        np.testing.assert_allclose(
            after["counts"]["loa_error"], before["counts"]["loa_error"], atol=1e-3
        )
    assert lines[0]["counts"] != lines[2]["counts"]
    # What is there is not trained again.
    bundles = sorted((place.workdir / place.name / "stage1").glob("*/bundle.json"))
    before = [path.stat().st_mtime_ns for path in bundles]
    assert len(before) == 2
    assert second.run(place, 1).key(place) == lines[3]["key"]
    assert [path.stat().st_mtime_ns for path in bundles] == before


def test_the_unknowns_are_single_changes(place):
    tried = changes(plan_of(place))
    names = [change.name for change in tried]
    assert len(set(names)) == len(names) == 15
    assert names[-2:] == [LONGER, "stage 2"]
    assert tried[-1].against == LONGER
    assert "TimeChat frame tokens" not in names  # no features have them
    assert {str(change.asked.features) for change in tried} == {str(place.features / "heldout")}
    default = tried[0].config.recipe
    for change in tried[1:-2]:
        recipe = change.config.recipe
        fields = {
            name
            for name in default.__dataclass_fields__
            if getattr(recipe, name) != getattr(default, name)
        }
        assert len(fields) == 1, change.name
        assert replace(change.config, recipe=default) == tried[0].config


@pytest.mark.parametrize("command", ["claims", "unknowns"])
def test_a_command_says_what_it_takes(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "-h"])
    assert done.value.code == 0
    assert "--workdir" in capsys.readouterr().out


def test_a_bundle_that_is_not_there_is_one_line(tmp_path, capsys):
    arguments = ["unknowns", "--workdir", str(tmp_path), "--bundle", str(tmp_path / "none")]
    assert main(arguments) == 2
    assert "is not a bundle" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

"""Runs of two steps with untrained networks on eight clips, which are run only once."""

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import numpy as np
import pytest

from mfm_jax.bundle import Bundle, Source, write_bundle
from mfm_jax.data.clips import DataError
from mfm_jax.foley.recipes.listener import foley_listener
from mfm_jax.foley.world import SPLITS, World, write_world
from mfm_jax.models.unet import UNetConfig
from mfm_jax.train.recipe import TrainConfig
from miniature.__main__ import main
from miniature.claims import Budget, Plan, Tuned, sizes, systems
from miniature.measures import EvalSet, Scorer, synthesiser_for, true_loa
from miniature.runs import NOT_IN_KEY, PREDICTIONS, Stage1, Stopped, Workspace, run_all, run_one
from miniature.sounds import BATCH
from miniature.unknowns import DEFAULT, LONGER, Change, changes, second_stage
from tests.bundles import CONFIGS, untrained_bundle, untrained_component
from tests.feature_folder import write_features

CLIPS, HEARD = 8, 2
# It compiles in a fifth of the tiny one's time, and reads and predicts what that does.
SMALL_UNET = replace(UNetConfig.tiny(), channels=(8, 12), attentions=((), (0,)), groups=4)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Return a workdir with the clips, features and bundle that the experiments need."""
    folder = tmp_path_factory.mktemp("miniature")
    bundle = untrained_bundle(folder / "bundle")
    parts = {
        "listener": untrained_component("listener", foley_listener(), 9),
        "unet": untrained_component("unet", SMALL_UNET, 8),
    }
    bundle = write_bundle(bundle.path, parts)
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
def workspace(workdir, tmp_path):
    """Return a workspace without results and runs; the runs' folder is the test's."""
    name = os.path.relpath(tmp_path, workdir)
    return Workspace(workdir, tmp_path / "results.jsonl", name, workdir / "bundle")


def plan_of(workspace, **budget):
    return Plan(
        workspace, Budget(**{"steps": 2, "seeds": 1, "batch": 4, "sounds": 0, **budget}), CLIPS
    )


def eval_set_of(workspace, sounds=0):
    return EvalSet(
        workspace.features / "heldout", workspace.workdir / "clips", sounds, sampler_steps=2
    )


def linear_runs(workspace, seeds=1, sounds=0):
    """Return runs of the smallest system."""
    system = next(
        system
        for system in systems(sizes(workspace.features / "train"))
        if system.name == "timechat, linear_pooled"
    )
    plan = plan_of(workspace, seeds=seeds)
    return plan.seeds("systems", system, Tuned(1e-2, 2), eval_set_of(workspace, sounds))


def lines_in(workspace):
    return [json.loads(line) for line in workspace.results.read_text().splitlines()]


def test_a_run_in_the_results_is_not_run_again(workspace, capsys):
    first = run_all(linear_runs(workspace), workspace, jobs=1)
    assert "1 runs, 1 to do" in capsys.readouterr().out
    shutil.rmtree(workspace.runs)
    assert run_all(linear_runs(workspace), workspace, jobs=1) == first
    assert "1 runs, 0 to do" in capsys.readouterr().out
    assert not workspace.runs.exists()
    more = run_all(linear_runs(workspace, seeds=2), workspace, jobs=1)
    assert "2 runs, 1 to do" in capsys.readouterr().out
    assert [line["seed"] for line in more] == [0, 1]
    assert more[0] == first[0]
    assert lines_in(workspace) == more
    assert more[0]["counts"]["loa_error"] != more[1]["counts"]["loa_error"]


def test_the_same_run_under_two_names_is_run_once(workspace):
    (run,) = linear_runs(workspace)
    lines = run_all([run, replace(run, part="clips")], workspace, jobs=1)
    assert lines[0] == lines[1]
    assert len(lines_in(workspace)) == 1


def test_a_key_tells_what_a_line_depends_on_and_nothing_else(workspace, workdir, tmp_path):
    (run,) = linear_runs(workspace)
    config, recipe = run.config, run.config.recipe
    same = replace(run, part="steps", name="other", share=0.5)
    assert same.key(workspace) == run.key(workspace)
    shorter = replace(recipe.source, limit=7)
    others = [
        replace(run, config=replace(config, seed=1)),
        replace(
            run, config=replace(config, optimizer=replace(config.optimizer, learning_rate=1.0))
        ),
        replace(run, config=replace(config, recipe=replace(recipe, source=shorter))),
        replace(run, config=replace(config, recipe=replace(recipe, contrast_weight=0.0))),
        replace(run, eval_set=eval_set_of(workspace, 1)),
        replace(run, eval_set=replace(run.eval_set, features=workspace.features / "train")),
        replace(run, floor=True),
        replace(run, true=True),
    ]
    keys = [other.key(workspace) for other in (run, *others[:5], *others[6:])]
    assert len(set(keys)) == len(keys)
    # Both folders of features have the same clips.
    assert others[5].key(workspace) == run.key(workspace)

    # Another vocoder changes what is heard, but not what is trained.
    moved = replace(workspace, bundle=tmp_path / "moved")
    shutil.copytree(workspace.bundle, moved.bundle)
    heard = replace(run, eval_set=eval_set_of(workspace, 1))
    assert (run.key(moved), heard.key(moved)) == (run.key(workspace), heard.key(workspace))
    renamed = (CONFIGS["vocoder"], Bundle.open(moved.bundle).load("vocoder"), Source("x", "none"))
    write_bundle(moved.bundle, {"vocoder": renamed})
    assert heard.key(moved) == heard.key(workspace)  # the same weights, from another source
    write_bundle(moved.bundle, {"vocoder": untrained_component("vocoder", CONFIGS["vocoder"], 10)})
    assert heard.key(moved) != heard.key(workspace)
    assert run.key(moved) == run.key(workspace)
    assert heard.training() == run.training()


def test_what_a_run_shows_is_no_part_of_its_key(workspace):
    """A new field in the key would invalidate every recorded line."""
    (run,) = linear_runs(workspace)
    assert replace(run, config=replace(run.config, sample_every=5)).key(workspace) == run.key(
        workspace
    )
    assert {field.name for field in fields(TrainConfig)} - set(NOT_IN_KEY) == {
        "recipe", "optimizer", "steps", "batch", "seed", "ema_decay", "log_every", "eval_every",
        "save_every", "keep",
    }  # fmt: skip


def test_a_trained_mapper_is_not_trained_again_to_be_heard(workspace):
    (run,) = linear_runs(workspace)
    run_one(run, workspace)
    (folder,) = workspace.runs.iterdir()
    before = (folder / PREDICTIONS).stat().st_mtime_ns
    assert not (folder / "checkpoints").exists()
    assert (
        run_one(replace(run, floor=True), workspace)["counts"] == lines_in(workspace)[0]["counts"]
    )
    assert (folder / PREDICTIONS).stat().st_mtime_ns == before


@dataclass(frozen=True)
class Told(Stage1):
    """A stage 1 that gets a signal to stop, as often as `times` says."""

    times: ClassVar[list] = [1]

    def evaluate(self, module, source, batch):
        if self.times:
            self.times.pop()
            os.kill(os.getpid(), signal.SIGTERM)
        return super().evaluate(module, source, batch)


def test_a_stopped_run_leaves_no_line_and_goes_on(workspace):
    (run,) = linear_runs(workspace)
    recipe = run.config.recipe
    values = {field.name: getattr(recipe, field.name) for field in fields(recipe)}
    told = replace(run, config=replace(run.config, recipe=Told(**values)))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="run the same command again to continue"):
        run_one(told, workspace)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not workspace.results.exists()
    assert run_one(told, workspace)["counts"] == run_one(run, workspace)["counts"]


@dataclass(frozen=True)
class Errand:
    """A run that waits to be stopped."""

    seed: int
    part: ClassVar[str] = "errand"
    name: ClassVar[str] = "errand"

    def key(self, workspace):
        return str(self.seed)


def wait_to_be_stopped(run, workspace):
    """Say that the run has begun, and wait; the second one stops everything once both have."""
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: told.set())
    workspace.runs.mkdir(parents=True, exist_ok=True)
    (workspace.runs / run.key(workspace)).touch()
    if run.seed == 1:
        while len(list(workspace.runs.iterdir())) < 2:
            time.sleep(0.01)
        os.kill(os.getppid(), signal.SIGTERM)
    assert told.wait(60)
    raise Stopped(f"errand {run.seed} was stopped")


def test_after_a_signal_no_further_run_begins(workspace):
    errands = [Errand(seed) for seed in range(5)]
    with pytest.raises(KeyboardInterrupt):
        run_all(errands, workspace, jobs=2, execute=wait_to_be_stopped)
    assert {file.name for file in workspace.runs.iterdir()} == {"0", "1"}


def test_a_damaged_line_is_named(workspace):
    run_all(linear_runs(workspace), workspace, jobs=1)
    with workspace.results.open("a") as file:
        file.write('{"key": "half a li')
    with pytest.raises(DataError, match=r"line 2 of .*results.jsonl is damaged: remove it"):
        run_all(linear_runs(workspace), workspace, jobs=1)


def test_true_loa_is_the_ceiling(workspace):
    (run,) = linear_runs(workspace)
    line = run_one(replace(run, true=True), workspace)
    assert line["counts"] == {"loa_error": [0.0] * CLIPS, "found_loa": [1] * CLIPS}
    assert line["parameters"] == 0
    assert not workspace.runs.exists()


def test_loa_is_scored_in_deviations_of_the_training_clips(workspace):
    loa = sizes(workspace.features / "train").loa
    train = workspace.features / "train"
    scorer = Scorer.open(workspace.bundle, train, eval_set_of(workspace), loa)
    known = true_loa(train, loa)
    off = scorer.true + 0.5 * known.std(axis=(0, 1))
    counts, waves = scorer.measure(off)
    np.testing.assert_allclose(counts["loa_error"], 0.25, atol=1e-4)
    assert waves == []
    shuffled = scorer.shuffled(scorer.true, [])
    other = ((np.roll(scorer.true, 1, axis=0) - scorer.true) / known.std(axis=(0, 1))) ** 2
    np.testing.assert_allclose(shuffled["loa_error"], other.mean(axis=(1, 2)), atol=1e-3)


def test_sound_is_made_of_loa_with_the_same_noise_every_time(workspace):
    loa = sizes(workspace.features / "train").loa
    features = workspace.features / "train"
    scorer = Scorer.open(workspace.bundle, features, eval_set_of(workspace, HEARD), loa)
    counts, waves = scorer.measure(scorer.true)
    assert [len(wave) for wave in waves] == [len(clip.wave) for clip in scorer.clips]
    assert {len(values) for name, values in counts.items() if name != "loa_error"} == {HEARD, CLIPS}
    # The first clip's sound does not depend on the second's LOA, nor on how many are heard.
    other = scorer.true.copy()
    other[1] = 0.0
    again = scorer.sounds(other)
    np.testing.assert_allclose(again[0], waves[0], atol=1e-6)
    assert np.abs(again[1] - waves[1]).max() > 1e-4
    alone = replace(scorer, clips=scorer.clips[:1])
    np.testing.assert_allclose(alone.sounds(scorer.true)[0], waves[0], atol=1e-6)
    assert BATCH > HEARD


def test_another_grid_has_other_moments_and_the_same_networks(workspace):
    loa = sizes(workspace.features / "train").loa
    usual, coarse = (synthesiser_for(workspace.bundle, x) for x in (loa, replace(loa, pool=(8, 8))))
    assert usual.model.networks.mapper.config.loa == loa
    assert coarse.model.networks.mapper.config.loa.tokens == 2
    assert coarse.model.networks.unet is usual.model.networks.unet


@pytest.mark.slow
def test_stage_2_goes_on_from_the_mapper_that_stage_1_trains_with_the_same_seed(workspace):
    plan, eval_set = plan_of(workspace), eval_set_of(workspace)
    first = changes(plan)[0]
    assert first.name == DEFAULT
    second = Change("stage 2", second_stage(plan, eval_set, 0), eval_set, init_from=first)
    other, before, after = (
        run_one(change.run(seed), workspace)
        for change, seed in ((first, 0), (first, 1), (second, 1))
    )
    assert after["parameters"] == before["parameters"]
    found, same, another = (line["counts"]["loa_error"] for line in (after, before, other))
    np.testing.assert_allclose(found, same, atol=1e-3)
    assert not np.allclose(found, another, atol=1e-3)
    # What is there is not trained again.
    (bundle,) = (workspace.workdir / workspace.name / "stage1").glob("*/bundle.json")
    made = bundle.stat().st_mtime_ns
    assert second.run(1).key(workspace) == after["key"]
    assert bundle.stat().st_mtime_ns == made


def test_the_unknowns_are_single_changes(workspace):
    tried = changes(plan_of(workspace))
    names = [change.name for change in tried]
    assert len(set(names)) == len(names) == 15
    assert names[-2:] == [LONGER, "stage 2"]
    assert tried[-1].against == LONGER
    assert "TimeChat frame tokens" not in names  # no features have them
    assert {str(change.eval_set.features) for change in tried} == {
        str(workspace.features / "heldout")
    }
    default = tried[0].config.recipe
    for change in tried[1:-2]:
        recipe = change.config.recipe
        changed = [
            field.name
            for field in fields(default)
            if getattr(recipe, field.name) != getattr(default, field.name)
        ]
        assert len(changed) == 1, change.name
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

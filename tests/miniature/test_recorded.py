"""The recorded lines have the keys of today's experiments, so that none is run again."""

import shutil
from pathlib import Path

import pytest

from mfm_jax.bundle import Bundle
from mfm_jax.data.clips import Clip
from mfm_jax.data.features import DESCRIPTION, describe
from mfm_jax.data.records import UNFINISHED, DatasetWriter, Field
from mfm_jax.foley.world import SPLITS
from mfm_jax.storage.paths import TINY_BUNDLE
from miniature import runs, unknowns
from miniature.claims import Budget, Plan, run_experiment
from miniature.document import RESULTS
from miniature.measures import EvalSet
from miniature.runs import Workspace

TRAIN = range(4096)
HELDOUT = range(SPLITS["validation"].start, SPLITS["validation"].start + 256)
TEST = range(SPLITS["test"].start, SPLITS["test"].start + 512)
FIELDS = {
    "audiomae": Field((129, 128), "float16"),
    "cavp": Field((32, 64), "float16"),
    "cavp_seconds": Field((32,), "float32"),
    "latents": Field((64, 16, 8), "float16"),
    "timechat": Field((16, 96), "float16"),
    "timechat_seconds": Field((16,), "float32"),
}


FRAME_TOKENS = {
    "timechat": Field((112, 96), "float16"),
    "timechat_seconds": Field((112,), "float32"),
}


def write_description(folder, seeds, timechat="video"):
    """Write the description of the features of these clips, without the features."""
    clips = [Clip(str(seed), Path(f"{seed}.mp4")) for seed in seeds]
    about = describe(Bundle.open(TINY_BUNDLE), timechat)
    fields = FIELDS | (FRAME_TOKENS if timechat == "frame" else {})
    DatasetWriter.open(folder, DESCRIPTION, about, fields, clips)
    (folder / UNFINISHED).rename(folder / DESCRIPTION)


@pytest.fixture
def workdir(tmp_path, monkeypatch):
    """Return the workdir of experiments in which nothing may be run."""
    write_description(tmp_path / "features" / "train", TRAIN)
    write_description(tmp_path / "features" / "heldout", HELDOUT)
    monkeypatch.setattr(runs, "run_one", lambda run, _: pytest.fail(f"{run} has no line"))
    return tmp_path


def results(workdir, name):
    """Return a copy of the recorded lines: a test never writes to the originals."""
    recorded = Path(__file__).parents[2] / RESULTS / f"{name}.jsonl"
    return Path(shutil.copy(recorded, workdir))


def test_every_run_of_the_claims_has_a_line_and_every_line_a_run(workdir, monkeypatch):
    workspace = Workspace(workdir, results(workdir, "claims"), "claims")
    test = EvalSet(workdir / "test", workdir / "clips", Budget().sounds, Budget().sampler_steps)
    write_description(test.features, TEST)
    keys = set()

    def keep(run, workspace, key=runs.Run.key):
        keys.add(found := key(run, workspace))
        return found

    monkeypatch.setattr(runs.Run, "key", keep)
    run_experiment(workspace, Budget(), test, jobs=1)
    assert keys == set(workspace.lines())


def test_every_run_of_the_unknowns_has_a_line_and_every_line_a_run(workdir):
    workspace = Workspace(workdir, results(workdir, "unknowns"), "unknowns")
    for part, seeds in (("train", TRAIN), ("heldout", HELDOUT)):
        write_description(unknowns.frame_features(workspace) / part, seeds, "frame")
    tried = unknowns.changes(Plan(workspace, Budget(seeds=2), len(TRAIN)))
    wanted = [change.run(seed) for change in tried for seed in range(2)] + unknowns.ceilings(tried)
    assert {run.key(workspace) for run in wanted} == set(workspace.lines())

"""A run whose bundle, features and folder lie in a store.

`tests/test_journey.py` compares its weights with those of a run on a disk.
"""

import json
import signal

import pytest

import train
from mfm_jax.bundle import Bundle
from mfm_jax.cli.status import training
from mfm_jax.storage.files import publish
from tests.bundles import untrained_bundle
from tests.feature_folder import write_features

CLIPS = {"train": 8, "heldout": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bundle and features on the disk."""
    folder = tmp_path_factory.mktemp("made")
    bundle = untrained_bundle(folder / "base")
    for part, clips in CLIPS.items():
        write_features(bundle, folder / "features" / part, clips)
    return folder


def run(place, workdir, *changes):
    """Train the mapper with what lies at `place`."""
    words = ["--config", "tiny", "--workdir", str(workdir), "--set"]
    fields = [
        f"recipe.bundle={place / 'base'}", f"recipe.source={place / 'features'}",
        "batch=4", "save_every=2", "eval_every=2", "log_every=1", "keep=2", *changes,
    ]  # fmt: skip
    return train.main([*words, *fields])


def test_after_a_signal_it_goes_on_and_has_every_step_once(
    made, bucket, copies, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    publish(made / "base", bucket / "base")
    publish(made / "features", bucket / "features")
    workdir = bucket / "run"
    with monkeypatch.context() as patch:
        patch.setattr(train.Stop, "at", lambda self, step: step == 3)
        assert run(bucket, workdir, "steps=6") == 128 + signal.SIGTERM
    assert not (workdir / "bundle.json").exists()
    assert run(bucket, workdir, "steps=6") == 0
    Bundle.open(workdir).load("mapper")
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    kept = sorted(p.name for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
    assert kept == ["4", "6"]
    assert json.loads((workdir / "summary.json").read_text())["steps"] == 6
    assert len(list((workdir / "tensorboard").iterdir())) == 2
    assert training(workdir).startswith("step 6 of 6, loss ")
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""

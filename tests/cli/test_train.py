"""The command line of training: configs by name or file, overrides, and who calls what."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mfm_jax.cli import main, toplevel
from mfm_jax.cli import train as command

ROOT = Path(__file__).parents[2]


class Recorder:
    """Stands in for `train`."""

    def __call__(self, config, workdir, command, *, profile, began):
        self.config, self.workdir, self.command, self.profile = config, workdir, command, profile
        assert began < time.time()
        return 0


@pytest.fixture
def train():
    return Recorder()


def test_both_syntaxes_of_overrides_and_of_configs(train):
    words = ["--config", "tiny", "--workdir", "w", "--config.steps=3", "--set", "batch=2", "seed=5"]
    assert command.main(train, [*words, "--set", "keep=1"]) == 0
    named = train.config
    assert (named.steps, named.batch, named.seed, named.keep) == (3, 2, 5, 1)
    assert train.workdir == Path("w")
    assert train.command.startswith("python train.py --config tiny --workdir w --set=steps=3")
    file = str(ROOT / "configs" / "tiny.py")
    assert command.main(train, ["--config", file, "--workdir", "w", *words[4:]]) == 0
    assert train.config.steps == 3


def test_mfm_train_runs_the_train_of_the_checkout(train, monkeypatch):
    monkeypatch.setattr(toplevel.module("train"), "train", train)
    assert main(["train", "--config", "base", "--workdir", "w", "--profile", "4"]) == 0
    assert train.command == "mfm train --config base --workdir w --profile 4"
    assert train.profile == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "nowhere"], "there is no config nowhere: give a file, or one of base, "),
        (["--config", "tiny", "--set", "step=3"], "has no field 'step'"),
        (["--config", "tiny", "--set", "steps"], "'steps' is not of the form field.field=value"),
        (["--config", "tiny", "--coordinator", "host:1"], "go together"),
        (["--config", "none.py"], "get_config in none.py returns no TrainConfig but a NoneType"),
        (["--config", "broken.py"], "broken.py is no config with a function get_config (KeyError"),
    ],
)
def test_wrong_usage_is_one_line(words, message, train, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("none.py").write_text("def get_config(): pass")
    Path("broken.py").touch()
    assert command.main(train, [*words, "--workdir", "w"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_no_steps_of_a_profile_and_unknown_options_are_refused(train, capsys):
    for words in (["--profile", "0"], ["--steps", "3"]):
        with pytest.raises(SystemExit, match="2"):
            command.main(train, ["--config", "tiny", "--workdir", "w", *words])
        assert words[0] in capsys.readouterr().err


def test_modules_beside_the_user_do_not_stand_in_the_way(tmp_path):
    for name in ("convert", "miniature", "train"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not this one')")
    for name in ("convert", "miniature", "train"):
        done = subprocess.run(
            [sys.executable, "-m", "mfm_jax.cli", name, "-h"],
            cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"usage: mfm {name}" in done.stdout

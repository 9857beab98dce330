"""A workdir belongs to one run. A run that is refused changes nothing."""

import shutil
from dataclasses import dataclass, replace

import pytest
from flax import nnx

from mfm_jax.data.clips import DataError
from mfm_jax.data.sources import ClipFiles
from mfm_jax.layers import batch_norm, linear
from mfm_jax.storage.checkpoints import CheckpointError
from mfm_jax.train.workdir import WorkdirError, claimed
from tests.train.regression import Net, Regression, config
from train import train


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run of 12 steps that was stopped after the sixth."""
    folder = tmp_path_factory.mktemp("run")
    assert train(config(Regression(stop_at=1)), folder, "test") == 143
    return folder


def test_a_second_process_is_refused(half):
    before = contents(half)
    with (
        claimed(half, config(Regression())),
        pytest.raises(WorkdirError, match=r"another process trains in .*: wait for its end or use"),
    ):
        train(config(Regression(), steps=24), half, "test")
    assert contents(half) == before


def test_another_seed_is_refused(half):
    before = contents(half)
    with pytest.raises(WorkdirError, match="has a run with seed 0, not 1: use another --workdir"):
        train(config(Regression(), seed=1), half, "test")
    assert contents(half) == before


@dataclass(frozen=True)
class Elsewhere(Regression):
    """Reads other clips, which cannot be used."""

    def prepare(self, workdir):
        raise DataError("elsewhere has other clips")


def test_a_run_whose_clips_cannot_be_used_changes_nothing(half):
    before = contents(half)
    with pytest.raises(DataError, match="elsewhere has other clips"):
        train(config(Elsewhere(source=ClipFiles("elsewhere")), batch=2), half, "test")
    assert contents(half) == before


def test_a_config_that_is_damaged_or_of_something_else_is_not_replaced(half, tmp_path):
    shutil.copytree(half, tmp_path / "run")
    (tmp_path / "network").mkdir()
    for folder in (tmp_path / "run", tmp_path / "network"):
        for content in ("{", "[]", '{"n_layer": 12}', "[" * 10**5):
            (folder / "config.json").write_text(content)
            with pytest.raises(WorkdirError, match="is damaged, or not the config of a run: use"):
                train(config(Regression()), folder, "test")
            assert (folder / "config.json").read_text() == content
    assert [p.name for p in (tmp_path / "network").iterdir()] == ["config.json"]
    (tmp_path / "run" / "config.json").unlink()
    assert train(config(Regression()), tmp_path / "run", "test") == 0


class Wider(Net):
    def __init__(self, *, rngs):
        self.first = linear(5, 9, rngs=rngs)
        self.norm = batch_norm(9, rngs=rngs)
        self.last = linear(9, 3, rngs=rngs)


@dataclass(frozen=True)
class Other(Regression):
    """The training of another network."""

    def prepare(self, workdir):
        raise AssertionError("it looks for its data")

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return Wider(rngs=rngs)


def test_the_run_of_another_network_is_refused(half, capsys):
    before = contents(half)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* fits this run .*, should be"):
        train(config(Other()), half, "test")
    assert contents(half) == before
    assert "['last.kernel'] is float32 [7, 3], should be float32 [9, 3]" in (
        capsys.readouterr().out
    )


def test_a_run_that_is_refused_makes_no_folder_and_removes_none(tmp_path):
    wrong = config(Regression())
    wrong = replace(wrong, optimizer=replace(wrong.optimizer, lr_multipliers=(("nose", None),)))
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with pytest.raises(ValueError, match="no weight is left for nose"):
            train(wrong, tmp_path / name, "test")
    assert list(tmp_path.rglob("*")) == [tmp_path / "empty"]


def test_what_is_different_when_it_goes_on_is_told(tmp_path, capsys):
    assert train(config(Regression(stop_at=1)), tmp_path, "test") == 143
    assert "changed" not in capsys.readouterr().out
    changed = config(Regression(stop_at=1), batch=2, steps=24)
    changed = replace(changed, optimizer=replace(changed.optimizer, learning_rate=0.01))
    assert train(changed, tmp_path, "test") == 143
    said = capsys.readouterr().out
    assert (
        "the batch was 4 clips and is 2 from step 6 on: the clips go on at place 12 of their order "
        "and not at 24, so some come again or are left out\n"
    ) in said
    assert (
        "changed since the run began: optimizer.learning_rate 0.03 -> 0.01, steps 12 -> 24" in said
    )
    recipe = Regression()
    assert train(replace(changed, recipe=recipe, steps=4), tmp_path, "test") == 0
    said = capsys.readouterr().out
    assert ("12 steps are done, more than the 4 of the config: the run ends at step 12") in said
    assert "step 12  heldout_loss" in said
    assert "12 steps on" in said
    assert [kind for kind, _ in recipe.log] == ["evaluate", "finish"]


def test_numbers_that_no_run_can_have():
    for name in ("batch", "log_every", "eval_every", "save_every", "keep"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            config(Regression(), **{name: 0})
    for name in ("steps", "sample_every"):
        with pytest.raises(ValueError, match=f"{name} must be at least 0, got -1"):
            config(Regression(), **{name: -1})

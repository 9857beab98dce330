"""Checkpoints of a run are restored as they were, or skipped."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.storage.checkpoints import STAYS, TEMPORARY, CheckpointError, Checkpoints
from mfm_jax.storage.files import names_in

ROOT = Path(__file__).parents[2]


def items(value: float) -> dict:
    value = float(value)
    return {
        "params": {"w": jnp.full((64, 32), value), "b": jnp.full((7,), value, jnp.bfloat16)},
        "opt": ({"w": jnp.full((64, 32), -value)}, jnp.array(int(value))),
        "ema": None,
    }


def written(folder: Path, *saved: tuple[int, float | None], keep: int = 9) -> None:
    checkpoints = Checkpoints(folder, keep=keep)
    for step, score in saved:
        checkpoints.save(step, items(step), score=score)
    checkpoints.close()


def opened(folder: Path, **settings) -> Checkpoints:
    return Checkpoints(folder, **({"keep": 9} | settings))


def same(found: dict, value: float) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(items(value)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


def test_the_newest_comes_back(tmp_path):
    written(tmp_path, (3, None), (5, None))
    found = opened(tmp_path).restore(items(0))
    same(found, 5)
    assert found["ema"] is None


def test_some_items_can_be_read_alone(tmp_path):
    written(tmp_path, (3, None), (5, None))
    found = opened(tmp_path).restore({"params": items(0)["params"]}, 3)
    assert list(found) == ["params"]
    assert float(found["params"]["w"][0, 0]) == 3


def test_a_save_does_not_see_what_the_next_step_does_to_its_arrays(tmp_path):
    """A save runs in the background while the next step reuses the memory of its state."""
    step = jax.jit(
        lambda tree: jax.tree.map(lambda x: x + jnp.ones((), x.dtype), tree), donate_argnums=0
    )
    checkpoints, state = opened(tmp_path), {"params": items(1.0)["params"]}
    checkpoints.save(1, state)
    for _ in range(5):
        state = step(state)
    checkpoints.close()
    assert float(opened(tmp_path).restore({"params": items(0)["params"]})["params"]["w"].max()) == 1


def test_the_last_ones_and_the_best_stay(tmp_path):
    written(tmp_path, (1, 0.5), (2, 0.2), (3, 0.4), (4, None), (5, 0.3), keep=2)
    assert steps(tmp_path) == [2, 4, 5]
    again = opened(tmp_path, keep=2)
    assert again.best == 2
    assert again.would_be_best(0.1)
    assert not again.would_be_best(0.2)
    assert not again.would_be_best(None)


def test_one_is_on_the_disk_before_the_one_before_it_goes(tmp_path, monkeypatch):
    """Every file of it, and its name; also where only one is kept."""
    done, fsync = [], os.fsync

    def synced(handle):
        done.append(Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)

    checkpoints = opened(tmp_path, keep=1)
    checkpoints.save(3, items(3))
    checkpoints.save(5, items(5))
    assert (tmp_path / "3").exists()
    monkeypatch.setattr(os, "fsync", synced)
    delete = checkpoints._delete
    monkeypatch.setattr(
        checkpoints, "_delete", lambda step: (done.append(f"{step} goes"), delete(step))
    )
    checkpoints.close()
    assert done[-1] == "3 goes"
    assert {*(tmp_path / "5").rglob("*"), tmp_path / "5", tmp_path} <= set(done)
    assert steps(tmp_path) == [5]


def largest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def damage(item: Path, how: str) -> None:
    path = largest(item)
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes(b"" if how == "empty" else bytes(data))
    if how == "gone":
        shutil.rmtree(item)


@pytest.mark.parametrize("how", ["flipped", "empty", "gone"])
def test_a_damaged_one_is_passed_over_and_can_be_saved_again(how, tmp_path):
    written(tmp_path, (3, None), (5, None))
    damage(tmp_path / "5" / "params", how)
    said = []
    checkpoints = opened(tmp_path, say=said.append)
    same(checkpoints.restore(items(0)), 3)
    assert len(said) == 1
    assert said[0].startswith("checkpoint 5 cannot be used (")
    assert steps(tmp_path) == [3]
    checkpoints.save(5, items(5))
    checkpoints.close()
    same(opened(tmp_path).restore(items(0)), 5)


def test_of_damaged_best_ones_the_next_best_is_taken(tmp_path):
    written(tmp_path, (3, 0.5), (5, 0.1), (7, 0.3), (9, None))
    damage(tmp_path / "5" / "params", "empty")
    said = []
    checkpoints = opened(tmp_path, say=said.append)
    assert checkpoints.best == 5
    same(checkpoints.restore_best(items(0)), 7)
    assert said[0].startswith("checkpoint 5 cannot be used (")
    assert said[0].endswith("): trying the next best")
    assert (checkpoints.best, steps(tmp_path)) == (7, [3, 7, 9])
    for step in (3, 7):
        damage(tmp_path / str(step) / "params", "gone")
    assert checkpoints.restore_best(items(0)) is None
    same(checkpoints.restore(items(0)), 9)
    written(tmp_path / "other", (3, None))
    assert opened(tmp_path / "other").restore_best(items(0)) is None


def test_values_that_orbax_reads_without_a_word_are_told_by_their_sums(tmp_path, monkeypatch):
    """In uncompressed data a flipped byte gives another number and no error."""
    written(tmp_path, (3, None), (5, None))
    checkpoints, said = opened(tmp_path), []
    checkpoints.say = said.append
    original = checkpoints._manager.restore

    def flipped(step, args):
        found = original(step, args=args)
        if step == 5 and "params" in found:
            found["params"]["w"] = found["params"]["w"].at[3, 4].set(jnp.float32(5.0000005))
        return found

    monkeypatch.setattr(checkpoints._manager, "restore", flipped)
    same(checkpoints.restore(items(0)), 3)
    assert "params has other values than were saved" in said[0]


def test_where_none_fits_nothing_is_removed(tmp_path):
    written(tmp_path, (3, None), (5, None))
    other = {**items(0), "params": {"another": jnp.zeros(7)}}
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* use another --workdir"):
        opened(tmp_path, say=lambda text: None).restore(other)
    assert steps(tmp_path) == [3, 5]


def test_a_mean_that_was_not_kept_is_named(tmp_path):
    written(tmp_path, (3, None))
    with pytest.raises(CheckpointError, match=r"fits this run or can be used \(it has no ema\)"):
        opened(tmp_path, say=lambda text: None).restore({**items(0), "ema": items(0)["params"]})


def test_a_full_disk_is_one_line_and_the_checkpoint_before_is_good(tmp_path):
    written(tmp_path, (3, None))
    command = [sys.executable, "-m", "tests.full_disk", str(tmp_path)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    assert said.startswith(f"a checkpoint cannot be written into {tmp_path} by step 5 (")
    assert "make room there and start again; those before it are good" in said
    assert said.count("\n") == 1
    again = opened(tmp_path)
    same(again.restore(items(0)), 3)
    again.save(5, items(5))
    again.close()
    same(opened(tmp_path).restore(items(0)), 5)


def test_a_folder_in_a_store_stays_when_all_that_is_unfinished_goes(bucket):
    """Otherwise another process of the run, which saw the folder, would list nothing and end."""
    folder = bucket / "checkpoints"
    (folder / f"3{TEMPORARY}" / "x").write_bytes(b"x")
    checkpoints = opened(folder)
    assert checkpoints.complete is None
    until = time.monotonic() + 20
    while names_in(folder) != [STAYS]:  # Orbax removes the others in a thread
        assert time.monotonic() < until, names_in(folder)
        time.sleep(0.05)
    checkpoints.close()

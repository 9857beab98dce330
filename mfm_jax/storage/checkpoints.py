"""Save and restore a training run. A checkpoint is complete, as its checksums tell, or absent."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mfm_jax.errors import UserError, first_line, full_disk
from mfm_jax.runtime import signals
from mfm_jax.runtime.sharding import copied
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.array_sums import sums
from mfm_jax.storage.files import flush_tree, remove_folder
from mfm_jax.storage.paths import user_path

ABOUT = "about"
"""The item of a checkpoint that holds its checksums and its score."""
TEMPORARY = ".orbax-checkpoint-tmp"
"""How the names of unfinished checkpoints end."""
STAYS = ".folder"
"""An object beside the checkpoints in a store, where a folder ends with its last object."""


class CheckpointError(UserError):
    """A run whose checkpoints cannot be used or written; the message says what to do."""


def check_place(folder: Path) -> None:
    """Check that checkpoints can be written into a folder: on a disk, or in Google's store.

    Raises:
        CheckpointError: Orbax takes its address for a relative path.
    """
    if isinstance(folder, StorePath) and not str(folder).startswith("gs://"):
        raise CheckpointError(
            f"{folder} cannot hold the checkpoints of a run: use a folder of a disk, a mounted "
            "bucket, or gs://"
        )


class Checkpoints:
    """The checkpoints of one run: the last `keep` of them, and the one with the lowest score.

    Saves run in the background while training goes on. All processes of a run must make the same
    calls.
    """

    def __init__(self, folder: Path, *, keep: int, say: Callable[[str], None] = print) -> None:
        self.folder, self.keep, self.say = user_path(folder).resolve(), keep, say
        if isinstance(self.folder, StorePath) and jax.process_index() == 0:
            # This process may remove an unfinished checkpoint between two looks of another one,
            # which Orbax ends if there was nothing else.
            (self.folder / STAYS).write_bytes(b"")
        self._manager = ocp.CheckpointManager(
            os.fspath(self.folder),
            options=ocp.CheckpointManagerOptions(
                cleanup_tmp_directories=True,
                # Otherwise Orbax waits for minutes for a folder that cannot be made.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            ),
        )
        self._scores: dict[int, float] = {}
        self._ending = ExitStack()
        self._unflushed: int | None = None  # the last step that was saved
        for step in self._manager.all_steps():
            try:
                self._scores[step] = float(self._about(step)["score"])
            except Exception:
                self._scores[step] = math.inf  # `restore` will report it

    def __enter__(self) -> "Checkpoints":
        self._ending.enter_context(signals.undone(self._remove_unfinished))
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """Let a save in the background end, and remove what is left of one that failed."""
        if kind is not None:
            with suppress(Exception):
                self._manager.wait_until_finished()
            self._remove_unfinished()
        self._ending.close()

    def _remove_unfinished(self) -> None:
        for unfinished in self.folder.glob(f"*{TEMPORARY}"):
            remove_folder(unfinished)

    @property
    def best(self) -> int | None:
        """The step of the checkpoint with the lowest score, if any has one."""
        return next(iter(self._ranked()), None)

    @property
    def complete(self) -> int | None:
        """The step of the newest checkpoint that is whole now, if there is any."""
        return max(self._manager.all_steps(read=True), default=None)

    def would_be_best(self, score: float | None) -> bool:
        """Return whether a checkpoint with this score would be the best."""
        return score is not None and score < min(self._scores.values(), default=math.inf)

    def save(self, step: int, items: Mapping[str, Any], *, score: float | None = None) -> None:
        """Store `items`, which are trees of arrays; empty trees are left out.

        Raises:
            CheckpointError: this save or the one before it cannot be written; earlier ones are
                intact.
        """
        if step in self._scores:
            return
        trees = {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}
        if jax.default_backend() == "cpu":
            # On other devices Orbax copies the arrays to the host before it returns. On a CPU it
            # would read buffers that the next step overwrites, as the step donates them.
            trees = copied(trees)
        score = math.inf if score is None else score
        about = {
            "sums": {name: sums(tree) for name, tree in trees.items()},
            "arrays": {name: shapes(tree) for name, tree in trees.items()},
            "score": score,
        }
        args = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        args[ABOUT] = ocp.args.JsonSave(about)
        self._wait(step)
        self._tidy(max(1, self.keep - 1))  # one stays until the new one is complete
        try:
            self._manager.save(step, args=ocp.args.Composite(**args), force=True)
        except Exception as error:
            raise self._unwritten(step, error) from None
        self._scores[step], self._unflushed = score, step

    def restore(self, like: Mapping[str, Any], step: int | None = None) -> dict[str, Any] | None:
        """Return the items of the newest complete checkpoint, or of `step`; None if there is none.

        The checkpoint may come from other processes and another mesh.

        Args:
            like: some or all items, with the structure, shapes and types that were saved: arrays or
                `ShapeDtypeStruct`s with the shardings that the restored arrays get.

        Raises:
            CheckpointError: there are checkpoints, but none can be used.
        """
        steps = sorted(self._scores, reverse=True) if step is None else [step]
        found, reason = self._first_whole(steps, like, "trying the one before")
        if found is None and steps:
            raise CheckpointError(
                f"no checkpoint in {self.folder} fits this run or can be used ({reason}): use "
                "another --workdir, or remove that folder to start again"
            )
        return found

    def restore_best(self, like: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the items of the complete checkpoint with the lowest score; None if there is none.

        Args:
            like: as in `restore`.
        """
        return self._first_whole(self._ranked(), like, "trying the next best")[0]

    def close(self) -> None:
        """Wait for the last save and release the folder.

        Raises:
            CheckpointError: the last save cannot be written.
        """
        self._wait(max(self._scores, default=0))
        self._tidy(self.keep)
        self._manager.close()

    def _ranked(self) -> list[int]:
        """Return the steps of the checkpoints that have a score, the lowest score first."""
        known = {step: score for step, score in self._scores.items() if score < math.inf}
        return sorted(known, key=lambda step: known[step])

    def _first_whole(
        self, steps: Sequence[int], like: Mapping[str, Any], then: str
    ) -> tuple[dict[str, Any] | None, str]:
        """Return the items of the first of `steps` that can be read, or why the last could not."""
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), dict(like)
        )
        unusable, reason = [], ""
        for step in steps:
            try:
                found = self._read(step, like)
            except Exception as error:
                # Orbax and tensorstore raise many types for missing, damaged or other files.
                reason = first_line(error)[:200]
                self.say(f"checkpoint {step} cannot be used ({reason}): {then}")
                unusable.append(step)
                continue
            for bad in unusable:
                self._delete(bad)  # otherwise this step could not be saved again
            return found, ""
        return None, reason

    def _read(self, step: int, like: Mapping[str, Any]) -> dict[str, Any]:
        """Return the items of one checkpoint.

        Raises:
            ValueError: there are other arrays, or their checksums are not those that were saved.
                Orbax raises other types.
        """
        wanted = {name: tree for name, tree in like.items() if jax.tree.leaves(tree)}
        about = self._about(step)
        saved = about.get("arrays", {})  # version 0.1 did not list them
        for name in wanted:
            if name not in about["sums"]:
                raise ValueError(f"it has no {name}")
            if name in saved:
                _check_same(name, shapes(wanted[name]), saved[name])
        args = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        found = self._manager.restore(step, args=ocp.args.Composite(**args))
        for name in wanted:
            if sums(found[name]) != about["sums"][name]:
                raise ValueError(f"{name} has other values than were saved")
        return {name: found[name] if name in wanted else tree for name, tree in like.items()}

    def _about(self, step: int) -> dict[str, Any]:
        args = ocp.args.Composite(**{ABOUT: ocp.args.JsonRestore()})
        return self._manager.restore(step, args=args)[ABOUT]

    def _wait(self, step: int) -> None:
        """Wait until the last save is complete and on the disk, before older ones are deleted."""
        try:
            self._manager.wait_until_finished()
            if self._unflushed is not None and jax.process_index() == 0:
                flush_tree(self.folder / str(self._unflushed))
        except Exception as error:
            raise self._unwritten(step, error) from None
        self._unflushed = None

    def _tidy(self, keep: int) -> None:
        """Delete all checkpoints but the last `keep` and the best."""
        steps = sorted(self._scores)
        for step in steps[: max(0, len(steps) - keep)]:
            if step != self.best:
                self._delete(step)

    def _delete(self, step: int) -> None:
        self._manager.delete(step)
        del self._scores[step]

    def _unwritten(self, step: int, error: Exception) -> CheckpointError:
        reason = full_disk(error) or first_line(error)[:200]
        return CheckpointError(
            f"a checkpoint cannot be written into {self.folder} by step {step} ({reason}): "
            "make room there and start again; those before it are good"
        )


def shapes(tree: Any) -> dict[str, str]:
    """Return the type and the shape of each array of `tree`, by its place."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{x.dtype} {list(x.shape)}" for path, x in leaves}


def _check_same(item: str, wanted: Mapping[str, str], saved: Mapping[str, str]) -> None:
    for place in {**wanted, **saved}:
        if wanted.get(place) != saved.get(place):
            found, needed = saved.get(place, "absent"), wanted.get(place, "absent")
            raise ValueError(f"{item}{place} is {found}, should be {needed}")

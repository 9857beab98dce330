"""Saving and restoring a training run: each save is whole or not there."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp


class CheckpointError(ValueError):
    """A run whose checkpoints cannot be used; the message says what to do."""


class Checkpoints:
    """The checkpoints of one run, the last `keep` of them."""

    def __init__(self, folder: Path, *, keep: int, say: Callable[[str], None] = print) -> None:
        self.folder, self.say = Path(folder).resolve(), say
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                cleanup_tmp_directories=True,
                # The step reuses the memory of its state: on a CPU a save that goes on in the
                # background would read the next step's weights.
                enable_async_checkpointing=False,
            ),
        )

    def save(self, step: int, items: Mapping[str, Any]) -> None:
        """Store `items`: trees of arrays; empty ones are left out. All processes must call this."""
        if step in self._manager.all_steps():
            return
        trees = {
            n: ocp.args.StandardSave(tree) for n, tree in items.items() if jax.tree.leaves(tree)
        }
        self._manager.save(step, args=ocp.args.Composite(**trees), force=True)

    def restore(self, like: Mapping[str, Any]) -> dict[str, Any] | None:
        """The items of the newest checkpoint that can be read, or None where there is none.

        They may have been saved by other processes on another mesh.

        Args:
            like: items of the same structure, shapes and types, as arrays or `ShapeDtypeStruct`s
                on the devices that the restored ones shall lie on.

        Raises:
            CheckpointError: there are checkpoints, but none can be read.
        """
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), dict(like)
        )
        trees = {n: ocp.args.StandardRestore(t) for n, t in like.items() if jax.tree.leaves(t)}
        unreadable, reason = [], ""
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._manager.restore(step, args=ocp.args.Composite(**trees))
            except Exception as error:
                # Orbax and tensorstore raise many kinds for missing, damaged or unlike files.
                reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
                self.say(f"checkpoint {step} cannot be read ({reason}): trying the one before")
                unreadable.append(step)
                continue
            for bad in unreadable:
                self._manager.delete(bad)  # or this step could not be saved again
            return {n: found[n] if n in trees else tree for n, tree in like.items()}
        if unreadable:
            raise CheckpointError(
                f"no checkpoint in {self.folder} fits this run or can be read ({reason}): use "
                "another --workdir, or remove that folder to start again"
            )
        return None

    def close(self) -> None:
        """End all saving."""
        self._manager.close()

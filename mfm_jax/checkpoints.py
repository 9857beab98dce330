"""Saving and restoring a training run: each save is whole or not there."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain
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

    def save(self, step: int, items: Mapping[str, Any], data: grain.DatasetIterator) -> None:
        """Store `items` (trees of arrays; empty ones are left out) and the position in `data`."""
        if step in self._manager.all_steps():
            return
        trees = {
            n: ocp.args.StandardSave(tree) for n, tree in items.items() if jax.tree.leaves(tree)
        }
        position = grain.checkpoint.CheckpointSave(data)
        self._manager.save(step, args=ocp.args.Composite(**trees, data=position), force=True)

    def restore(
        self, like: Mapping[str, Any], data: grain.DatasetIterator
    ) -> dict[str, Any] | None:
        """The items of the newest checkpoint that can be read, or None where there is none.

        Args:
            like: items of the same structure, shapes and types, arrays or not.
            data: is set to where it was.

        Raises:
            CheckpointError: there are checkpoints, but none can be read.
        """
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), dict(like)
        )
        trees = {n: ocp.args.StandardRestore(t) for n, t in like.items() if jax.tree.leaves(t)}
        unreadable, reason = [], ""
        for step in sorted(self._manager.all_steps(), reverse=True):
            position = grain.checkpoint.CheckpointRestore(data)
            try:
                found = self._manager.restore(step, args=ocp.args.Composite(**trees, data=position))
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

"""The folder of a run, which belongs to one run, and to one process at a time."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax

from mfm_jax.errors import UserError
from mfm_jax.runtime.config import to_json
from mfm_jax.storage.checkpoints import check_place
from mfm_jax.storage.files import check_folder, write_text
from mfm_jax.storage.locks import claimed_folder
from mfm_jax.storage.paths import array_path
from mfm_jax.train.recipe import TrainConfig

CONFIG = "config.json"
CHECKPOINTS = "checkpoints"


class WorkdirError(UserError):
    """A folder that belongs to another run or process; the message says what to do."""


@contextmanager
def claimed(workdir: Path, config: TrainConfig) -> Iterator[dict[str, tuple[Any, Any]]]:
    """Hold `workdir` for this run; yield what changed since the run began, by field.

    Nothing that is there is changed. Of several processes of a run the first one holds the folder.

    Raises:
        CheckpointError: checkpoints cannot be written there.
        WorkdirError: another process trains there, or the run there has another seed or a config
            that cannot be read.
        WriteError: nothing can be written there.
    """
    check_place(array_path(workdir))
    if jax.process_index() != 0:
        yield _changes(workdir, config)
        return
    for folder in (array_path(workdir), workdir / CHECKPOINTS):
        check_folder(folder)
    new = not workdir.exists()
    with claimed_folder(workdir / CHECKPOINTS) as alone:
        if not alone:
            raise WorkdirError(
                f"another process trains in {workdir}: wait for its end or use another --workdir"
            )
        try:
            yield _changes(workdir, config)
        finally:
            with suppress(OSError):  # it was refused before anything was made
                (workdir / CHECKPOINTS).rmdir()
                if new:
                    workdir.rmdir()


def record(workdir: Path, config: TrainConfig) -> None:
    """Write down the config of the run."""
    write_text(workdir / CONFIG, json.dumps(to_json(config), indent=1) + "\n")


def tell(changes: Mapping[str, tuple[Any, Any]], config: TrainConfig, done: int) -> list[str]:
    """Return lines about what is different for a run that goes on after `done` steps."""
    lines = []
    others = [name for name in changes if name not in ("batch", "steps")]
    if "batch" in changes:
        before = changes["batch"][0]
        lines.append(
            f"the batch was {before} clips and is {config.batch} from step {done} on: the clips go "
            f"on at place {done * config.batch} of their order and not at {done * before}, so some "
            "come again or are left out"
        )
    if config.steps < done:
        lines.append(
            f"{done} steps are done, more than the {config.steps} of the config: the run ends at "
            f"step {done}"
        )
    elif "steps" in changes:
        others.append("steps")
    if others:
        told = ", ".join(f"{n} {_brief(changes[n][0])} -> {_brief(changes[n][1])}" for n in others)
        lines.append(f"changed since the run began: {told}")
    return lines


def _changes(workdir: Path, config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Return the fields that changed since the run began; none if it begins now.

    Raises:
        WorkdirError: the run has another seed, or its config cannot be read.
    """
    before, now = _recorded(workdir), _flat(to_json(config))
    changes = {n: (before[n], v) for n, v in now.items() if n in before and before[n] != v}
    if "seed" in changes and _has_checkpoints(workdir):
        raise WorkdirError(
            f"{workdir} has a run with seed {changes['seed'][0]}, not {config.seed}: use another "
            "--workdir, or remove that one"
        )
    return changes


def _recorded(workdir: Path) -> dict[str, Any]:
    """Return the config that the run began with, by field; empty if none is written down.

    Raises:
        WorkdirError: a file that is something else has its name.
    """
    file = workdir / CONFIG
    try:
        found = _flat(json.loads(file.read_bytes()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        found = {}
    if any(name.startswith("recipe.") for name in found):
        return found
    raise WorkdirError(
        f"{file} is damaged, or not the config of a run: use another --workdir, or remove the file "
        "if there is a run with the same seed"
    )


def _flat(data: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(data, dict):
        return {prefix.removesuffix("."): data}
    parts = [_flat(value, f"{prefix}{name}.") for name, value in data.items()]
    return {name: value for part in parts for name, value in part.items()}


def _has_checkpoints(workdir: Path) -> bool:
    return any(path.name.isdigit() for path in (workdir / CHECKPOINTS).glob("*"))


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."

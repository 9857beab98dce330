"""Simulate a full disk; as a program, save a checkpoint to it.

    python -m tests.full_disk FOLDER

Prints the error, for `test_checkpoints.py`. It is a process of its own because Orbax leaves writes
behind when one fails.
"""

import logging
import resource
import sys
from contextlib import contextmanager
from pathlib import Path

from mfm_jax.storage.checkpoints import CheckpointError, Checkpoints


@contextmanager
def full_disk():
    """Limit files to 16 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def main(folder: str) -> None:
    from tests.storage.test_checkpoints import items

    logging.disable()
    checkpoints = Checkpoints(Path(folder), keep=9)
    with full_disk():
        try:
            checkpoints.save(5, items(5))
            checkpoints.close()
        except CheckpointError as error:
            print(error, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A process of `test_checkpoints.py`: saves where the system refuses to write, as on a full disk.

    python -m tests.full_disk FOLDER

Prints the error. It is a process of its own because Orbax leaves writes behind when one fails.
"""

import logging
import resource
import sys
from pathlib import Path

from mfm_jax.checkpoints import CheckpointError, Checkpoints


def main(folder: str) -> None:
    from tests.test_checkpoints import items

    logging.disable()
    checkpoints = Checkpoints(Path(folder), keep=9)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))
    try:
        checkpoints.save(5, items(5))
        checkpoints.close()
    except CheckpointError as error:
        print(error, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The commands of a journey, as the processes of `tests.journey` run them."""

import contextlib
import io
import os
from collections.abc import Sequence

from mfm_jax.cli import main as mfm
from mfm_jax.runtime import distributed
from train import main as train

SECONDS = "3"
"""How long the lease of a worker is good in these runs."""


def command(words: Sequence[str]) -> str:
    """Run a command in this process; return what it printed.

    Raises:
        RuntimeError: it failed.
    """
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = (train if words[0] == "train" else mfm)(words[1:] if words[0] == "train" else words)
    if code != 0:
        raise RuntimeError(f"{' '.join(words)} ends with {code}: {out.getvalue()}")
    return out.getvalue()


def worker(
    words: Sequence[Sequence[str]], number: int, coordinator: str | None, processes: int
) -> str:
    """Run commands, one after the other, that several processes run together."""
    os.environ["MFM_LEASE_SECONDS"] = SECONDS
    if coordinator is not None:
        distributed.start(distributed.Processes(False, coordinator, processes, number))
    return "".join(map(command, words))

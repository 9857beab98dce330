"""The work of processes of `test_mesh.py`: several runs of `train.py`, one after the other."""

import argparse
import contextlib
import io
from collections.abc import Mapping, Sequence

from mfm_jax.cli import arguments
from mfm_jax.runtime import distributed
from train import main


def run(words: Sequence[str]) -> dict[str, object]:
    """Return the exit code and the output of one run."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        code = main(words)
    return {"code": code, "stdout": out.getvalue(), "stderr": errors.getvalue()}


def run_all(
    runs: Mapping[str, Sequence[str]], processes: Sequence[str] = ()
) -> dict[str, dict[str, object]]:
    """Return what each run gives by its name.

    Args:
        runs: the words of a command line by the name of the run.
        processes: words that tell this process of the others, if there are any.
    """
    parser = argparse.ArgumentParser()
    arguments.add_processes(parser)
    distributed.start(arguments.processes(parser.parse_args(processes)))
    return {name: run(words) for name, words in runs.items()}

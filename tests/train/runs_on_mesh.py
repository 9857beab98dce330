"""A process of `test_mesh.py`: several runs of `train.py`, one after the other.

    python -m tests.train.runs_on_mesh RUNS [--coordinator HOST:PORT --processes N --process I]

`RUNS` is a JSON object: the words of a command line by the name of the run. Prints JSON: the exit
code of each run, and what it wrote to stdout and stderr.
"""

import argparse
import contextlib
import io
import json
from collections.abc import Sequence

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


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=json.loads)
    arguments.add_processes(parser)
    args = parser.parse_args()
    distributed.start(arguments.processes(args))
    print(json.dumps({name: run(words) for name, words in args.runs.items()}))

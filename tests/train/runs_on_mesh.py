"""A process of `test_mesh.py`: several runs of `train.py`, one after the other.

    python -m tests.train.runs_on_mesh RUNS

`RUNS` is a JSON object: the words of a command line by the name of the run. Prints JSON: the exit
code of each run and what it wrote to stderr.
"""

import contextlib
import io
import json
import sys
from collections.abc import Sequence

from train import main


def run(words: Sequence[str]) -> dict[str, object]:
    """Return the exit code and the errors of one run."""
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(words)
    return {"code": code, "stderr": errors.getvalue()}


if __name__ == "__main__":
    print(json.dumps({name: run(words) for name, words in json.loads(sys.argv[1]).items()}))

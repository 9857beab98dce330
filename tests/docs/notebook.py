"""docs/quickstart.ipynb, whose cells run in this process, one after another, as in a kernel.

A kernel would take seconds to start, and show nothing more.
"""

import ast
import json
from pathlib import Path

PATH = Path(__file__).parents[2] / "docs" / "quickstart.ipynb"
CELLS = [cell for cell in json.loads(PATH.read_text())["cells"] if cell["cell_type"] == "code"]


def run(cell: dict, names: dict) -> object:
    """Run a cell and return the value of its last expression, which a notebook shows."""
    body = ast.parse("".join(cell["source"])).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), str(PATH), "exec"), names)
    return last and eval(compile(ast.Expression(last.value), str(PATH), "eval"), names)

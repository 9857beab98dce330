"""The PyTorch program of docs/mapper_in_pytorch.md, for benchmarks and tests."""

import re
import sys
from pathlib import Path
from types import ModuleType

DOCUMENT = Path(__file__).parents[1] / "docs" / "mapper_in_pytorch.md"


def program() -> ModuleType:
    """Run the document's program as a module; errors in it refer to lines of the document.

    Raises:
        ValueError: the document has no program or several.
    """
    text = DOCUMENT.read_text()
    before, source, _ = re.split(r"^```(?:python)?\n", text, flags=re.MULTILINE)
    module = ModuleType("mapper_in_pytorch")
    source = "\n" * before.count("\n") + "\n" + source
    sys.modules[module.__name__] = module  # torch.compile looks up functions by their module
    exec(compile(source, str(DOCUMENT), "exec"), module.__dict__)
    return module

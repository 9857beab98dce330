"""The PyTorch program of docs/mapper_in_pytorch.md, for benchmarks and tests."""

import re
import sys
from pathlib import Path
from types import ModuleType

DOCUMENT = Path(__file__).parents[1] / "docs" / "mapper_in_pytorch.md"


def program() -> ModuleType:
    """Run the document's program as a module; errors in it refer to lines of the document.

    Raises:
        ValueError: the document does not have the program and its use, and no other block.
    """
    source, _ = _blocks()
    module = ModuleType("mapper_in_pytorch")
    sys.modules[module.__name__] = module  # torch.compile looks up functions by their module
    exec(compile(source, str(DOCUMENT), "exec"), module.__dict__)
    return module


def use(module: ModuleType) -> None:
    """Run the document's use of the program; the mapper is read from `mapper/`."""
    _, source = _blocks()
    exec(compile(source, str(DOCUMENT), "exec"), module.__dict__)


def _blocks() -> list[str]:
    """Return the blocks of Python, each below as many lines as in the document."""
    text = DOCUMENT.read_text()
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text.count("\n", 0, m.start(1)) + m[1] for m in found]

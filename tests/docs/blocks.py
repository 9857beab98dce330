"""The documents and their blocks of code.

A block is fenced and has a language. What stands in a `sh` or `python` block is run by
`test_code.py`, unless the line above its fence is `<!-- not run: REASON -->`, which readers do
not see: then its commands are only parsed. Other languages, such as `text`, are not code.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
CODE = ("sh", "python")
SHOWN = ("text", "csv", "json", "css", "ini", "toml", "yaml")
FENCE = re.compile(
    r"(?:^[ ]*<!-- not run: (?P<reason>[^\n]+) -->\n)?"
    r"^(?P<indent>[ ]*)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    reason: str | None
    """Why it is not run, if it is not."""

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    def commands(self) -> list[str]:
        """The commands of a `sh` block, each on one line, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        words = (shlex.split(line, comments=True) for line in lines)
        return [line.strip() for line, w in zip(lines, words, strict=True) if w]


def blocks(page: Path) -> list[Block]:
    """Return all blocks of a page."""
    text = page.read_text()
    return [
        Block(
            page,
            text.count("\n", 0, m.start("language")) + 1,
            m["language"],
            m["text"],
            m["reason"],
        )
        for m in FENCE.finditer(text)
    ]


ALL = [block for page in PAGES for block in blocks(page)]

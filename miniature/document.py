"""Writes the results into the tables of `docs/miniature.md` and `docs/timing.md`."""

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mfm_jax.cli import arguments as options
from mfm_jax.data.clips import DataError
from mfm_jax.foley.world import KINDS
from mfm_jax.storage.files import write_text

RESULTS = Path("docs/miniature")
"""Folder of the results; the documents that show them are beside it."""
DOCUMENTS = (RESULTS.with_suffix(".md"), RESULTS.with_name("timing.md"))
"""The documents with blocks that results are written into."""
NOT_RUN = "not run yet"
LABELS = {
    "onset_f1_50": "onset F1 50 ms",
    "onset_f1_100": "onset F1 100 ms",
    "material": "material",
    "event_f1": "event F1",
    "log_mel": "log-mel",
    "onsets_per_second": "onsets/s",
}
"""Titles of columns, by the names in `Heard.scores`."""
POINTS = ("onset_f1_50", "onset_f1_100", "material", "event_f1")
"""Scores that are shares; the best value is 1."""
WAYS = {
    "real": "real",
    "vocoder": "vocoder",
    "vae": "vae",
    "loa": "true LOA",
    "video": "video",
    "shuffled": "shuffled",
    "normalised": "normalised",
}
"""Titles of rows, from the best sound to the worst."""
BY_KIND = ("event_f1", "onset_f1_100")

Table = dict[str, Any]
"""`title`, `columns` (their titles) and `rows` (lists of cells, one for each column)."""

_MARK = re.compile(r"^<!-- (begin|end) (\S+) -->$", re.MULTILINE)


def fill(text: str, results: Path) -> str:
    """Return `text` with the contents of every block written anew from `results/NAME.json`.

    A block is what stands between the lines `<!-- begin NAME -->` and `<!-- end NAME -->`.

    Raises:
        DataError: a block has no end, or a result cannot be read.
    """
    pieces, after = [], 0
    marks = list(_MARK.finditer(text))
    for begin, end in zip(marks[::2], marks[1::2], strict=False):
        if (begin[1], end[1], begin[2]) != ("begin", "end", end[2]):
            raise DataError(
                f"block {begin[2]} is followed by {end[0]}: end it before the next block"
            )
        pieces += [text[after : begin.end()], "\n", block(results, begin[2])]
        after = end.start()
    if len(marks) % 2:
        raise DataError(f"{marks[-1][0]} has no counterpart: add the other line of the block")
    return "".join([*pieces, text[after:]])


def block(results: Path, name: str) -> str:
    """Return the contents of one block as Markdown that ends with a line break.

    Raises:
        DataError: the result exists but cannot be read.
    """
    path = results / f"{name}.json"
    if not path.exists():
        return f"{NOT_RUN}\n"
    try:
        found = json.loads(path.read_text())
        tables = found["tables"] if "tables" in found else score_tables(found["scores"])
        parts = [markdown(table) for table in tables]
        if "figure" in found:
            parts.append(f"![{name}]({results.name}/{found['figure']})\n")
        if "command" in found:
            parts.append(made_by(found))
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise DataError(f"{path} is not a result: remove it or run its command again") from None
    return "\n" + "\n".join(parts) + "\n"


def made_by(found: Mapping[str, Any]) -> str:
    """Return a line with the command that made a result and, if known, how long it took."""
    spent = f", {found['seconds']:.0f} s" if "seconds" in found else ""
    return f"Made by `{found['command']}`{spent}\n"


def score_tables(scores: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Return tables of scores over all clips, and by the kind of motion of the first body."""
    there = [(way, label) for way, label in WAYS.items() if way in scores]
    rows = [[label, *(number(scores[way].get(name)) for name in LABELS)] for way, label in there]
    kinds = [kind for kind in KINDS if any(kind in scores[way] for way, _ in there)]
    parts = [(kind, name) for kind in kinds for name in BY_KIND]
    by_kind = [
        [label, *(number(scores[way][kind][name]) for kind, name in parts)]
        for way, label in there
        if kinds and kinds[0] in scores[way]
    ]
    columns = ["sound", *(f"{kind}: {LABELS[name]}" for kind, name in parts)]
    return [
        {"title": "All clips", "columns": ["sound", *LABELS.values()], "rows": rows},
        {"title": "By the motion of the first body", "columns": columns, "rows": by_kind},
    ]


def number(value: float | None, digits: int = 3) -> str:
    """Return a table cell with a number; empty if it is missing or not finite."""
    return "" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def markdown(table: Table) -> str:
    """Return a table as Markdown below its title.

    Raises:
        ValueError: a row does not have one cell for each column.
    """
    rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    lines = [_line(row, len(table["columns"])) for row in rows]
    return "\n".join([f"**{table['title']}**", "", *lines, ""])


def _line(cells: Sequence[Any], columns: int) -> str:
    if len(cells) != columns:
        raise ValueError(f"a row has {len(cells)} cells, the table has {columns} columns")
    shown = ("" if cell is None else str(cell).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(shown)} |"


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the options of `report`."""
    parser.add_argument(
        "--document", type=options.path, nargs="+", default=DOCUMENTS, help="Markdown files"
    )
    parser.add_argument(
        "--results", type=options.path, default=RESULTS, help="folder of JSON files"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit code 1 if a document is out of date",
    )
    parser.set_defaults(run=run_report)


def run_report(args: argparse.Namespace) -> None:
    """Update the documents, or check that they are up to date."""
    if missing := [path for path in args.document if not path.is_file()]:
        raise DataError(f"{missing[0]} does not exist: run this in the root of the repository")
    for document in args.document:
        text = document.read_text()
        filled = fill(text, args.results)
        if not args.check:
            write_text(document, filled)
        elif filled != text:
            sys.exit(f"{document} is out of date: run python -m miniature report")

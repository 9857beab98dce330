"""Manifests: a CSV or JSON Lines file with one request in each line.

A CSV begins with the names of its columns. Both know `file`, relative to the manifest's folder
or an address such as gs://bucket/a.mp4, and, each of them optional, `start` and `end` in seconds,
`prompt`, `negative_prompt`, `seed`, and `output`, the file below the folder of outputs. What is
empty or absent is as the command says.
"""

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from mfm_jax.data.clips import DataError, check_header
from mfm_jax.errors import UserError, first_line, system_reason
from mfm_jax.inference.requests import Request
from mfm_jax.runtime.seeds import check_seed
from mfm_jax.storage.addresses import is_mistyped_address
from mfm_jax.storage.paths import user_path
from mfm_jax.storage.retries import AddressError

SUFFIXES = (".csv", ".jsonl", ".ndjson")
FIELDS = ("file", "start", "end", "prompt", "negative_prompt", "seed", "output")


def is_manifest(path: Path) -> bool:
    """Return whether the name of a file is that of a manifest."""
    return path.suffix.lower() in SUFFIXES


def read_manifest(path: Path, default: Request) -> list[Request]:
    """Read the requests in a manifest, in order.

    Args:
        default: what holds where a line does not say it.

    Raises:
        DataError: it cannot be read, has no requests, or a line is wrong; names the first.
    """
    rows = _csv_rows if path.suffix.lower() == ".csv" else _json_rows
    requests = []
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            for line, row in rows(path, file):
                try:
                    requests.append(_request(path.parent, row, default))
                except UserError as error:
                    raise DataError(f"{path}, line {line}: {error}") from None
    except AddressError:
        raise
    except OSError as error:
        raise DataError(f"{path} cannot be read ({system_reason(error)}): name a file") from None
    except (csv.Error, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise DataError(f"{path} is no manifest ({first_line(error)}): save it again") from None
    if not requests:
        raise DataError(f"{path} asks for nothing: add a line for each video")
    return requests


def _csv_rows(path: Path, file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.DictReader(file, strict=True)
    check_header(path, rows.fieldnames or [])
    for row in rows:
        if None in row:
            raise DataError(f"{path}, line {rows.line_num} has more cells than columns")
        yield rows.line_num, row


def _json_rows(path: Path, file: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in enumerate(file, 1):
        if text.strip():
            try:
                row = json.loads(text)
            except ValueError as error:
                raise DataError(
                    f"{path}, line {number} is no JSON ({first_line(error)}): correct it"
                ) from None
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number} is no JSON object: correct it")
            yield number, row


def _check_names(names: Iterable[Any]) -> None:
    """Refuse a name that seems to be meant as another; what else a manifest holds is not read.

    Raises:
        DataError: there is one.
    """
    for name in names:
        if name not in FIELDS and (meant := get_close_matches(str(name), FIELDS, 1, 0.8)):
            raise DataError(f"{name!r:.100} is not known: do you mean {meant[0]!r}?")


def _request(folder: Path, row: Mapping[str, Any], default: Request) -> Request:
    """Return the request that a line makes.

    Raises:
        UserError: a field cannot be what it is.
    """
    _check_names(row)
    given = {
        name: row[name].strip() if isinstance(row[name], str) else row[name]
        for name in FIELDS
        if row.get(name) not in (None, "")
    }
    for name in ("file", "prompt", "negative_prompt", "output"):
        if not isinstance(given.get(name, ""), str) or "\0" in given.get(name, ""):
            raise DataError(f"{name} is {given[name]!r:.100}, not text")
    if not given.get("file"):
        raise DataError("no file is named")
    request = replace(
        default,
        source=_source(folder, given["file"]),
        start=_seconds("start", given.get("start", default.start)),
        end=_seconds("end", given["end"]) if "end" in given else default.end,
        prompt=given.get("prompt", default.prompt),
        negative_prompt=given.get("negative_prompt", default.negative_prompt),
        seed=_seed(given.get("seed", default.seed)),
        output=_inside(given["output"]) if "output" in given else None,
    )
    if request.end is not None and request.end <= request.start:
        raise DataError(f"it ends at {request.end:g} s and starts at {request.start:g} s")
    return request


def _source(folder: Path, name: str) -> Path:
    """Return the path of a video: an address, or one of this machine that may be relative."""
    if "://" in name or is_mistyped_address(name):
        return user_path(name)
    return Path(name) if os.path.isabs(name) else folder / name


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise DataError(f"{name} {value!r:.100} is no number of seconds")
    return seconds


def _seed(value: Any) -> int:
    try:
        seed = int(value) if isinstance(value, str | int) and not isinstance(value, bool) else None
    except ValueError:
        seed = None
    if seed is None:
        raise DataError(f"seed {value!r:.100} is no whole number")
    check_seed(seed)
    return seed


def _inside(output: str) -> str:
    """Return the name of an output, which lies below the folder of outputs."""
    path = PurePosixPath(output)
    if path.is_absolute() or ".." in path.parts or path.name.startswith("."):
        raise DataError(f"output {output!r:.200} does not lie below the folder of outputs")
    return str(path)

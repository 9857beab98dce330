"""Lists of clips: a folder of videos, or a CSV that names them."""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
"""Files that a folder is searched for."""


class DataError(ValueError):
    """A list of clips or a dataset folder that cannot be used; the message says what to do."""


@dataclass(frozen=True, order=True)
class Clip:
    """A piece of a video file."""

    id: str  # its name everywhere else, one of a kind in its list
    path: Path
    start: float = 0.0  # s, where it begins in the file


def list_clips(source: Path) -> list[Clip]:
    """The clips of a folder of videos, or of a CSV with a header, in the order of their ids.

    The CSV has a column `file`, relative to the CSV's folder, and may have `start` in seconds and
    `id`. Without `id` a clip is named by its file without the suffix, and by its start where that
    is not 0. Files are not opened.

    Raises:
        DataError: there is nothing there, the CSV cannot be understood, or two clips have one id.
    """
    source = Path(source)
    if source.is_dir():
        clips = [_named(source, path.name) for path in videos_in(source)]
    elif source.is_file():
        clips = _read_csv(source)
    else:
        raise DataError(f"{source} does not exist: give a folder of videos or a CSV")
    return _one_of_a_kind(clips, source)


def videos_in(folder: Path) -> list[Path]:
    """The videos that lie in a folder itself, by name.

    Raises:
        DataError: there is none.
    """
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES)
    if not found:
        raise DataError(f"no video in folder {folder} ({', '.join(VIDEO_SUFFIXES)})")
    return found


def _named(folder: Path, file: str, start: float = 0.0) -> Clip:
    name = Path(file).with_suffix("").as_posix()
    return Clip(f"{name}@{start:g}" if start else name, folder / file, start)


def _read_csv(source: Path) -> list[Clip]:
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            if "file" not in (rows.fieldnames or ()):
                have = ", ".join(rows.fieldnames or ()) or "nothing"
                raise DataError(
                    f"{source} has no column 'file' (its first line has {have}): "
                    "add a header line with that name"
                )
            clips = [_read_row(source, rows.line_num, row) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source} is not a CSV of UTF-8 text ({error}): save it as one") from None
    if not clips:
        raise DataError(f"{source} lists no clip: add a line for each")
    return clips


def _read_row(source: Path, line: int, row: dict) -> Clip:
    """The clip of one line."""
    file, start = (row["file"] or "").strip(), (row.get("start") or "0").strip()
    if not file:
        raise DataError(f"{source}, line {line}: no file is named")
    try:
        seconds = float(start)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise DataError(f"{source}, line {line}: start {start!r} is no number of seconds")
    clip = _named(source.parent, file, seconds)
    return Clip(name, clip.path, clip.start) if (name := (row.get("id") or "").strip()) else clip


def _one_of_a_kind(clips: Iterable[Clip], source: Path) -> list[Clip]:
    found: dict[str, Clip] = {}
    for clip in clips:
        if clip.id in found:
            raise DataError(
                f"{source}: {found[clip.id].path.name} and {clip.path.name} are both called "
                f"{clip.id!r}: rename one, or give each an id in the CSV"
            )
        found[clip.id] = clip
    return [found[name] for name in sorted(found)]

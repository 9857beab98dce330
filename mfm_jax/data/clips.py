"""Lists of clips: a folder of videos, a CSV that names them, or VGGSound's own CSV."""

import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from mfm_jax.errors import UserError
from mfm_jax.storage.paths import beside, user_path

VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
"""Suffixes of the files that a folder is searched for."""
SPLITS = ("train", "test")
"""The splits of VGGSound."""
SECONDS = re.compile("[0-9]{1,9}")
"""Its starts."""


class DataError(UserError):
    """A list of clips or a dataset folder that cannot be used; the message says what to do."""


@dataclass(frozen=True, order=True)
class Clip:
    """A piece of a video file."""

    id: str  # its name everywhere else, one of a kind in its list
    path: Path
    start: float = 0.0  # s, where it begins in the file
    split: str = field(default="", compare=False)  # that a CSV puts it in, if it does


def list_clips(source: Path, *, videos: Path | None = None, split: str | None = None) -> list[Clip]:
    """List the clips of a folder of videos, or of a CSV, in the order of their ids.

    A CSV with a header has a column `file` and may have `start` in seconds, `id` and `split`.
    Without `id` a clip is named after its file without the suffix, and its start if that is not 0.
    VGGSound's own CSV has no header: YouTube id, start in seconds, label, `train` or `test`. Its
    videos are the ten-second files that downloaders cut, named `ID_000030.mp4`, `ID_30.mp4` or
    `ID_30000_40000.mp4`, with any video suffix. Many are no longer available, so a clip without its
    video is listed as well. Files are not opened.

    Args:
        videos: the folder that a CSV's videos lie in; its own if not given.
        split: only the clips of this split of a CSV.

    Raises:
        DataError: there is nothing there, the CSV cannot be read or has no such split, or two clips
            have the same id.
    """
    source = user_path(source)
    if source.is_dir():
        if videos is not None or split is not None:
            raise DataError(f"{source} is a folder: a folder of videos and a split go with a CSV")
        clips = [_named(source, path.name) for path in videos_in(source)]
    elif source.is_file():
        clips = _read_csv(source, videos or source.parent, split)
    else:
        wrong = "is a device or a pipe" if source.exists() else "does not exist"
        raise DataError(f"{source} {wrong}: give a folder of videos or a CSV")
    return _one_of_a_kind(clips, source)


def videos_in(folder: Path) -> list[Path]:
    """List the videos directly in a folder, by name.

    Raises:
        DataError: there is none.
    """
    found = sorted(
        p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES and not is_hidden(p)
    )
    if not found:
        raise DataError(f"no video in folder {folder} ({', '.join(VIDEO_SUFFIXES)})")
    return found


def is_hidden(path: Path) -> bool:
    """Return whether a name begins with a dot: those of unfinished files do, and macOS's `._x.mp4`.

    No hidden file is a video, whatever its suffix.
    """
    return path.name.startswith(".")


def _named(folder: Path, file: str, start: float = 0.0) -> Clip:
    # The id is UTF-8 where the bytes of the name are, also if Python takes names for ASCII.
    name = os.fsencode(Path(file).with_suffix("").as_posix()).decode("utf-8", "surrogateescape")
    return Clip(f"{name}@{start:g}" if start else name, beside(folder, file), start)


def _read_csv(source: Path, videos: Path, split: str | None) -> list[Clip]:
    try:
        # Names of files need not be UTF-8.
        with source.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = csv.reader(file)
            first = next(rows, [])
            if _is_vggsound(first):
                found = list(_vggsound(source, videos, enumerate(chain([first], rows), 1)))
            else:
                check_header(source, first, split)
                named = csv.DictReader(file, first)
                found = [_read_row(source, videos, n, row) for n, row in enumerate(named, 2)]
    except csv.Error as error:
        raise DataError(f"{source} is not a CSV of UTF-8 text ({error}): save it as one") from None
    clips = [clip for clip in found if split in (None, clip.split)]
    if found and not clips:
        known = ", ".join(sorted({clip.split for clip in found}))
        raise DataError(f"{source} has no clip of the split {split!r}; it has {known}")
    if not clips:
        raise DataError(f"{source} lists no clip: add a line for each")
    return clips


def _vggsound(source: Path, videos: Path, rows: Iterable[tuple[int, list[str]]]) -> Iterator[Clip]:
    """Read VGGSound's lines."""
    there = {path.stem: path for path in videos_in(videos)}
    for line, row in rows:
        if not _is_vggsound(row):
            raise DataError(f"{source}, line {line} is not one of VGGSound: {','.join(row)}")
        start = int(row[1])
        usual = f"{row[0]}_{start:06d}"
        names = (usual, f"{row[0]}_{start}", f"{row[0]}_{1000 * start}_{1000 * (start + 10)}")
        path = next((there[n] for n in names if n in there), videos / f"{usual}.mp4")
        yield Clip(usual, path, split=row[3])


def _is_vggsound(row: list[str]) -> bool:
    return len(row) == 4 and SECONDS.fullmatch(row[1]) is not None and row[3] in SPLITS


def check_header(source: Path, columns: Sequence[str], split: str | None = None) -> None:
    """Check that the first line of a CSV names the column `file`, and `split` if one is wanted.

    Raises:
        DataError: it does not.
    """
    if "file" not in columns:
        have = ", ".join(columns) or "nothing"
        raise DataError(
            f"{source} has no column 'file' (its first line has {have}): "
            "add a header line with that name"
        )
    if split is not None and "split" not in columns:
        raise DataError(f"{source} has no column 'split' to choose {split!r} by")


def _read_row(source: Path, videos: Path, line: int, row: dict) -> Clip:
    """Read one line of a CSV with a header."""
    file, start = (row["file"] or "").strip(), (row.get("start") or "0").strip()
    if not Path(file).name:
        raise DataError(f"{source}, line {line}: no file is named")
    if any("\0" in str(value) for value in row.values()):
        raise DataError(f"{source} is not a CSV of UTF-8 text (line {line}): save it as one")
    try:
        seconds = float(start)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise DataError(f"{source}, line {line}: start {start!r} is no number of seconds")
    clip = _named(videos, os.fsdecode(file.encode("utf-8", "surrogateescape")), seconds)
    if not (_is_text(file) or clip.path.is_symlink() or clip.path.exists()):
        raise DataError(
            f"{source} is not a CSV of UTF-8 text (line {line}: no file is called {file!r}): save "
            "it as one"
        )
    name = (row.get("id") or "").strip() or clip.id
    return replace(clip, id=name, split=(row.get("split") or "").strip())


def _is_text(name: str) -> bool:
    """Return whether all bytes of `name` could be decoded."""
    return not any("\udc80" <= letter <= "\udcff" for letter in name)


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

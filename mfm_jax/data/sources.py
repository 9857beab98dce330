"""Where the clips of a training come from: video files, cached features, or a procedural world."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mfm_jax.bundle import UNKNOWN, combined
from mfm_jax.data.clips import Clip, DataError, list_clips
from mfm_jax.data.features import DESCRIPTION
from mfm_jax.data.records import Field, read_about
from mfm_jax.runtime.config import later
from mfm_jax.storage.files import check_folder
from mfm_jax.storage.paths import array_path, user_path

SPLITS = ("train", "heldout")
"""The folders of training and held-out clips, features and decoded clips."""


class Split(NamedTuple):
    """One thing for training and its counterpart for held-out clips."""

    train: Any
    heldout: Any


class Labels:
    """Reads labels of clips: arrays beside their pictures and their sound."""

    def fields(self) -> Mapping[str, Field]:
        """Return the arrays that `of` returns."""
        raise NotImplementedError

    def of(self, clip: Clip, seconds: float) -> dict[str, np.ndarray]:
        """Return the labels of the first `seconds` of a clip."""
        raise NotImplementedError


@dataclass(frozen=True)
class ClipSource:
    """The clips that a recipe learns from. In a config a plain string stands for `ClipFiles`."""

    licence = ""  # that features extracted from the clips record; empty: none

    @classmethod
    def from_text(cls, text: str) -> "ClipSource":
        """Read what a command line gives in place of a source: a path."""
        return ClipFiles(text)

    @property
    def labels(self) -> Labels | None:
        """The reader of the labels of these clips, if they have any."""
        return None

    @property
    def made(self) -> bool:
        """True if the source makes its clips: what is cached of them then needs no look at them."""
        return False

    @property
    def data_licence(self) -> str:
        """SPDX expression of the terms of these clips."""
        return UNKNOWN

    @property
    def limits(self) -> Split:
        """The most clips of each split that are used; None for all."""
        return Split(None, None)

    def check(self) -> None:
        """Check the files and folders that the source names; nothing is made.

        Raises:
            UserError: one of them cannot be used.
        """

    def clips(self, workdir: Path) -> Split:
        """Return the lists of training and held-out clips; files that can be made are made.

        Raises:
            DataError: there are no such clips.
        """
        raise NotImplementedError

    def features(self) -> Split | None:
        """Return the two folders of features if this source is features, else None."""
        return None

    def further_features(self) -> Split:
        """Return the lists of folders with further features of the same clips."""
        return Split([], [])

    def decoded(self, workdir: Path) -> Path:
        """Return the folder that decoded clips are cached in."""
        return workdir / "decoded"


@dataclass(frozen=True)
class ClipFiles(ClipSource):
    """Video files of one's own, or features extracted from them.

    `path` is one of these:

    - a folder with the folders `train` and `heldout`, of videos or of features (`mfm extract`);
    - a folder of videos, or a CSV without splits: some of the clips, chosen by their ids, are held
      out;
    - a CSV with splits, such as VGGSound's: those of `train` are for training, all others held out.
    """

    path: str = ""
    videos: str = ""  # folder that a CSV's videos lie in; empty: beside the CSV
    share: float = 0.1  # of the clips held out where nothing else says which
    limit: int | None = None  # training clips that are used, the first by their ids; None: all
    cache: str = ""  # folder of decoded clips, which recipes may share; empty: in the workdir
    licence: str = ""  # SPDX expression of the terms of the clips; empty: unknown
    # Folders with further features of the same clips, laid out as `path` is.
    beside: tuple[str, ...] = later(())

    @property
    def data_licence(self) -> str:
        if self.licence or not self.path or (folders := self.features()) is None:
            return self.licence or UNKNOWN
        every = [folders.train, *self.further_features().train]
        return combined(read_about(one / DESCRIPTION).get("licence", UNKNOWN) for one in every)

    @property
    def limits(self) -> Split:
        return Split(self.limit, None)

    def check(self) -> None:
        if self.cache:
            check_folder(array_path(self.cache))
        if self.features() is None:
            self.clips(Path())
        self.further_features()

    def clips(self, workdir: Path) -> Split:
        path, videos = self._path(), user_path(self.videos) if self.videos else None
        if self.features() is not None:
            raise DataError(
                f"{path} holds features, and this network learns from pictures and sound: set "
                "recipe.source to a folder of videos or a CSV"
            )
        if path.is_dir() and all((path / name).is_dir() for name in SPLITS):
            return Split(*(list_clips(path / name) for name in SPLITS))
        listed = list_clips(path, videos=videos)
        if any(clip.split for clip in listed):
            train = [clip for clip in listed if clip.split == "train"]
            heldout = [clip for clip in listed if clip.split != "train"]
        else:
            train, heldout = hold_out(listed, self.share)
        for name, clips in zip(SPLITS, (train, heldout), strict=True):
            if not clips:
                raise DataError(
                    f"{path} leaves no clip for {name}: add clips, or make the folders train and "
                    "heldout in it"
                )
        return Split(train, heldout)

    def features(self) -> Split | None:
        folders = Split(*(self._path() / name for name in SPLITS))
        there = [(folder / DESCRIPTION).is_file() for folder in folders]
        if (any(there) or self.beside) and not all(there):
            raise _no_features(folders[there.index(False)])
        return folders if all(there) else None

    def further_features(self) -> Split:
        found = Split(*([user_path(one) / name for one in self.beside] for name in SPLITS))
        for folder in (*found.train, *found.heldout):
            if not (folder / DESCRIPTION).is_file():
                raise _no_features(folder)
        return found

    def decoded(self, workdir: Path) -> Path:
        return array_path(self.cache) if self.cache else super().decoded(workdir)

    def _path(self) -> Path:
        if not self.path:
            raise DataError(
                "recipe.source is empty: set it to a folder of videos, a CSV, or a folder of "
                "features"
            )
        path = user_path(self.path)
        if not path.exists():
            raise DataError(f"recipe.source: {path} does not exist: check the path")
        return path


def _no_features(folder: Path) -> DataError:
    return DataError(f"there are no features in {folder}: extract them with mfm extract")


def hold_out(clips: list[Clip], share: float) -> tuple[list[Clip], list[Clip]]:
    """Split clips by their ids, so that a clip stays on its side when others join.

    At least two clips are held out, since some scores compare a clip with another, but never all.

    Args:
        share: expected share of held-out clips, from 0 to 1.
    """
    names = {clip: clip.id.encode("utf-8", "surrogateescape") for clip in clips}
    rank = {clip: int(sha256(name).hexdigest()[:8], 16) / 2**32 for clip, name in names.items()}
    order = sorted(clips, key=rank.__getitem__)
    count = sum(rank[clip] < share for clip in clips)
    count = min(max(count, 2), len(clips) - 1)
    return sorted(order[count:]), sorted(order[:count])

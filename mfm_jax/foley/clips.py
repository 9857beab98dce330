"""The Foley world as a source of clips, which are made if they are missing."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mfm_jax.data.clips import Clip
from mfm_jax.data.decoded import ClipSpec
from mfm_jax.data.sources import ClipSource, Split
from mfm_jax.errors import SettingError
from mfm_jax.foley.labels import FoleyLabels
from mfm_jax.foley.world import SPLITS, World, stage, write_world
from mfm_jax.storage.files import check_folder
from mfm_jax.storage.locks import one_at_a_time
from mfm_jax.storage.paths import local_path

WINDOW = ClipSpec.tiny().seconds
"""Seconds of each clip that a longer video is cut into."""

GRADES = {"base": World(), "hard": World.hard()}


@dataclass(frozen=True)
class FoleyClips(ClipSource):
    """Clips of one grade of the Foley world. Several runs may share a folder."""

    folder: str = ""  # folder of videos and decoded clips; empty: the workdir
    grade: str = "base"  # or "hard"
    train: int = 4096  # videos
    heldout: int = 256  # videos of other seeds
    # Frames per second of the training videos, taken in turn; the world's own if empty. A network
    # that is trained at one frame rate alone is worse at others.
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.grade not in GRADES:
            raise SettingError(f"source.grade is {' or '.join(GRADES)}, not {self.grade!r}")

    @property
    def labels(self) -> FoleyLabels:
        return FoleyLabels()

    @property
    def made(self) -> bool:
        return True

    @property
    def data_licence(self) -> str:
        return "Apache-2.0"

    @property
    def limits(self) -> Split:
        """The folder may hold more clips, from larger runs, so the base grade limits them.

        A video of the hard grade is cut into several clips, so its clips cannot be counted by seed.
        """
        return Split(self.train, self.heldout) if self.grade == "base" else Split(None, None)

    def check(self) -> None:
        if self.folder:
            check_folder(local_path(self.folder))

    def clips(self, workdir: Path) -> Split:
        world, folder = GRADES[self.grade], self._folder(workdir) / "clips"
        first = SPLITS["validation"].start
        train, heldout = range(self.train), range(first, first + self.heldout)
        rates = self.rates or (world.fps,)
        clips: list[Clip] = []
        for i, rate in enumerate(rates):
            videos = folder if rate == world.fps else folder / f"{rate:g}fps"
            if seeds := train[i :: len(rates)]:
                clips += make_clips(replace(world, fps=rate), seeds, videos)
        return Split(clips, make_clips(world, heldout, folder))

    def decoded(self, workdir: Path) -> Path:
        return self._folder(workdir) / "media"

    def _folder(self, workdir: Path) -> Path:
        return local_path(self.folder) if self.folder else workdir


def make_clips(world: World, seeds: Sequence[int], folder: Path) -> list[Clip]:
    """Make the videos of `seeds` that `folder` lacks, and return the clips of all of them.

    A video of the hard grade is cut into consecutive clips, each as long as a window.
    """
    with one_at_a_time(folder):
        write_world(world, seeds, folder, processes=os.cpu_count() or 1)
    clips = []
    for seed in seeds:
        video = folder / f"{seed}.mp4"
        if world.longest is None:
            clips.append(Clip(str(seed), video))
            continue
        count = int(stage(world, seed).seconds / WINDOW)
        clips += [Clip(f"{seed}-{i}", video, i * WINDOW) for i in range(count)]
    return clips

"""The clips that the miniature is trained on, made on first use, and the bundle it becomes."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from mfm_jax.bundle import Bundle, Settings, Source, write_bundle
from mfm_jax.data.clips import Clip, DataError
from mfm_jax.data.decoded import MediaSource, to_float, write_media
from mfm_jax.data.features import FeatureSource, check, extract
from mfm_jax.data.loader import Element
from mfm_jax.data.records import check_same
from mfm_jax.diffusion import Schedule
from mfm_jax.errors import SettingError
from mfm_jax.foley.world import SPLITS, World, stage, write_world
from mfm_jax.media.audio import prepare_for_audiomae
from mfm_jax.media.windows import WindowSpec
from mfm_jax.runtime.distributed import say
from mfm_jax.storage.files import locked
from mfm_jax.train.recipe import Recipe

SPEC = WindowSpec(
    seconds=2.56, overlap=0.32, cavp_fps=12.5, cavp_size=32, timechat_frames=8, timechat_size=64
)
"""What the tiny encoders see of a clip."""

SETTINGS = Settings(
    schedule=Schedule(prediction="v"), frames=256, overlap=0.32, steps=20, guidance=4.0
)
"""Of the tiny bundle."""

LICENCE = "Apache-2.0"
"""Of weights that saw nothing but clips made here."""


OWN = "own"

ROOM = 4 << 30
"""Bytes of elements that a process keeps in memory: all of the miniature's."""

GRADES = {"base": World(), "hard": World.hard()}


def _made(world: World, seeds: Sequence[int], folder: Path) -> list[Clip]:
    """The clips in the videos of `seeds`: one after the other, each as long as a window.

    Videos that `folder` lacks are made.
    """
    with only_one(folder):
        write_world(world, seeds, folder, processes=os.cpu_count() or 1)
    clips = []
    for seed in seeds:
        video = folder / f"{seed}.mp4"
        if world.longest is None:
            clips.append(Clip(str(seed), video))
            continue
        count = int(stage(world, seed).seconds / SPEC.seconds)
        clips += [Clip(f"{seed}-{i}", video, i * SPEC.seconds) for i in range(count)]
    return clips


@dataclass(frozen=True)
class FoleyRecipe(Recipe):
    """A recipe that learns from Foley clips; runs beside each other may share all folders."""

    bundle: str = "runs/tiny/bundle"  # folder of the bundle that networks come from and go to
    clips: str = "runs/tiny/clips"  # folder of the video files; empty: in the workdir
    # Of the Foley world: "base" or "hard"; "own" for clips of your own, which nothing here makes.
    grade: str = "base"
    train: int = 4096  # videos
    heldout: int = 256  # videos of other seeds
    # Frames a second of the training videos, in turn; the world's own if empty. What learns from
    # one rate alone is worse at others.
    rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.grade not in (*GRADES, OWN):
            raise SettingError(f"recipe.grade is {', '.join(GRADES)} or {OWN}, not {self.grade!r}")

    def make_clips(self, workdir: Path) -> tuple[list[Clip], list[Clip]]:
        """The training and the held-out clips as files; those that are missing are made.

        Raises:
            DataError: they are no Foley clips.
        """
        if self.grade == OWN:
            raise DataError(
                "there is nothing to train on: extract features of your clips (mfm extract) into "
                "the folders train and heldout of one folder, and set recipe.features to it"
            )
        world, folder = GRADES[self.grade], Path(self.clips or workdir / "clips")
        first = SPLITS["validation"].start
        train, heldout = range(self.train), range(first, first + self.heldout)
        rates = self.rates or (world.fps,)
        clips: list[Clip] = []
        for i, rate in enumerate(rates):
            place = folder if rate == world.fps else folder / f"{rate:g}fps"
            if its := train[i :: len(rates)]:
                clips += _made(replace(world, fps=rate), its, place)
        return clips, _made(world, heldout, folder)

    @property
    def most(self) -> tuple[int | None, int | None]:
        """Of the clips in a folder that other runs may have made, how many are used."""
        return (self.train, self.heldout) if self.grade == "base" else (None, None)

    def read(self, element: Element) -> Element:
        """What of an element is used, worked out once and kept in memory."""
        raise NotImplementedError

    def remembered(self, train: Any, heldout: Any) -> tuple["Remembered", "Remembered"]:
        """The sources after `read`, and of each no more than asked for; says what is left out."""
        most = self.most
        for name, source, limit in (("train", train, most[0]), ("heldout", heldout, most[1])):
            if limit is not None and len(source) > limit:
                say(f"{name}: {limit} of {len(source)} clips, as recipe.{name} says")
        return Remembered(train, self.read, most[0]), Remembered(heldout, self.read, most[1])

    def put(self, name: str, config: Any, module: nnx.Module, command: str) -> Bundle:
        """Write a component into the bundle."""
        entry = (config, module, Source(command, LICENCE))
        new = not (Path(self.bundle) / "bundle.json").exists()
        return write_bundle(Path(self.bundle), {name: entry}, settings=SETTINGS if new else None)


@dataclass(frozen=True)
class MediaRecipe(FoleyRecipe):
    """A recipe that learns from pictures and sound themselves."""

    media: str = "runs/tiny/media"  # folder of the decoded clips
    spec: WindowSpec = SPEC  # what is decoded of a clip

    def prepare(self, workdir: Path) -> tuple[Any, Any]:
        train, heldout = Path(self.media) / "train", Path(self.media) / "heldout"
        if not (train / "media.json").exists() or not (heldout / "media.json").exists():
            clips = self.make_clips(workdir)
            with only_one(Path(self.media)):
                for group, folder in zip(clips, (train, heldout), strict=True):
                    write_media(group, self.spec, folder, processes=os.cpu_count() or 1)
        return self.remembered(MediaSource(train), MediaSource(heldout))


@dataclass(frozen=True)
class FeatureRecipe(FoleyRecipe):
    """A recipe that learns from the features of a bundle's encoders."""

    features: str = ""  # folder of the features; empty: in the workdir

    @property
    def expects(self) -> dict[str, Any]:
        """What the description of the features must say, where it says anything about it."""
        return {}

    def prepare(self, workdir: Path) -> tuple[Any, Any]:
        bundle, top = Bundle.open(Path(self.bundle)), Path(self.features or workdir / "features")
        folders = top / "train", top / "heldout"
        if not all((folder / "features.json").exists() for folder in folders):
            clips = self.make_clips(workdir)
            with only_one(top):
                for group, folder in zip(clips, folders, strict=True):
                    tensor = self.expects.get("timechat", "video")
                    extract(bundle, group, folder, batch=16, timechat=tensor)
        for folder in folders:
            check(folder, bundle)
            found = FeatureSource(folder).about
            check_same(folder, found, {k: v for k, v in self.expects.items() if k in found})
        return self.remembered(*(FeatureSource(folder) for folder in folders))


class Remembered:
    """At most `limit` elements of a source after `read`, each read once where memory allows.

    Once `room` bytes of them are kept the others are read anew each time.
    """

    def __init__(
        self,
        source: Any,
        read: Callable[[Element], Element],
        limit: int | None = None,
        *,
        room: int = ROOM,
    ) -> None:
        self._source, self._read, self._room = source, read, room
        self._kept: dict[int, Element] = {}
        self._length = len(source) if limit is None else min(limit, len(source))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Element:
        index = int(index)
        if index in self._kept:
            return self._kept[index]
        element = self._read(self._source[index])
        if self._room > 0:  # threads may go over it together, by one element each
            self._room -= sum(np.asarray(array).nbytes for array in element.values())
            self._kept[index] = element
        return element

    def id_of(self, index: int) -> str:
        """The name of one element."""
        return self._source.id_of(index)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._source!r}, {self._length})"


def prepared_wave(element: Element) -> np.ndarray:
    """The sound of a media element as AudioLDM2's audio networks are given it."""
    wave = to_float(element["wave"])
    return prepare_for_audiomae(wave, len(wave))


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Only one process at a time makes `folder`; others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.parent / f".{folder.name}.lock"
    lock.touch()
    with locked(lock):
        yield

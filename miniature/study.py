"""The trainings of `streams` and `three`: one mapper and one adapter for each set of streams.

What all of them start from is trained first: the video encoders, on the hard grade, and the UNet,
which knows AudioLDM2's grid of LOA alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mfm_jax.bundle import Bundle
from mfm_jax.data.clips import Clip
from mfm_jax.data.features import DESCRIPTION, SOUND_ENCODERS
from mfm_jax.data.records import read_about
from mfm_jax.data.sources import ClipFiles
from mfm_jax.foley.clips import GRADES, FoleyClips, make_clips
from mfm_jax.foley.world import SPLITS
from mfm_jax.inference.extract import extract
from mfm_jax.mapper import MapperConfig
from mfm_jax.runtime.config import later
from mfm_jax.storage.locks import one_at_a_time
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipes.mapper import MapperRecipe
from mfm_jax.train.recipes.sync import ONLY_ADAPTER, SyncRecipe
from mfm_jax.train.recipes.sync_start import SyncStartRecipe
from miniature.routes import COARSE
from miniature.runs import train_bundle, training_config
from miniature.stages import SOUND, Stage, copy_sound_networks, keep_logs, run_stages, write_table

PAPER_ENCODERS = ("cavp", "timechat")
"""The encoders of the paper."""
ENCODERS = (*PAPER_ENCODERS, "synchformer", "motion")
"""Streams that a mapper can read."""
STEMS = ("motion",)
"""Streams that are plain measurements, and pass a stem."""
FURTHER = ("moving",)
"""Streams that the adapter reads, and the mapper does not."""
POSITIONS = 256
"""Tokens that a mapper has room for: those of all streams, and LOA."""
MAPPER_RATE, ADAPTER_RATE = 1.5e-3, 2e-3
"""Learning rates."""


@dataclass(frozen=True)
class Budget:
    """The size of the experiment, the same for all sets of streams."""

    mapper: int = 1000  # steps of stage 1
    adapter: int = 1500  # steps of the adapter
    kind: str = "features"  # of adapter: that, or "attention"
    clips: int = 1400  # videos of the hard grade, of which the windows are trained on
    sounds: int = 128  # test videos
    sampler_steps: int = 8
    width: int = later(48)  # inside the adapter
    dilations: tuple[int, ...] = later((1, 1))  # of its convolutions
    start: int = later(0)  # steps in which its features predict latents, before the UNet's
    video_only: float = later(0.0)  # share of clips that are trained on without LOA

    @property
    def name(self) -> str:
        """The kind of adapter, and what is not the default."""
        words = [self.kind]
        if (self.adapter, self.width) != (Budget.adapter, Budget.width):
            words += [str(self.adapter), str(self.width)]
        if self.dilations != (1, 1):
            words.append("-".join(map(str, self.dilations)))
        if self.start:
            words.append(f"start{self.start}")
        if self.video_only:
            words.append(f"video{self.video_only:g}")
        return "_".join(words) + self.suffix

    @property
    def suffix(self) -> str:
        """The number of videos, if it is not the default, for names of folders."""
        return f"_of{self.clips}" if self.clips != Budget.clips else ""


def told(streams: Sequence[str]) -> tuple[str, ...]:
    """Return those streams of a set that its mapper reads; the adapter reads all of them."""
    return tuple(name for name in streams if name not in FURTHER)


def stems_of(streams: Sequence[str]) -> tuple[str, ...]:
    """Return those streams of a set that pass a stem."""
    return tuple(name for name in STEMS if name in streams)


BASE_CLIPS = (("bundle", "bundle"), ("source.folder", "../tiny"))
"""Folders of a stage that learns from the clips of the base grade."""
ONE_GRID = ("pools=[[8,8]]", "pool_probs=[1.0]")
STAGES = (
    Stage("synchformer", "tiny_synchformer", folders=BASE_CLIPS),
    Stage("cavp", "hard_cavp"),
    Stage("timechat", "hard_timechat"),
    Stage("backbone", "tiny_unet", folders=BASE_CLIPS, overrides=ONE_GRID),
)
"""The networks that sets start from; the last one is the UNet as AudioLDM2's was trained."""


@dataclass(frozen=True)
class Study:
    """Trains a mapper and an adapter for each set of streams, each once."""

    workdir: Path  # beside the folder `tiny` of the base grade's clips
    budget: Budget
    encoders: tuple[str, ...] = ENCODERS  # those that are trained and extracted

    @classmethod
    def reading(cls, workdir: Path, budget: Budget, sets: Iterable[Sequence[str]]) -> "Study":
        """Prepare for these sets of streams, and train and extract what they read alone."""
        read = {*PAPER_ENCODERS}.union(*sets)
        return cls(workdir, budget, tuple(name for name in ENCODERS if name in read))

    @property
    def start(self) -> Path:
        """The bundle that every training starts from."""
        return self.workdir / "bundle"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The networks of `STAGES` that the sets of streams start from."""
        spared = {*ENCODERS} - {*self.encoders}
        return tuple(stage for stage in STAGES if stage.name not in spared)

    def prepare(self, jobs: int) -> None:
        """Train the networks of `stages` that are not trained yet, `jobs` at a time.

        Raises:
            StageError: a training failed, or was stopped; the same call continues from there.
        """
        copy_sound_networks(TINY_BUNDLE, self.start, [n for n in SOUND if n != "unet"])
        run_stages(self.workdir, self.stages, jobs=jobs)

    @cached_property  # thousands of clips are looked for each time
    def features(self) -> Path:
        """Features of the windows of training and held-out videos, extracted if missing."""
        name = f"features{self._told_apart}"
        return self._features(name, (*self.encoders, *SOUND_ENCODERS))

    @cached_property
    def further(self) -> Path:
        """Features of `FURTHER` of the same windows, extracted if missing."""
        return self._features("further", FURTHER)

    def _features(self, name: str, encoders: Sequence[str]) -> Path:
        folder = self.workdir / f"{name}{self.budget.suffix}"
        with one_at_a_time(folder):
            source = FoleyClips(
                str(self.workdir), grade="hard", train=self.budget.clips, heldout=64
            )
            every = source.clips(self.workdir)
            for part in ("train", "heldout"):
                self._extract(getattr(every, part), folder / part, encoders)
        return folder

    @property
    def test_features(self) -> Path:
        """Features of the windows of the test videos, extracted if missing."""
        folder = self.workdir / f"test_features{self._told_apart}"
        with one_at_a_time(folder):
            clips = make_clips(GRADES["hard"], self.test_seeds, self.test_videos)
            self._extract(clips, folder, (*self.encoders, *SOUND_ENCODERS))
        return folder

    @property
    def _told_apart(self) -> str:
        """The encoders, for names of folders, unless they are all."""
        return f"_{'-'.join(self.encoders)}" if self.encoders != ENCODERS else ""

    @property
    def test_seeds(self) -> range:
        """The seeds of the test videos."""
        start = SPLITS["test"].start
        return range(start, start + self.budget.sounds)

    @property
    def test_videos(self) -> Path:
        """Folder of the test videos."""
        return self.workdir / "test_clips"

    def _extract(self, clips: Sequence[Clip], folder: Path, names: Sequence[str]) -> None:
        extract(
            Bundle.open(self.start), clips, folder, batch=16, encoders=names, licence="Apache-2.0"
        )

    def _read(self, streams: Sequence[str]) -> list[Path]:
        """Return the folders that have the features of these streams."""
        return [self.features, *([self.further] if told(streams) != tuple(streams) else [])]

    def described(self, streams: Sequence[str]) -> dict[str, Any]:
        """Return what the features of these streams depend on, and of no others."""
        found: dict[str, Any] = {}
        for folder in self._read(streams):
            about = read_about(folder / "train" / DESCRIPTION)
            names = {*about["encoders"]} & {*streams, *SOUND_ENCODERS}
            found |= {"ids": about["ids"], **{n: about["encoders"][n] for n in sorted(names)}}
        return found

    def tokens(self, streams: Sequence[str]) -> tuple[tuple[str, int, int], ...]:
        """Return the streams with the tokens of a window and their width."""
        fields: dict[str, Any] = {}
        for folder in self._read(streams):
            fields |= read_about(folder / "train" / DESCRIPTION)["fields"]
        return tuple((name, *fields[name][0]) for name in streams)

    def trained(self, streams: tuple[str, ...], seed: int) -> Path:
        """Return the bundle with a mapper and an adapter that read these streams."""
        budget, place = self.budget, f"{self.budget.name}-{'-'.join(streams)}-{seed}"
        shared: dict[str, Any] = {
            "bundle": str(self._mapper(told(streams), seed)),
            "source": self._source,
            "width": budget.width,
            "dilations": budget.dilations,
        }
        if told(streams) != streams:
            shared |= {
                "source": replace(self._source, beside=(str(self.further),)),
                "encoders": self.tokens(streams),
                "stems": stems_of(streams),
            }
        optimizer = OptimizerConfig(learning_rate=ADAPTER_RATE, warmup_steps=30)
        recipe = SyncRecipe(kind=budget.kind, video_only_prob=budget.video_only, **shared)
        if budget.start:
            config = training_config(
                SyncStartRecipe(**shared), optimizer, steps=budget.start, batch=32, seed=seed
            )
            started = train_bundle(config, self.workdir / f"start-{place}")
            recipe = replace(recipe, bundle=str(started), init_from="adapter")
        optimizer = replace(optimizer, lr_multipliers=ONLY_ADAPTER)
        config = training_config(recipe, optimizer, steps=budget.adapter, batch=16, seed=seed)
        return train_bundle(config, self.workdir / place)

    def _mapper(self, streams: Sequence[str], seed: int) -> Path:
        """Return the bundle with a mapper that reads these streams."""
        tiny = MapperConfig.tiny()
        network = replace(
            tiny,
            encoders=self.tokens(streams),
            loa=COARSE,
            gpt2=replace(tiny.gpt2, positions=POSITIONS),
            stems=stems_of(streams),
        )
        config = training_config(
            MapperRecipe(bundle=str(self.start), source=self._source, network=network),
            OptimizerConfig(learning_rate=MAPPER_RATE, warmup_steps=30),
            steps=self.budget.mapper, batch=32, seed=seed,
        )  # fmt: skip
        place = f"mapper{self.budget.suffix}-{'-'.join(streams)}-{seed}"
        return train_bundle(config, self.workdir / place)

    @property
    def _source(self) -> ClipFiles:
        return ClipFiles(str(self.features), licence="Apache-2.0")

    def keep(self, results: Path, name: str, *, command: str) -> None:
        """Write a table of the stages, and the logs of all trainings, to `results`.

        Args:
            name: of the experiment, with which the names of files begin.
        """
        budget = self.budget
        begin = tuple(
            f"{n}-" for n in (budget.name, f"start-{budget.name}", f"mapper{budget.suffix}")
        )
        found = sorted(file.parent.name for file in self.workdir.glob("*/config.json"))
        names = [stage.name for stage in self.stages] + [n for n in found if n.startswith(begin)]
        keep_logs(self.workdir, results / f"{name}_training", names)
        write_table(self.workdir, self.stages, results, f"{name}_", command=command)

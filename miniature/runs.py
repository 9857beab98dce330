"""Runs of an experiment: a mapper is trained, predicts LOA, and what it is worth goes into a line.

A line is written once for a run of the same numbers on the same clips and networks, so that an
experiment goes on where it stopped, and with more seeds runs only those.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import lru_cache
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.data.clips import DataError
from mfm_jax.data.features import DESCRIPTION, FeatureSource
from mfm_jax.data.loader import batches
from mfm_jax.data.records import digest, read_about
from mfm_jax.foley.clips import Remembered
from mfm_jax.mapper import Mapper
from mfm_jax.models.audiomae import LOA
from mfm_jax.runtime.config import to_json
from mfm_jax.storage.files import locked, atomic_write
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.storage.weights import parameter_count
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.mapper import LOARecipe, MapperRecipe, predictions
from mfm_jax.train.recipes.stage2 import Stage2Recipe
from mfm_jax.typing import Float
from miniature.measures import Asked, Judge, Line
from train import train

PREDICTIONS = "predictions.npz"
FOLDERS = ("bundle", "clips", "features", "asked")
"""Fields of a recipe that say where things lie and not what they are."""

HOW = ("mesh", "compute", "best", "samples")
"""Fields of a training that say how it is computed and shown, which no experiment sets."""


@dataclass(frozen=True)
class Stage1(MapperRecipe):
    """A mapper that leaves the LOA it predicts instead of a bundle."""

    asked: str = ""  # folder of the features of the clips that it predicts LOA for

    def evaluate(self, module: Any, source: Any, batch: int) -> dict[str, float]:
        """Nothing: it is asked when it is done."""
        return {}

    def finish(self, module: Any, workdir: Path, command: str) -> None:
        predict(self, module, Path(self.asked), workdir / PREDICTIONS)


@dataclass(frozen=True)
class Stage2(Stage2Recipe):
    """The same for the second stage; after 0 steps it is the mapper that the bundle has."""

    asked: str = ""

    def evaluate(self, module: Any, source: Any, batch: int) -> dict[str, float]:
        """Nothing: it is asked when it is done."""
        return {}

    def finish(self, module: Any, workdir: Path, command: str) -> None:
        predict(self, module.mapper, Path(self.asked), workdir / PREDICTIONS)


def predict(recipe: LOARecipe, mapper: Mapper, features: Path, target: Path) -> None:
    """Write the LOA of the clips in `features`, `[N, K, D]` in its own units, to an npz."""
    source = FeatureSource(features)
    read = Remembered(source, recipe.read)
    loader = batches(read, batch=64, seed=0, train=False)
    standard, _ = predictions(recipe, mapper, loader)
    loa = np.asarray(mapper.restore(jnp.asarray(standard)))
    with atomic_write(target) as part:
        np.savez(part, loa=loa, parameters=parameter_count(mapper))


@dataclass(frozen=True)
class Run:
    """One training, or the true LOA in place of one, and the clips that it is asked for."""

    part: str  # of the experiment
    name: str  # of what is trained
    config: TrainConfig  # its recipe is a `Stage1` or a `Stage2`
    asked: Asked
    share: float = 1.0  # of the clips or of the steps
    true: bool = False  # nothing is trained: the ceiling
    floor: bool = False  # what is heard of it where a clip gets another one's sound is kept too

    @property
    def loa(self) -> LOA:
        """The grid that is predicted."""
        return self.config.recipe.mapper.loa  # type: ignore[attr-defined]

    def training(self) -> str:
        """Digest of the numbers and of the features that the prediction depends on."""
        recipe: Any = self.config.recipe
        asked = read_about(self.asked.features / DESCRIPTION)
        if self.true:
            return digest(["true", to_json(self.loa), asked])
        placeless = replace(recipe, **dict.fromkeys(FOLDERS, ""))
        numbers = to_json(replace(self.config, recipe=placeless))
        for name in HOW:
            del numbers[name]
        train = read_about(Path(recipe.features) / "train" / DESCRIPTION)
        said = [type(recipe).__name__, numbers, train, asked]
        if isinstance(recipe, Stage2):
            said.append(checksums(Path(recipe.bundle), ("mapper", "unet")))
        return digest(said)

    def key(self, place: "Place") -> str:
        """Digest of all that the line depends on; the same key is the same line."""
        heard = {**place.heard_by(), "steps": self.asked.steps} if self.asked.count else {}
        return digest([self.training(), self.asked.count, self.floor, heard])[:16]


def checksums(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Of those of these components that a bundle has."""
    entries = Bundle.open(path).entries
    return {name: entries[name].checksum for name in names if name in entries}


@dataclass(frozen=True)
class Place:
    """Where an experiment finds what it needs and leaves what it found."""

    workdir: Path  # of clips, features and runs, which are made where they are missing
    results: Path  # the lines, in JSON
    name: str  # of the experiment: its folder in `workdir`
    bundle: Path = TINY_BUNDLE  # all networks but the mappers that are trained

    @property
    def features(self) -> Path:
        """Of the training and the held-out clips, in two folders."""
        return self.workdir / "features"

    @property
    def runs(self) -> Path:
        """A folder for each run."""
        return self.workdir / self.name / "runs"

    def heard_by(self) -> dict[str, str]:
        """Checksums of the networks between LOA and a score."""
        return checksums(self.bundle, ("unet", "vae", "vocoder", "listener"))

    def lines(self) -> dict[str, Line]:
        """What is known of each run, by its key.

        Raises:
            DataError: a line cannot be read.
        """
        if not self.results.exists():
            return {}
        known = {}
        for number, text in enumerate(self.results.read_text().splitlines(), 1):
            try:
                line = json.loads(text)
                known[line["key"]] = line
            except (ValueError, KeyError, TypeError):
                raise DataError(f"line {number} of {self.results} is damaged: remove it") from None
        return known

    def append(self, line: Line) -> None:
        """Add a line; other processes may do so at the same time."""
        self.results.parent.mkdir(parents=True, exist_ok=True)
        self.results.touch()
        with locked(self.results), self.results.open("a") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")


class Stopped(DataError):
    """A run was told to stop before its end."""


@lru_cache(maxsize=4)
def _judge(place: Place, train: Path, asked: Asked, loa: LOA) -> Judge:
    return Judge.open(place.bundle, train, asked, loa)


def perform(run: Run, place: Place) -> Line:
    """Train what is not trained yet, measure it and add the line.

    Raises:
        Stopped: a signal came; the same call goes on from there.
        BundleError, DataError, MediaError, SettingError, WorldError: as training and scoring do.
    """
    began, config = time.monotonic(), run.config
    recipe: Any = config.recipe
    train_features = Path(recipe.features) / "train"
    judge = _judge(place, train_features, run.asked, run.loa)
    made, parameters = (judge.true, 0) if run.true else _predicted(run, place)
    counts, waves = judge.measure(made)
    line = {
        "key": run.key(place), "part": run.part, "name": run.name, "seed": config.seed,
        "rate": config.optimizer.rate, "steps": config.steps,
        "clips": min(recipe.train, read_about(train_features / DESCRIPTION)["clips"]),
        "parameters": parameters, "counts": counts,
    }  # fmt: skip
    if run.floor:
        line["shuffled"] = judge.shuffled(made, waves)
    line["seconds"] = round(time.monotonic() - began, 1)
    place.append(line)
    return line


def _predicted(run: Run, place: Place) -> tuple[Float[np.ndarray, "N K D"], int]:
    """What the mapper of a run predicts, trained unless it has been, and its parameters."""
    folder = place.runs / run.training()[:16]
    train_once(run.config, folder, PREDICTIONS)
    with np.load(folder / PREDICTIONS) as file:
        return file["loa"], int(file["parameters"])


def train_once(config: TrainConfig, folder: Path, left: str) -> None:
    """Train in `folder` unless the file `left`, which a finished training leaves, is there.

    Raises:
        Stopped: a signal came; the same call goes on from there.
    """
    if (folder / left).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log, redirect_stdout(log), same_handlers():
        train(config, folder, "python -m miniature")
    if not (folder / left).exists():
        raise Stopped(f"{folder} was stopped: the same command goes on from there")
    shutil.rmtree(folder / "checkpoints")  # they are many, and no more of use


@contextmanager
def same_handlers() -> Iterator[None]:
    """Afterwards signals do again what they did before; training has handlers of its own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def perform_all(runs: Sequence[Run], place: Place, *, jobs: int) -> list[Line]:
    """The line of each run; those that are not there yet are run, `jobs` processes at a time.

    With one job they run in this process. Otherwise each process has one thread for its arithmetic.
    """
    keys = [run.key(place) for run in runs]
    known = place.lines()
    todo = {key: run for key, run in zip(keys, runs, strict=True) if key not in known}
    print(f"{len(set(keys))} runs, {len(todo)} to do", flush=True)
    done = 0
    for run, line in _performed(list(todo.values()), place, jobs):
        known, done = {**known, line["key"]: line}, done + 1
        error = np.mean(line["counts"]["loa_error"])
        print(
            f"{done}/{len(todo)} {run.part}: {run.name}, seed {run.config.seed}, "
            f"LOA error {error:.4f}, {line['seconds']:.0f} s",
            flush=True,
        )
    return [known[key] for key in keys]


def _performed(runs: Sequence[Run], place: Place, jobs: int) -> Iterator[tuple[Run, Line]]:
    if jobs == 1 or len(runs) < 2:
        yield from ((run, perform(run, place)) for run in runs)
        return
    cache = str(place.workdir.absolute() / "cache")
    spawn = get_context("spawn")
    with (
        _one_thread_each(),
        same_handlers(),
        ProcessPoolExecutor(jobs, spawn, remember_programs, (cache,)) as pool,
    ):
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        futures = {pool.submit(perform, run, place): run for run in runs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            for process in active_children():  # they save a checkpoint and end
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def remember_programs(folder: str) -> None:
    """Keep compiled programs: many short runs share a few of them."""
    jax.config.update("jax_compilation_cache_dir", folder)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """What processes begun meanwhile inherit."""
    flags = os.environ.get("XLA_FLAGS", "")
    changes = {
        "OMP_NUM_THREADS": "1",
        "XLA_FLAGS": f"{flags} --xla_cpu_multi_thread_eigen=false".strip(),
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def by_place(runs: Sequence[Run], lines: Sequence[Line]) -> Mapping[tuple, list[Line]]:
    """The lines of each part, name and share, in the order of the runs."""
    found: dict[tuple[str, str, float], list[Line]] = {}
    for run, line in zip(runs, lines, strict=True):
        found.setdefault((run.part, run.name, run.share), []).append(line)
    return found

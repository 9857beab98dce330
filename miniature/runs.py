"""Runs of an experiment: train a mapper, let it predict LOA, and record the scores as one line.

A line is keyed by everything its scores depend on. An experiment that was interrupted therefore
continues where it stopped, and one that is repeated with more seeds trains only the new ones.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import islice
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.data.clips import DataError
from mfm_jax.data.features import DESCRIPTION, FeatureSource
from mfm_jax.data.loader import CachedDataset, batches
from mfm_jax.data.records import digest, read_about
from mfm_jax.mapper import Mapper
from mfm_jax.models.audiomae import LOA
from mfm_jax.runtime.config import to_json
from mfm_jax.storage.files import atomic_write
from mfm_jax.storage.locks import locked, one_at_a_time
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.storage.weights import parameter_count
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.mapper import LOARecipe, MapperRecipe, predictions
from mfm_jax.train.recipes.stage2 import Stage2Recipe
from mfm_jax.typing import Float
from miniature.measures import SCORES, EvalSet, Line, Scorer, available_scores, ratio, true_loa
from train import train

PREDICTIONS = "predictions.npz"
NOT_IN_KEY = ("mesh", "compute", "best", "sample_every")
"""Fields of `TrainConfig` that do not belong to the key of a run: no experiment sets them, and they
say how a training is computed and shown."""


@dataclass(frozen=True)
class Stage1(MapperRecipe):
    """Stage 1 that leaves the LOA it predicts for an evaluation set, instead of a bundle."""

    eval_features: str = ""  # folder of the features that LOA is predicted from

    def evaluate(self, module: Any, dataset: Any, batch: int) -> dict[str, float]:
        """Return no metrics: the mapper is scored once, when it is trained."""
        return {}

    def finish(self, module: Any, workdir: Path, command: str) -> None:
        predict(self, module, Path(self.eval_features), workdir / PREDICTIONS)


@dataclass(frozen=True)
class Stage2(Stage2Recipe):
    """Stage 2 that leaves the LOA it predicts; after 0 steps its mapper is the bundle's."""

    eval_features: str = ""

    @property
    def _adapter(self) -> None:
        """No adapter: the UNet hears LOA alone, as in the scores."""
        return None

    def evaluate(self, module: Any, dataset: Any, batch: int) -> dict[str, float]:
        """Return no metrics: the mapper is scored once, when it is trained."""
        return {}

    def finish(self, module: Any, workdir: Path, command: str) -> None:
        predict(self, module.mapper, Path(self.eval_features), workdir / PREDICTIONS)


def predicted(mapper: Mapper, recipe: LOARecipe, features: Path) -> Float[np.ndarray, "N L E"]:
    """Return the LOA that a mapper predicts of each clip in a folder, in LOA's own units."""
    dataset = CachedDataset(FeatureSource(features), recipe.read)
    standard, _ = predictions(recipe, mapper, batches(dataset, batch=64, seed=0, train=False))
    return np.asarray(mapper.restore(jnp.asarray(standard)))


def predict(recipe: LOARecipe, mapper: Mapper, features: Path, target: Path) -> None:
    """Predict the LOA of the clips in `features` and write it to an npz, in LOA's own units."""
    loa = predicted(mapper, recipe, features)
    with atomic_write(target) as part:
        np.savez(part, loa=loa, parameters=parameter_count(mapper))


@dataclass(frozen=True)
class Run:
    """One training, or true LOA in place of one, and the clips that it is scored on."""

    part: str  # of the experiment
    name: str  # of the system or change
    config: TrainConfig  # its recipe is a `Stage1` or a `Stage2`
    eval_set: EvalSet
    share: float = 1.0  # of the clips or of the steps
    true: bool = False  # score true LOA and train nothing: the ceiling
    floor: bool = False  # score each clip with another clip's sound as well
    init_from: "Run | None" = None  # the run of stage 1 that a `Stage2` starts from
    truth: "Run | None" = None  # a run whose features say what true LOA is; None: its own do

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return self.config.seed

    @property
    def loa(self) -> LOA:
        """The grid that is predicted."""
        return (self.init_from or self).config.recipe.mapper.loa  # type: ignore[attr-defined]

    @property
    def train_features(self) -> Path:
        """Folder of the features of the training clips."""
        recipe: Any = self.config.recipe
        return Path(recipe.source.path) / "train"

    def training(self) -> str:
        """Return a digest of the settings and features that the prediction depends on."""
        recipe: Any = self.config.recipe
        eval_set = feature_description(self.eval_set.features)
        if self.true:
            return digest(["true", to_json(self.loa), eval_set])
        # Paths do not belong to the key, and the features are described separately.
        portable = replace(recipe, bundle="", eval_features="")
        config = to_json(replace(self.config, recipe=portable))
        config["recipe"]["source"] = {"limit": recipe.source.limit}
        del config["recipe"]["settings"]  # a new bundle would get these
        for name in NOT_IN_KEY:
            del config[name]
        train = feature_description(self.train_features)
        parts = [type(recipe).__name__, config, train, eval_set]
        if self.init_from is not None:
            base = Path(self.init_from.config.recipe.bundle)  # type: ignore[attr-defined]
            parts += [self.init_from.training(), weight_digests(base, ("unet",))]
        return digest(parts)

    def key(self, workspace: "Workspace") -> str:
        """Return the key of this run's line: a digest of everything the line depends on."""
        sound: dict[str, Any] = {}
        if self.eval_set.sounds:
            sound = workspace.sound_digests() | {"sampler_steps": self.eval_set.sampler_steps}
        truth = [] if self.truth is None else [self.truth.training()]
        return digest([self.training(), self.eval_set.sounds, self.floor, sound, *truth])[:16]


def feature_description(features: Path) -> dict[str, Any]:
    """Return the description of a folder of features, without the licence of its clips."""
    about = read_about(features / DESCRIPTION)
    return {name: value for name, value in about.items() if name != "licence"}


def weight_digests(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Return a digest of the weights of each of these components that a bundle has.

    It does not depend on the names of weights or of config fields, nor on where the weights come
    from, so that a bundle written by a later version has the same one.
    """
    bundle = Bundle.open(path)
    return {
        name: digest(sorted(array.sha256 for array in bundle.store(name).arrays.values()))
        for name in names
        if name in bundle.entries
    }


@dataclass(frozen=True)
class Workspace:
    """The folders and the bundle that an experiment works with."""

    workdir: Path  # clips, features and runs, which are made where they are missing
    results: Path  # JSON lines, one for each run
    name: str  # of the experiment: its folder in `workdir`
    bundle: Path = TINY_BUNDLE  # all networks but the mappers that are trained

    @property
    def features(self) -> Path:
        """Folder of the features of training and held-out clips."""
        return self.workdir / "features"

    @property
    def runs(self) -> Path:
        """Folder of the runs, one folder each."""
        return self.workdir / self.name / "runs"

    def sound_digests(self) -> dict[str, str]:
        """Return digests of the networks that turn LOA into sound and score it."""
        return weight_digests(self.bundle, ("unet", "vae", "vocoder", "listener"))

    def lines(self) -> dict[str, Line]:
        """Return the recorded lines by key.

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
        """Add a line; other processes may append at the same time."""
        self.results.parent.mkdir(parents=True, exist_ok=True)
        self.results.touch()
        with locked(self.results), self.results.open("a") as file:
            file.write(json.dumps(line, separators=(",", ":")) + "\n")


class Stopped(DataError):
    """A run that a signal stopped before its end."""


@lru_cache(maxsize=4)
def _scorer(workspace: Workspace, train: Path, eval_set: EvalSet, loa: LOA) -> Scorer:
    return Scorer.open(workspace.bundle, train, eval_set, loa)


def run_one(run: Run, workspace: Workspace) -> Line:
    """Train the mapper of a run unless it is trained already, score it and record the line.

    Raises:
        Stopped: a signal came; the same call continues from there.
        BundleError, DataError, MediaError, SettingError, WorldError: training or scoring failed.
    """
    start, config = time.monotonic(), run.config
    recipe: Any = config.recipe
    known = run.truth or run
    scorer = _scorer(workspace, known.train_features, known.eval_set, run.loa)
    if run.true:
        loa, parameters = true_loa(run.eval_set.features, run.loa), 0
    else:
        loa, parameters = _predict_loa(run, workspace)
    counts, waves = scorer.measure(loa)
    line = {
        "key": run.key(workspace), "part": run.part, "name": run.name, "seed": config.seed,
        "learning_rate": config.optimizer.learning_rate, "steps": config.steps,
        "clips": min(recipe.source.limit, read_about(run.train_features / DESCRIPTION)["clips"]),
        "parameters": parameters, "counts": counts,
    }  # fmt: skip
    if run.floor:
        line["shuffled"] = scorer.shuffled(loa, waves)
    line["seconds"] = round(time.monotonic() - start, 1)
    workspace.append(line)
    return line


def _predict_loa(run: Run, workspace: Workspace) -> tuple[Float[np.ndarray, "N K D"], int]:
    """Return the LOA that the mapper of a run predicts, and the mapper's number of parameters."""
    config = run.config
    if run.init_from is not None:
        bundle = train_stage1(run.init_from, workspace)
        recipe: Any = config.recipe
        config = replace(config, recipe=replace(recipe, bundle=str(bundle)))
    folder = workspace.runs / run.training()[:16]
    train_once(config, folder, PREDICTIONS)
    with np.load(folder / PREDICTIONS) as file:
        return file["loa"], int(file["parameters"])


def train_stage1(run: Run, workspace: Workspace) -> Path:
    """Return a bundle with the mapper that a run of stage 1 trains, trained if it is missing.

    Raises:
        Stopped: a signal came; the same call continues from there.
    """
    recipe: Any = run.config.recipe
    settings = {field.name: getattr(recipe, field.name) for field in fields(MapperRecipe)}
    folder = workspace.workdir / workspace.name / "stage1" / run.training()[:16]
    train_once(replace(run.config, recipe=MapperRecipe(**settings)), folder, "bundle.json")
    return folder


def train_once(config: TrainConfig, folder: Path, product: str) -> None:
    """Train in `folder` unless the file `product` of a finished training is there.

    Raises:
        Stopped: a signal came; the same call continues from there.
    """
    if (folder / product).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log, redirect_stdout(log):
        train(config, folder, "python -m miniature")
    if not (folder / product).exists():
        raise Stopped(f"{folder} was stopped: run the same command again to continue")
    shutil.rmtree(folder / "checkpoints")  # there are many runs, and checkpoints are large


def training_config(
    recipe: Any, optimizer: OptimizerConfig, *, steps: int, batch: int, seed: int
) -> TrainConfig:
    """Return the config of a training that is evaluated once, at its end."""
    return TrainConfig(
        recipe=recipe,
        optimizer=optimizer,
        steps=steps,
        batch=batch,
        seed=seed,
        log_every=50,
        eval_every=max(steps, 1),
        keep=1,
    )


def train_bundle(config: TrainConfig, folder: Path) -> Path:
    """Return the bundle that a training leaves in `folder`, made if it is missing.

    Raises:
        Stopped: a signal came; the same call continues from there.
    """
    with one_at_a_time(folder):
        train_once(config, folder, "bundle.json")
    return folder


@contextmanager
def signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGINT raise `KeyboardInterrupt` in the block."""
    before = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_all(
    runs: Sequence[Any],
    workspace: Workspace,
    *,
    jobs: int,
    execute: Callable[[Any, Workspace], Line] = run_one,
) -> list[Line]:
    """Return the line of each run, after running those that have none, `jobs` at a time.

    With one job they run in this process. Otherwise each run has a process with one compute thread.

    Args:
        runs: have a key, a part, a name and a seed.
        execute: does what a run says, appends its line and returns it.
    """
    keys = [run.key(workspace) for run in runs]
    known = workspace.lines()
    todo = {key: run for key, run in zip(keys, runs, strict=True) if key not in known}
    print(f"{len(set(keys))} runs, {len(todo)} to do", flush=True)
    done = 0
    for run, line in _execute(list(todo.values()), workspace, jobs, execute):
        known, done = {**known, line["key"]: line}, done + 1
        name = available_scores(line)[0]
        value = ratio([line], name).values.mean()
        print(
            f"{done}/{len(todo)} {run.part}: {run.name}, seed {run.seed}, "
            f"{SCORES[name].label} {value:.4f}, {line['seconds']:.0f} s",
            flush=True,
        )
    return [known[key] for key in keys]


def _execute(
    runs: Sequence[Any],
    workspace: Workspace,
    jobs: int,
    execute: Callable[[Any, Workspace], Line],
) -> Iterator[tuple[Any, Line]]:
    if jobs == 1 or len(runs) < 2:
        yield from ((run, execute(run, workspace)) for run in runs)
        return
    cache = str(workspace.workdir.absolute() / "cache")
    spawn = get_context("spawn")
    with (
        _single_threaded_children(),
        signals_raise(),
        ProcessPoolExecutor(jobs, spawn, enable_compilation_cache, (cache,)) as pool,
    ):
        left = iter(runs)
        # No more than are done at a time: what is queued would begin where one is stopped.
        futures = {pool.submit(execute, run, workspace): run for run in islice(left, jobs)}
        try:
            while futures:
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    yield futures.pop(future), future.result()
                    for run in islice(left, 1):
                        futures[pool.submit(execute, run, workspace)] = run
        except BaseException:
            for process in active_children():  # they save a checkpoint and exit
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def enable_compilation_cache(folder: str) -> None:
    """Cache compiled programs in `folder`: many short runs share a few of them."""
    jax.config.update("jax_compilation_cache_dir", folder)


@contextmanager
def _single_threaded_children() -> Iterator[None]:
    """Let processes that are started inside this context compute with one thread."""
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


def group_lines(runs: Sequence[Run], lines: Sequence[Line]) -> Mapping[tuple, list[Line]]:
    """Group lines by part, name and share, in the order of the runs."""
    found: dict[tuple[str, str, float], list[Line]] = {}
    for run, line in zip(runs, lines, strict=True):
        found.setdefault((run.part, run.name, run.share), []).append(line)
    return found

"""A training run: its recipe, its numbers, and the step they lead to."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import optax
from flax import nnx

from mfm_jax.data.loader import Element, batches
from mfm_jax.data.sources import ClipFiles, ClipSource, Split
from mfm_jax.errors import SettingError
from mfm_jax.runtime.seeds import check_seed
from mfm_jax.runtime.sharding import Layout, MeshConfig, fetch
from mfm_jax.storage.weights import abstract, with_weights
from mfm_jax.train.optimizer import OptimizerConfig, build_optimizer, lr_multipliers
from mfm_jax.train.step import (
    Batch,
    ComputeConfig,
    TrainState,
    abstract_state,
    init_state,
    make_step,
    trainable,
)
from mfm_jax.typing import Array, Float


@dataclass(frozen=True)
class Recipe:
    """The training of one network, as steps that `train.py` calls in this order.

    A dataset is anything with `len`, `[i]` (an element: arrays by name) and `id_of(i)`.
    """

    source: ClipSource = field(default_factory=ClipFiles)  # of the clips; a path or FoleyClips

    loaded: ClassVar[tuple[str, ...]] = ()
    """Patterns of names of weights that `warm_start` puts there; they are not drawn."""

    def check(self, workdir: Path) -> None:
        """Check the files and folders that the recipe names, before anything is made.

        Raises:
            UserError: one of them cannot be used.
        """

    def prepare(self, workdir: Path) -> Split:
        """Return the training and the held-out dataset, made where they are missing."""
        raise NotImplementedError

    def transform(self, element: Element, rng: np.random.Generator) -> Element:
        """Return an element of a dataset as it goes into a batch; `rng` may augment it."""
        return element

    def element_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of an element in a batch, from sizes alone, to plan a step with.

        Raises:
            SettingError: this recipe cannot tell before it has its data.
        """
        raise SettingError(f"a {type(self).__name__} cannot be planned: its batch is not known")

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        """Return the network with the parts that only training needs."""
        raise NotImplementedError

    def warm_start(self, module: Any, dataset: Any) -> Any:
        """Return `module` initialised from the training set or from trained networks."""
        return module

    def loss(self, module: Any, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """Return the loss of a batch, and metrics to report beside it."""
        raise NotImplementedError

    def evaluate(self, module: Any, dataset: Any, batch: int) -> dict[str, float]:
        """Return metrics of held-out clips; by default the loss."""
        loader = batches(dataset, batch=batch, seed=0, train=False, transform=self.eval_transform)
        return mean_metrics(partial(_score, self, module), loader)

    def eval_transform(self, element: Element, rng: np.random.Generator) -> Element:
        """Return an element of held-out clips as it goes into a batch; nothing is drawn."""
        return self.transform(element, np.random.default_rng(0))

    def sounds(self, module: Any, dataset: Any) -> dict[str, Float[np.ndarray, " A"]]:
        """Return the sound that the network makes for a few held-out clips, by their ids.

        The same weights make the same sound. A network that makes no sound returns nothing.
        """
        return {}

    def finish(self, module: Any, workdir: Path, command: str) -> Path | None:
        """Put the trained network into its bundle, and return the bundle's path.

        Args:
            command: what trained it.
        """
        raise NotImplementedError


@partial(jax.jit, static_argnums=0)
def _score(recipe: Recipe, module: Any, batch: Batch) -> dict[str, Array]:
    module.eval()
    value, metrics = recipe.loss(module, batch, jax.random.key(0))
    return {"loss": value, **metrics}


def mean_metrics(score, loader: Iterable[Any]) -> dict[str, float]:
    """Return the mean of `score(batch)` over all elements of `loader`."""
    totals: dict[str, float] = {}
    count = 0
    for batch in loader:
        size = len(next(iter(batch.values())))
        for name, value in fetch(score(batch)).items():
            totals[name] = totals.get(name, 0.0) + float(value) * size
        count += size
    return {name: total / count for name, total in totals.items()}


def check_shares(recipe: Recipe, *names: str) -> None:
    """Check that these fields lie between 0 and 1.

    Raises:
        SettingError: one does not.
    """
    for name in names:
        if not 0 <= getattr(recipe, name) <= 1:
            raise SettingError(
                f"recipe.{name} is a share from 0 to 1, not {getattr(recipe, name)!r}"
            )


@dataclass(frozen=True)
class TrainConfig:
    """A run of `train.py`."""

    recipe: Recipe
    optimizer: OptimizerConfig
    steps: int
    batch: int  # clips in a step
    seed: int = 0  # of the weights, the order of the data and every draw; below 2**64
    ema_decay: float | None = None  # per step, of the mean of the weights; None: no mean is kept
    log_every: int = 20  # steps between lines of metrics
    eval_every: int = 200  # steps between evaluations
    save_every: int = 200  # steps between checkpoints
    keep: int = 2  # checkpoints that stay, the last ones
    # A metric of the evaluation, such as "loa_error". The checkpoint with the least of it stays as
    # well, and the run ends with its weights. Empty: the weights of the last step.
    best: str = ""
    sample_every: int = 0  # steps between the sounds of a few held-out clips; 0: none are made
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)  # the devices

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("batch", "log_every", "eval_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("steps", "sample_every"):
            if getattr(self, name) < 0:
                raise SettingError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.sample_every and type(self.recipe).sounds is Recipe.sounds:
            raise SettingError(
                f"sample_every: a {type(self.recipe).__name__} trains a network that makes no "
                "sound: leave it at 0"
            )


Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


@dataclass(frozen=True)
class TrainSetup:
    """The network, optimizer and step of a run on some devices, for training and for planning."""

    config: TrainConfig
    layout: Layout
    abstract_module: nnx.Module  # the network with shapes instead of weights
    lr_multiplier: dict[str, float | None]  # by weight; None: frozen
    tx: optax.GradientTransformation

    @classmethod
    def of(cls, config: TrainConfig, layout: Layout) -> "TrainSetup":
        """Set up a run on the devices of `layout`.

        Raises:
            SettingError: a batch cannot be cut into `compute.accumulate` parts, and each over the
                devices, or a pattern of `optimizer.lr_multipliers` names no weight.
        """
        count = config.compute.accumulate
        if config.batch % count:
            raise SettingError(
                f"compute.accumulate: a batch of {config.batch} cannot be cut into {count} equal "
                "parts"
            )
        layout.batch(config.batch // count)
        module = abstract(config.recipe.build)
        multiplier = lr_multipliers(config.optimizer.lr_multipliers, trainable(module))
        tx = build_optimizer(config.optimizer, config.steps, multiplier)
        return cls(config, layout, module, multiplier, tx)

    def step(self, compute: ComputeConfig | None = None) -> Step:
        """Return the jitted step, computed as the config says unless `compute` says otherwise."""
        return make_step(
            self.abstract_module,
            self.config.recipe.loss,
            self.tx,
            ema_decay=self.config.ema_decay,
            layout=self.layout,
            compute=compute or self.config.compute,
        )

    def counted_step(self, step: Step) -> Step:
        """Return the step whose FLOPs an MFU counts: `step` without what it computes again."""
        once = replace(self.config.compute, remat="none")
        return step if self.config.compute == once else self.step(once)

    def averaged_module(self, state: TrainState) -> Any:
        """Return the network with the averaged weights of `state`, if a mean is kept."""
        return with_weights(self.abstract_module, state.weights(averaged=True))

    def init_state(self, module: nnx.Module) -> TrainState:
        """Return the state before the first step, on the devices."""
        return init_state(
            module,
            self.tx,
            self.lr_multiplier,
            ema=self.config.ema_decay is not None,
            seed=self.config.seed,
            layout=self.layout,
        )

    def abstract_state(self) -> TrainState:
        """Return the shapes and shardings of the state; no device holds anything."""
        return abstract_state(
            self.abstract_module,
            self.tx,
            self.lr_multiplier,
            ema=self.config.ema_decay is not None,
            layout=self.layout,
        )

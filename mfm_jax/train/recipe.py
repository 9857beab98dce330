"""What a training run consists of: its recipe and its numbers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from mfm_jax.data.loader import Element, batches
from mfm_jax.errors import SettingError
from mfm_jax.runtime.sharding import Layout, MeshConfig, fetch
from mfm_jax.storage.weights import abstract
from mfm_jax.train.optimizer import OptimizerConfig, build_optimizer, factors
from mfm_jax.train.step import (
    Batch,
    ComputeConfig,
    TrainState,
    begin,
    describe,
    make_step,
    trainable,
)
from mfm_jax.typing import Array, Float


@dataclass(frozen=True)
class Recipe:
    """How one network is trained, as steps that `train.py` calls in this order."""

    def prepare(self, workdir: Path) -> tuple[Any, Any]:
        """The training and the held-out source, made where they are not there yet."""
        raise NotImplementedError

    def transform(self, element: Element, rng: np.random.Generator) -> Element:
        """An element of a source as it goes into a batch; `rng` may augment it."""
        return element

    def name_of(self, source: Any, number: int) -> str:
        """What an element of a source is called, for messages."""
        return source.id_of(number) if hasattr(source, "id_of") else str(number)

    def row(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes of a clip's arrays in a batch, from sizes alone: what a step is planned with.

        Raises:
            SettingError: this recipe cannot tell before it has its data.
        """
        raise SettingError(f"a {type(self).__name__} cannot be planned: its batch is not known")

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        """The network, with whatever only training needs."""
        raise NotImplementedError

    def begin(self, module: Any, source: Any) -> Any:
        """`module` with what it should know about the training set before the first step."""
        return module

    def loss(self, module: Any, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        """The loss of a batch, and metrics to report beside it."""
        raise NotImplementedError

    def evaluate(self, module: Any, source: Any, batch: int) -> dict[str, float]:
        """Metrics on held-out clips; by default the loss."""
        loader = batches(source, batch=batch, seed=0, train=False, transform=self.still)
        return mean_metrics(partial(_score, self, module), loader)

    def still(self, element: Element, rng: np.random.Generator) -> Element:
        """As `transform`, for held-out clips: nothing is drawn."""
        return self.transform(element, np.random.default_rng(0))

    def sounds(self, module: Any, source: Any) -> dict[str, Float[np.ndarray, " A"]]:
        """What the network makes of a few held-out clips, by their names, if it makes sound.

        The same weights make the same sound.
        """
        return {}

    def finish(self, module: Any, workdir: Path, command: str) -> Path | None:
        """Put the trained network into its bundle, of which the path is returned.

        `command` is what trained it.
        """
        raise NotImplementedError


@partial(jax.jit, static_argnums=0)
def _score(recipe: Recipe, module: Any, batch: Batch) -> dict[str, Array]:
    module.eval()
    value, metrics = recipe.loss(module, batch, jax.random.key(0))
    return {"loss": value, **metrics}


def mean_metrics(score, loader: Iterable[Any]) -> dict[str, float]:
    """The mean of `score(batch)` over all elements of `loader`."""
    totals: dict[str, float] = {}
    count = 0
    for batch in loader:
        size = len(next(iter(batch.values())))
        for name, value in fetch(score(batch)).items():
            totals[name] = totals.get(name, 0.0) + float(value) * size
        count += size
    return {name: total / count for name, total in totals.items()}


@dataclass(frozen=True)
class TrainConfig:
    """A run of `train.py`."""

    recipe: Recipe
    optimizer: OptimizerConfig
    steps: int
    batch: int  # clips in a step
    seed: int = 0  # of the weights, the order of the data and every draw
    ema: float | None = None  # share of the mean of the weights kept at each step; None: no mean
    log: int = 20  # steps from one line of metrics to the next
    evaluate: int = 200  # steps between evaluations
    save: int = 200  # steps between checkpoints
    keep: int = 2  # checkpoints that stay, the last ones
    # A metric of the evaluation, such as "loa_error". The checkpoint with the least of it stays as
    # well, and the run ends with its weights. Those of the last step if empty.
    best: str = ""
    samples: int = 0  # steps between the sounds of a few held-out clips; 0: none are made
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)  # the devices

    def __post_init__(self) -> None:
        if self.samples and type(self.recipe).sounds is Recipe.sounds:
            raise SettingError(
                f"samples: what a {type(self.recipe).__name__} trains makes no sound: leave it at 0"
            )


@dataclass(frozen=True)
class Assembly:
    """What a run steps with, for some devices: the same for training and for planning it."""

    config: TrainConfig
    layout: Layout
    skeleton: nnx.Module  # the network with shapes instead of weights
    factor: dict[str, float | None]  # of the learning rate, by weight; None: frozen
    tx: optax.GradientTransformation

    @classmethod
    def of(cls, config: TrainConfig, layout: Layout) -> "Assembly":
        """For the devices of `layout`.

        Raises:
            SettingError: a batch cannot be cut into `compute.accumulate` parts, and each over the
                devices, or a pattern of `optimizer.rates` names no weight.
        """
        count = config.compute.accumulate
        if config.batch % count:
            raise SettingError(
                f"compute.accumulate: a batch of {config.batch} cannot be cut into {count} equal "
                "parts"
            )
        layout.batch(config.batch // count)
        skeleton = abstract(config.recipe.build)
        factor = factors(config.optimizer.rates, trainable(skeleton))
        return cls(
            config, layout, skeleton, factor,
            build_optimizer(config.optimizer, config.steps, factor),
        )  # fmt: skip

    def step(
        self, compute: ComputeConfig | None = None
    ) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
        """The jitted step, computed as the config says or in another way."""
        return make_step(
            self.skeleton, self.config.recipe.loss, self.tx,
            ema=self.config.ema, layout=self.layout, compute=compute or self.config.compute,
        )  # fmt: skip

    def begin(self, module: nnx.Module) -> TrainState:
        """The state before the first step, on the devices."""
        config = self.config
        return begin(
            module, self.tx, self.factor, ema=config.ema, seed=config.seed, layout=self.layout
        )

    def describe(self) -> TrainState:
        """As `begin`, of shapes that say where their arrays lie: nothing is on any device."""
        return describe(
            self.skeleton, self.tx, self.factor, ema=self.config.ema, layout=self.layout
        )

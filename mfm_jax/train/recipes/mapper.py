"""The mapper: LOA of a clip's sound from the video encoders' tokens."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from mfm_jax.bundle import Bundle, Source, write_bundle
from mfm_jax.data.loader import Element, batches
from mfm_jax.mapper import GPT2Mapper, Mapper, MapperConfig, Stream, Streams, build_mapper
from mfm_jax.models.audiomae import LOA, pool_loa
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.paths import TINY_BUNDLE
from mfm_jax.settings import SettingError
from mfm_jax.train.contrastive import clip_loss
from mfm_jax.train.foley import LICENCE, FeatureRecipe
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array, Float


def tiny_mapper() -> MapperConfig:
    """Between the tiny encoders: 16 LOA tokens of 160 ms, in standard deviations."""
    return MapperConfig(
        encoders=(("cavp", 32, 64), ("timechat", 16, 96)),
        loa_width=128,
        loa=LOA(grid=(16, 8), pool=(1, 8)),
        gpt2=GPT2Config.tiny(),
        head=True,
    )


@dataclass(frozen=True)
class MapperRecipe(FeatureRecipe):
    """Teacher-forced regression to LOA; the workdir becomes a bundle with the mapper in it."""

    bundle: str = str(TINY_BUNDLE)
    clips: str = ""
    network: MapperConfig = field(default_factory=tiny_mapper)
    error: str = "mse"  # or "l1", as in AudioLDM2's code; it learns silence at small budgets
    contrast: float = 0.1  # weight of telling the clips of a batch apart by their LOA
    temperature: float = 0.1  # of that
    # A component of the bundle whose GPT-2 the mapper starts from: "gpt2", or AudioLDM2's own
    # "sequence". From random weights if empty.
    start: str = ""
    own: float = 0.5  # share of fed LOA tokens that are the mapper's own; 0 saves a second pass

    def __post_init__(self) -> None:
        if self.error not in ("mse", "l1"):
            raise SettingError(f"recipe.error is mse or l1, not {self.error!r}")
        if self.start not in ("", "gpt2", "sequence"):
            raise SettingError(f"recipe.start is gpt2, sequence or empty, not {self.start!r}")

    def read(self, element: Element) -> Element:
        """The streams that the mapper has, and the true LOA."""
        names = [n for n in self.network.widths for n in (n, f"{n}_seconds")]
        loa = self.network.loa
        pooled = pool_loa(jnp.asarray(element["audiomae"], jnp.float32)[None], loa.grid, loa.pool)
        return {**{n: element[n] for n in names}, "loa": np.asarray(pooled[0])}

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return build_mapper(self.network, rngs=rngs)

    def begin(self, module: Mapper, source: Any) -> Mapper:
        """Take over a trained GPT-2; measure the mean and the spread of LOA, if it works in those.

        Raises:
            SettingError: the GPT-2 to start from has other sizes.
        """
        if self.start and isinstance(module, GPT2Mapper):
            module.gpt2 = self._trunk()
        if module.standardised:
            loa = np.stack([source[i]["loa"] for i in range(len(source))])
            module.loa_mean[...] = jnp.asarray(loa.mean(axis=(0, 1)))
            module.loa_std[...] = jnp.asarray(np.maximum(loa.std(axis=(0, 1)), 1e-6))
        return module

    def _trunk(self) -> GPT2:
        bundle = Bundle.open(Path(self.bundle))
        config = bundle.config(self.start)
        sizes = config if self.start == "gpt2" else config.gpt2
        if sizes != self.network.gpt2:
            raise SettingError(
                f"recipe.start: {self.start} is {sizes}, the mapper's is {self.network.gpt2}"
            )
        network = bundle.load(self.start, jnp.float32)
        return network if self.start == "gpt2" else network.gpt2

    def streams(self, batch: Batch) -> Streams:
        """What the mapper reads of a batch."""
        return {
            name: Stream(batch[name].astype(jnp.float32), batch[f"{name}_seconds"])
            for name in self.network.widths
        }

    def loss(self, module: Mapper, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        streams, loa = self.streams(batch), batch["loa"]
        fed = loa
        if self.own and self.network.kind == "gpt2":
            first = jax.lax.stop_gradient(module.restore(module(streams, loa)))
            mine = jax.random.uniform(key, (*loa.shape[:2], 1)) < self.own
            # Position k reads vectors before k, so `first` at k is what the mapper would feed on.
            fed = jnp.where(mine, first, loa)
        predicted, target = module(streams, fed), module.standardise(loa)
        difference = predicted - target
        error = (difference**2 if self.error == "mse" else jnp.abs(difference)).mean()
        metrics = {self.error: error}
        if self.contrast:
            sides = [x.reshape(len(x), -1) for x in (predicted, target)]
            sides = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in sides]
            metrics["contrast"] = clip_loss(sides[0], sides[1], jnp.array(1 / self.temperature))
            error = error + self.contrast * metrics["contrast"]
        return error, metrics

    def evaluate(self, module: Mapper, source: Any, batch: int) -> dict[str, float]:
        """LOA errors, free-running, in the units of `standardise`, on held-out clips.

        `loa_error` is the mapper's, `loa_error_mean` that of the mean LOA of these clips at every
        place, `loa_error_shuffled` that of the mapper's LOA of another clip.
        """
        made, true = predictions(self, module, batches(source, batch=batch, seed=0, train=False))
        errors = {
            "loa_error": made,
            "loa_error_mean": np.broadcast_to(true.mean(axis=0, keepdims=True), true.shape),
            "loa_error_shuffled": np.roll(made, 1, axis=0),
        }
        return {name: float(((x - true) ** 2).mean()) for name, x in errors.items()}

    def finish(self, module: Mapper, workdir: Path, command: str) -> None:
        """Make the workdir a bundle: the other networks are those of the recipe's."""
        entry = (self.network, module, Source(command, LICENCE))
        write_bundle(workdir, {"mapper": entry}, base=Path(self.bundle))


def predictions(
    recipe: MapperRecipe, module: Mapper, loader: Iterable[Any]
) -> tuple[Float[np.ndarray, "N K D"], Float[np.ndarray, "N K D"]]:
    """LOA predicted from video alone and true LOA, both in the units of `standardise`."""
    pairs = [jax.device_get(_predict(recipe, module, batch)) for batch in loader]
    made, true = zip(*pairs, strict=True)
    return np.concatenate(made), np.concatenate(true)


@partial(jax.jit, static_argnums=0)
def _predict(recipe: MapperRecipe, module: Mapper, batch: Batch) -> tuple[Array, Array]:
    made = module.generate(recipe.streams(batch))
    return module.standardise(made), module.standardise(batch["loa"])

"""The smallest recipe: a regression of noise on noise, for tests of `train.py` itself."""

import os
import signal
from dataclasses import dataclass, field

import numpy as np
from flax import nnx
from jax import numpy as jnp

from mfm_jax.data.sources import Split
from mfm_jax.layers import batch_norm, linear
from mfm_jax.layers.remat import run
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import Recipe, TrainConfig

RATES = (("first.*", None),)


class Net(nnx.Module):
    def __init__(self, *, rngs):
        self.first = linear(5, 7, rngs=rngs)
        self.norm = batch_norm(7, rngs=rngs)
        self.last = linear(7, 3, rngs=rngs)

    def __call__(self, x):
        x = self.first(x.astype(self.first.kernel.dtype))
        return run(self.last, self.norm(x))


class Rows(list):
    """Elements in memory, called by their number."""

    def id_of(self, index: int) -> str:
        return str(index)


@dataclass(frozen=True)
class Regression(Recipe):
    """Of noise on noise; what happened is appended to `log`."""

    stop_at: int = -1  # number of the evaluation in which the process is told to stop
    poison: int = -1  # element that is not a number
    log: list = field(default_factory=list, hash=False, compare=False)

    def prepare(self, workdir):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((24, 5)).astype(np.float32)
        y = x @ rng.standard_normal((5, 3)).astype(np.float32)
        if self.poison >= 0:
            x[self.poison] = np.nan
        rows = [{"x": a, "y": b} for a, b in zip(x, y, strict=True)]
        return Split(Rows(rows), Rows(rows[:8]))

    def transform(self, element, rng):
        noise = rng.standard_normal(5).astype(np.float32)
        return {**element, "x": element["x"] + np.float32(0.1) * noise}

    def eval_transform(self, element, rng):
        return element

    def build(self, *, rngs):
        return Net(rngs=rngs)

    def loss(self, module, batch, key):
        made = module(batch["x"]).astype(jnp.float32)
        return jnp.mean((made - batch["y"]) ** 2), {}

    def evaluate(self, module, source, batch):
        if sum(kind == "evaluate" for kind, _ in self.log) == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        self.log.append(("evaluate", None))
        return super().evaluate(module, source, batch)

    def finish(self, module, workdir, command):
        self.log.append(("finish", nnx.to_pure_dict(nnx.state(module))))


def config(recipe, **changes):
    settings = {"steps": 12, "batch": 4, "ema_decay": 0.9}
    settings |= {"eval_every": 6, "save_every": 100, "log_every": 3}
    optimizer = OptimizerConfig(learning_rate=0.03, warmup_steps=2, lr_multipliers=RATES)
    return TrainConfig(recipe=recipe, optimizer=optimizer, **{**settings, **changes})

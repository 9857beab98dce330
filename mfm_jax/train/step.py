"""One step of training: a pure function of a state and a batch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jax import numpy as jnp

from mfm_jax.train.optimizer import Weights
from mfm_jax.typing import Array
from mfm_jax.weights import named_weights, with_weights

Batch = dict[str, Array]
Loss = Callable[[Any, Batch, Array], tuple[Array, dict[str, Array]]]


class TrainState(NamedTuple):
    """All that changes during a run, beside the position in the data; weights are by name."""

    params: Weights  # those that are trained
    frozen: Weights  # those that are not, and have no gradient and no moments
    stats: Weights  # running statistics, which the network updates itself
    opt: Any  # the optimizer's moments
    ema: Weights | None  # a running mean of `params`
    key: Array  # where all randomness of the run comes from
    step: Array  # steps done

    def weights(self, *, averaged: bool) -> Weights:
        """Every weight of the network; with the mean of those trained where there is one."""
        trained = self.ema if averaged and self.ema is not None else self.params
        return {**trained, **self.frozen, **self.stats}

    def items(self) -> dict[str, Any]:
        """The parts of a checkpoint."""
        parts = self._asdict()
        meta = {"key": jax.random.key_data(parts.pop("key")), "step": parts.pop("step")}
        return {**parts, "meta": meta}

    @classmethod
    def of(cls, items: Mapping[str, Any]) -> "TrainState":
        """The inverse of `items`."""
        parts = dict(items)
        meta = parts.pop("meta")
        return cls(**parts, key=jax.random.wrap_key_data(meta["key"]), step=meta["step"])


def begin(
    module: nnx.Module,
    tx: optax.GradientTransformation,
    factor: Mapping[str, float | None],
    *,
    ema: float | None,
    seed: int,
) -> TrainState:
    """The state before the first step; `factor` is None for frozen weights."""
    weights: dict[str, Any] = named_weights(module)
    stats = named_stats(module)
    params = {n: weights[n] for n in trainable(module) if factor[n] is not None}
    frozen = {n: weights[n] for n in trainable(module) if factor[n] is None}
    # A copy: the state is donated to the step, which cannot take one array twice.
    mean = None if ema is None else jax.tree.map(jnp.copy, params)
    return TrainState(
        params, frozen, stats, tx.init(params), mean, jax.random.key(seed), jnp.array(0)
    )


def named_stats(module: nnx.Module) -> dict[str, Any]:
    """The running statistics of `module` by name; shapes where it holds no weights."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.BatchStat))
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in flat}


def trainable(module: nnx.Module) -> list[str]:
    """The names of all weights that are no running statistics."""
    stats = named_stats(module)
    return [name for name in named_weights(module) if name not in stats]


def make_step(
    skeleton: nnx.Module, loss: Loss, tx: optax.GradientTransformation, *, ema: float | None
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """The step of `loss(module, batch, key) -> (loss, metrics)`; the state given to it is used up.

    Args:
        skeleton: the network with shapes instead of weights.
        ema: how much of the mean of the weights is kept at each step.
    """

    def objective(params: Weights, state: TrainState, batch: Batch):
        module = with_weights(skeleton, {**params, **state.frozen, **state.stats})
        module.train()
        value, metrics = loss(module, batch, jax.random.fold_in(state.key, state.step))
        return value, (metrics, named_stats(module))

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        (value, (metrics, stats)), gradients = jax.value_and_grad(objective, has_aux=True)(
            state.params, state, batch
        )
        updates, opt = tx.update(gradients, state.opt, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        mean = state.ema
        if ema is not None:
            # Early on the mean follows faster, or it would remember the random start.
            keep = jnp.minimum(ema, (state.step + 1) / (state.step + 10)).astype(jnp.float32)
            mean = jax.tree.map(lambda m, p: m + (1 - keep) * (p - m), state.ema, params)
        metrics = {"loss": value, "gradient": optax.tree.norm(gradients), **metrics}
        done = state._replace(params=params, stats=stats, opt=opt, ema=mean, step=state.step + 1)
        return done, metrics

    return step

"""One step of training: a pure function of a state and a batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from einops import rearrange
from flax import nnx
from jax import numpy as jnp
from jax.sharding import NamedSharding

from mfm_jax.errors import SettingError
from mfm_jax.layers.remat import POLICIES, rematerialise
from mfm_jax.runtime.seeds import random_key
from mfm_jax.runtime.sharding import Layout, constrain, copied, named_like
from mfm_jax.storage.weights import cast, named_axes, named_weights, with_weights
from mfm_jax.train.optimizer import Weights
from mfm_jax.typing import Array

Batch = dict[str, Array]
Loss = Callable[[Any, Batch, Array], tuple[Array, dict[str, Array]]]
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class ComputeConfig:
    """Precision, accumulation and rematerialisation; the result is the same within rounding."""

    # Of the networks' arithmetic: "float32" or "bfloat16". Weights, their moments, accumulated
    # gradients and running statistics are always float32, so that a network continues in float32
    # behind a BatchNorm. Compilers may sum gradients over devices in bfloat16, as they do for TPUs
    # (`mfm plan` shows the bytes).
    precision: str = "float32"
    # Parts that a batch is computed in, one after the other. A loss over a whole batch, such as a
    # contrast, is then a loss over each part.
    accumulate: int = 1
    remat: str = "none"  # activations computed again to save memory: "none", "products", "blocks"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise SettingError(
                f"compute.precision is {' or '.join(PRECISIONS)}, not {self.precision!r}"
            )
        if self.remat not in POLICIES:
            raise SettingError(f"compute.remat is {' or '.join(POLICIES)}, not {self.remat!r}")
        if self.accumulate < 1:
            raise SettingError(f"compute.accumulate is at least 1, not {self.accumulate}")


class TrainState(NamedTuple):
    """Everything that changes during a run but the position in the data; weights are by name."""

    params: Weights  # those that are trained
    frozen: Weights  # those that are not, and have no gradient and no moments
    stats: Weights  # running statistics, which the network updates itself
    opt: Any  # the optimizer's moments
    ema: Weights | None  # a running mean of `params`
    key: Array  # where all randomness of the run comes from
    step: Array  # steps done

    def weights(self, *, averaged: bool) -> Weights:
        """Return every weight of the network.

        Args:
            averaged: take the mean of the trained weights, if one is kept.
        """
        trained = self.ema if averaged and self.ema is not None else self.params
        return {**trained, **self.frozen, **self.stats}

    def items(self) -> dict[str, Any]:
        """Return the items of a checkpoint; shapes if the state holds shapes."""
        parts = self._asdict()
        meta = {"key": _key_data(parts.pop("key")), "step": parts.pop("step")}
        return {**parts, "meta": meta}

    def averaged_items(self) -> dict[str, Any]:
        """Return the checkpoint items that determine the averaged weights."""
        trained = "params" if self.ema is None else "ema"
        return {trained: getattr(self, trained), "stats": self.stats}

    @classmethod
    def of(cls, items: Mapping[str, Any]) -> "TrainState":
        """Invert `items`."""
        parts = dict(items)
        meta = parts.pop("meta")
        return cls(**parts, key=jax.random.wrap_key_data(meta["key"]), step=meta["step"])


def _key_data(key: Array | jax.ShapeDtypeStruct) -> Array | jax.ShapeDtypeStruct:
    if isinstance(key, jax.ShapeDtypeStruct):
        data = jax.eval_shape(jax.random.key_data, key)
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=key.sharding)
    return jax.random.key_data(key)


def init_state(
    module: nnx.Module,
    tx: optax.GradientTransformation,
    lr_multiplier: Mapping[str, float | None],
    *,
    ema: bool,
    seed: int,
    layout: Layout,
) -> TrainState:
    """Return the state before the first step, on the devices.

    Args:
        lr_multiplier: by weight; None for frozen weights.
        ema: keep a mean of the trained weights.
    """
    shardings = weight_shardings(module, layout)
    params, frozen, stats = _parts(
        layout.put(named_weights(module), shardings), module, lr_multiplier
    )
    # A copy: the state is donated to the step, which cannot take one array twice.
    mean = copied(params) if ema else None
    opt = jax.eval_shape(tx.init, params)
    opt = jax.jit(tx.init, out_shardings=_sharding_of(opt, shardings, layout))(params)
    key, step = layout.put((random_key(seed), jnp.array(0)), (layout.replicated, layout.replicated))
    return TrainState(params, frozen, stats, opt, mean, key, step)


def abstract_state(
    abstract_module: nnx.Module,
    tx: optax.GradientTransformation,
    lr_multiplier: Mapping[str, float | None],
    *,
    ema: bool,
    layout: Layout,
) -> TrainState:
    """Return the shapes and shardings of `init_state`; no device holds anything."""
    shardings = weight_shardings(abstract_module, layout)

    def initial() -> TrainState:
        weights = {
            n: jnp.zeros(w.shape, w.dtype) for n, w in named_weights(abstract_module).items()
        }
        params, frozen, stats = _parts(weights, abstract_module, lr_multiplier)
        mean = params if ema else None
        return TrainState(
            params, frozen, stats, tx.init(params), mean, jax.random.key(0), jnp.array(0)
        )

    shapes = jax.eval_shape(initial)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        _sharding_of(shapes, shardings, layout),
    )


def _parts(
    weights: Weights, module: nnx.Module, lr_multiplier: Mapping[str, float | None]
) -> tuple[Weights, Weights, Weights]:
    """Divide weights into trained ones, frozen ones and running statistics."""
    stats = {n: weights[n] for n in named_stats(module)}
    params = {n: weights[n] for n in trainable(module) if lr_multiplier[n] is not None}
    frozen = {n: weights[n] for n in trainable(module) if lr_multiplier[n] is None}
    return params, frozen, stats


def weight_shardings(module: nnx.Module, layout: Layout) -> dict[str, NamedSharding]:
    """Return the sharding of each weight of `module`, which may hold shapes."""
    axes = named_axes(module)
    return {n: layout.weight(axes[n], leaf.shape) for n, leaf in named_weights(module).items()}


def _sharding_of(tree: Any, shardings: Mapping[str, NamedSharding], layout: Layout) -> Any:
    """Return the shardings of a tree of weights by name, and of others, which are replicated."""
    return named_like(tree, lambda name: shardings.get(name, layout.replicated))


def named_stats(module: nnx.Module) -> dict[str, Any]:
    """Return the running statistics of `module` by name; shapes if it is abstract."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.BatchStat))
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in flat}


def trainable(module: nnx.Module) -> list[str]:
    """Return the names of all weights that are not running statistics."""
    stats = named_stats(module)
    return [name for name in named_weights(module) if name not in stats]


def make_step(
    abstract_module: nnx.Module,
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    ema_decay: float | None,
    layout: Layout,
    compute: ComputeConfig = ComputeConfig(),
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Return the jitted step that minimises `loss(module, batch, key) -> (loss, metrics)`.

    The state given to the step is donated.

    Args:
        abstract_module: the network with shapes instead of weights.
        ema_decay: EMA decay of the trained weights per step; None keeps no mean.
        layout: where the state lies, before and after.
        compute: how the gradients are computed.
    """
    shardings = weight_shardings(abstract_module, layout)

    def objective(params: Weights, stats: Weights, frozen: Weights, batch: Batch, key: Array):
        weights = cast({**params, **frozen}, compute.precision)
        module = with_weights(abstract_module, {**weights, **stats})
        module.train()
        with rematerialise(compute.remat):
            value, metrics = loss(module, batch, key)
        metrics = {"loss": value, **metrics}
        return value.astype(jnp.float32), (metrics, named_stats(module))

    def gradients_of(state: TrainState, batch: Batch, key: Array):
        """Return the gradients of a batch or a part of one, its metrics, and the new statistics."""
        gradients, (metrics, stats) = jax.grad(objective, has_aux=True)(
            state.params, state.stats, state.frozen, batch, key
        )
        # In pieces like the weights, so that no device ever holds or sums all of them.
        gradients = layout.constrain(gradients, _sharding_of(gradients, shardings, layout))
        return gradients, metrics, stats

    def accumulated(state: TrainState, batch: Batch, key: Array):
        """Return the means over the parts of a batch, computed one after the other."""
        count = compute.accumulate
        # Every device takes its part of each part from its own clips.
        parts = jax.tree.map(lambda x: rearrange(x, "(b n) ... -> n b ...", n=count), batch)
        parts = jax.tree.map(lambda x: constrain(x, None, "batch"), parts)

        def add(carry, part):
            sums, stats = carry
            number, clips = part
            found, metrics, stats = gradients_of(
                state._replace(stats=stats), clips, jax.random.fold_in(key, number)
            )
            return (jax.tree.map(jnp.add, sums, found), stats), metrics

        nothing = jax.tree.map(jnp.zeros_like, state.params)
        (sums, stats), metrics = jax.lax.scan(
            add, (nothing, state.stats), (jnp.arange(count), parts)
        )
        gradients = jax.tree.map(lambda x: x / count, sums)
        return gradients, jax.tree.map(lambda x: x.mean(axis=0), metrics), stats

    @partial(jax.jit, donate_argnums=0)
    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        grade = gradients_of if compute.accumulate == 1 else accumulated
        gradients, metrics, stats = grade(state, batch, key)
        updates, opt = tx.update(gradients, state.opt, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        mean = state.ema
        if ema_decay is not None:
            # Early on the mean follows faster, or it would remember the random start.
            keep = jnp.minimum(ema_decay, (state.step + 1) / (state.step + 10)).astype(jnp.float32)
            mean = jax.tree.map(lambda m, p: m + (1 - keep) * (p - m), state.ema, params)
        metrics = {"loss": metrics["loss"], "gradient": optax.tree.norm(gradients), **metrics}
        done = state._replace(params=params, stats=stats, opt=opt, ema=mean, step=state.step + 1)
        # Left to itself the compiler may cut what a step returns in another way than it was.
        done = layout.constrain(done, _sharding_of(done, shardings, layout))
        return done, layout.constrain(metrics, layout.replicated)

    return step

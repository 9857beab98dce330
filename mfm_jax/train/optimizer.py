"""AdamW with warm-up, cosine decay and clipping, its learning rate set by weight name."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import jax
import optax

from mfm_jax.errors import SettingError

Weights = dict[str, jax.Array]


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule."""

    learning_rate: float  # the highest
    warmup_steps: int = 50  # from 0 to `learning_rate`
    min_lr_ratio: float = 0.01  # learning rate of the last step, as a share of `learning_rate`
    weight_decay: float = 0.05  # of weights with two axes or more
    clip_norm: float = 1.0  # largest norm of all gradients together
    b1: float = 0.9  # decay of the mean of gradients
    b2: float = 0.999  # decay of the mean of their squares
    # (pattern of weight names, factor on the learning rate or None for frozen); the first match
    # wins, and the factor of all other weights is 1.
    lr_multipliers: tuple[tuple[str, float | None], ...] = ()


def lr_multipliers(
    patterns: Iterable[tuple[str, float | None]], names: Iterable[str]
) -> dict[str, float | None]:
    """Return the factor on the learning rate of each weight, None if the weight is frozen.

    Raises:
        SettingError: a pattern decides nothing.
    """
    ordered = tuple(patterns)
    idle = {pattern for pattern, _ in ordered}
    chosen: dict[str, float | None] = {}
    for name in names:
        match = next((row for row in ordered if fnmatchcase(name, row[0])), None)
        chosen[name] = 1.0 if match is None else match[1]
        idle.discard("" if match is None else match[0])
    if idle:
        raise SettingError(
            f"optimizer.lr_multipliers: no weight is left for {', '.join(sorted(idle))}: "
            "correct the pattern or remove it"
        )
    return chosen


def build_optimizer(
    config: OptimizerConfig, steps: int, multiplier: Mapping[str, float | None]
) -> optax.GradientTransformation:
    """Return the optimizer of a run of `steps`, for the weights by name that are not frozen."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(config.warmup_steps, max(1, steps // 2)),
        decay_steps=max(2, steps),
        end_value=config.learning_rate * config.min_lr_ratio,
    )

    def scale(updates: Weights, _) -> Weights:
        factors = {name: multiplier[name] or 0.0 for name in updates}
        return {n: u if factors[n] == 1.0 else u * factors[n] for n, u in updates.items()}

    chain = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.b1, b2=config.b2),
        optax.add_decayed_weights(config.weight_decay, mask=_matrices),
        optax.scale_by_learning_rate(schedule),
        optax.stateless(scale),
    )

    def update(gradients, state, weights=None):
        # Optax multiplies its integer counts with floats, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(gradients, state, weights)

    return optax.GradientTransformation(chain.init, update)


def _matrices(weights: Weights) -> dict[str, bool]:
    """Select what is decayed: not biases, norm scales and single vectors."""
    return {name: weight.ndim > 1 for name, weight in weights.items()}

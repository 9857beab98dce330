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

    rate: float  # the highest learning rate
    warmup: int = 50  # steps from 0 to `rate`
    last: float = 0.01  # the learning rate of the last step, as a share of `rate`
    decay: float = 0.05  # weight decay of weights with two axes or more
    clip: float = 1.0  # largest norm of all gradients together
    b1: float = 0.9  # decay of the mean of gradients
    b2: float = 0.999  # decay of the mean of their squares
    # (pattern of weight names, factor on the learning rate or None for frozen); the first match
    # wins, and weights that none names have factor 1.
    rates: tuple[tuple[str, float | None], ...] = ()


def factors(
    rates: Iterable[tuple[str, float | None]], names: Iterable[str]
) -> dict[str, float | None]:
    """The factor on the learning rate of each weight, None where it is frozen.

    Raises:
        SettingError: a pattern decides nothing.
    """
    rates, idle = tuple(rates), {pattern for pattern, _ in rates}
    chosen: dict[str, float | None] = {}
    for name in names:
        match = next((rate for rate in rates if fnmatchcase(name, rate[0])), None)
        chosen[name] = 1.0 if match is None else match[1]
        idle.discard("" if match is None else match[0])
    if idle:
        raise SettingError(
            f"optimizer.rates: no weight is left for {', '.join(sorted(idle))}: "
            "correct the pattern or remove it"
        )
    return chosen


def build_optimizer(
    config: OptimizerConfig, steps: int, factor: Mapping[str, float | None]
) -> optax.GradientTransformation:
    """The optimizer of a run of `steps`, for weights by name; frozen ones are not given to it."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.rate,
        warmup_steps=min(config.warmup, max(1, steps // 2)),
        decay_steps=max(2, steps),
        end_value=config.rate * config.last,
    )

    def scale(updates: Weights, _) -> Weights:
        return {name: update * (factor[name] or 0.0) for name, update in updates.items()}

    chain = optax.chain(
        optax.clip_by_global_norm(config.clip),
        optax.scale_by_adam(b1=config.b1, b2=config.b2),
        optax.add_decayed_weights(config.decay, mask=_matrices),
        optax.scale_by_learning_rate(schedule),
        optax.stateless(scale),
    )

    def update(gradients, state, weights=None):
        # Optax multiplies its integer counts with floats, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return chain.update(gradients, state, weights)

    return optax.GradientTransformation(chain.init, update)


def _matrices(weights: Weights) -> dict[str, bool]:
    """Biases, norm scales and single vectors are not decayed."""
    return {name: weight.ndim > 1 for name, weight in weights.items()}

"""The T5 states of "", which the text branch of AudioLDM2 reads if there is no prompt.

AudioLDM2 was trained with them as its empty text. They are a constant that is stored with the
weights, so that generation without a prompt does not need T5.
"""

from dataclasses import dataclass

from flax import nnx
from jax import numpy as jnp

from mfm_jax.typing import Array, Float


@dataclass(frozen=True)
class EmptyTextConfig:
    """Sizes of the constant."""

    width: int = 1024  # of T5's states
    tokens: int = 1  # the end-of-text token alone


class EmptyText(nnx.Module):
    """The constant `states`, `[tokens, width]`."""

    def __init__(self, config: EmptyTextConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.states = nnx.BatchStat(jnp.zeros((config.tokens, config.width)))

    def __call__(self, batch: int) -> Float[Array, "B L D"]:
        """Return the constant for `batch` examples."""
        return jnp.broadcast_to(self.states[None], (batch, *self.states.shape))

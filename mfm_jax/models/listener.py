"""The listener: a classifier that names the material that was hit, from 320 ms of log-mel.

It is ours and serves measurement only: it is trained on the real sound of clips with known
contacts, and scores generated sound (`mfm_jax.foley.contacts`).
"""

from dataclasses import dataclass
from itertools import pairwise

import jax
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import conv, group_norm, linear
from mfm_jax.typing import Array, Float

LOUDNESS, SPREAD = -5.0, 3.0  # nats, about the mean and the deviation of a crop's log-mel


@dataclass(frozen=True)
class ListenerConfig:
    """Sizes of the classifier, and the names it gives."""

    materials: tuple[str, ...]
    mels: int = 64
    channels: tuple[int, ...] = (16, 32, 48, 64)  # of its convolutions, each of which halves
    groups: int = 8


class Listener(nnx.Module):
    """Strided convolutions, the mean over what is left of time and mel, and one linear layer."""

    def __init__(self, config: ListenerConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        widths = (1, *config.channels)
        self.convs = nnx.List(
            [conv(a, b, (3, 3), strides=2, padding=1, rngs=rngs) for a, b in pairwise(widths)]
        )
        self.norms = nnx.List(
            [group_norm(c, config.groups, epsilon=1e-5, rngs=rngs) for c in config.channels]
        )
        rows = config.mels >> len(config.channels)
        self.out = linear(widths[-1] * rows, len(config.materials), ("embed", None), rngs=rngs)

    def __call__(self, crops: Float[Array, "B T M"]) -> Float[Array, "B V"]:
        """Return logits of the materials; crops are those of `mfm_jax.foley.contacts.crops`."""
        x = ((crops - LOUDNESS) / SPREAD).astype(self.out.kernel.dtype)[..., None]
        for conv_, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.silu(norm(conv_(x)))
        # Time is averaged out, but a bin of mel stays where it is: the pitch tells materials apart.
        return self.out(jnp.mean(x, axis=1).reshape(len(x), -1))

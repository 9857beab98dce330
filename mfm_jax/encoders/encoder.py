"""The interface of a video encoder."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from mfm_jax.mapper import Stream
from mfm_jax.media.windows import Seen, View
from mfm_jax.runtime.sharding import constrain
from mfm_jax.typing import Array, Float, UInt8


class Frames(NamedTuple):
    """The frames that an encoder sees of a batch of windows."""

    pixels: UInt8[Array, "B T H W 3"]
    seconds: Float[Array, "B T"]  # since the window's start


class Encoder:
    """A video encoder for windows of one length: what it sees of one, and the tokens it gives.

    Attributes:
        view: the frames that it sees of a window.
        options: static arguments of `encode`.
    """

    title: ClassVar[str]
    """The name in plans and tables."""
    tensors: ClassVar[tuple[str, ...]] = ()
    """The kinds of tokens to choose from, where there is a choice."""
    formula: ClassVar[str] = ""
    """What is computed, in words, by an encoder without weights; no bundle has it."""
    encode: ClassVar[Callable[..., Stream]]
    """A jitted function of the network and of `inputs`, with `options`: tokens and their seconds.

    It shards both over the devices by window (`stream`).
    """

    view: View
    options: Mapping[str, Any]

    def __init__(self, config: Any, seconds: float, tensor: str = "") -> None:
        """Prepare for windows of so many seconds.

        Args:
            config: of the bundle's component; None for an encoder without weights.
            tensor: the kind of tokens, of `tensors`.

        Raises:
            ValueError: config, seconds and tensor do not go together.
        """
        self.options = {}

    def inputs(self, seen: Sequence[Seen]) -> Any:
        """Return what `encode` reads of windows: arrays whose first axis is the window.

        These are the frames alone, unless an encoder reads more.
        """
        return stack(seen)

    def network(self, component: Any) -> Any:
        """Return the part of the bundle's component that `encode` runs."""
        return component


def stack(seen: Sequence[Seen]) -> Frames:
    """Return the frames of windows as one batch."""
    pixels = jnp.asarray(np.stack([its.pixels for its in seen]))
    return Frames(pixels, jnp.asarray(np.stack([its.seconds for its in seen]), jnp.float32))


def stream(tokens: Float[Array, "B T D"], seconds: Float[Array, "B T"]) -> Stream:
    """Return tokens and their times, sharded over the devices by window."""
    return Stream(constrain(tokens, "batch"), constrain(seconds, "batch"))

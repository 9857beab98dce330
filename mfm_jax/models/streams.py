"""The input of mappers and adapters: the tokens of video encoders and the time of each token."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from mfm_jax.typing import Array, Bool, Float


class Stream(NamedTuple):
    """The tokens of one encoder over one window of video.

    `seconds` is the time of each token since the start of the window, for all encoders alike.
    `mask` is False at padding, which then changes nothing; without it every token counts.
    """

    tokens: Float[Array, "B S D"]
    seconds: Float[Array, "B S"]
    mask: Bool[Array, "B S"] | None = None


Streams = dict[str, Stream]

SHARED: Mapping[str, str] = {"moving": "timechat"}
"""Streams that are made by the network of another stream."""


def networks_of(streams: Iterable[str]) -> tuple[str, ...]:
    """Return the components of a bundle that make these streams, each once."""
    return tuple(dict.fromkeys(SHARED.get(name, name) for name in streams))

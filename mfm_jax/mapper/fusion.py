"""Ways to make one prefix for GPT-2 out of the encoders' tokens; all have one signature.

A fusion maps `Streams` to a prefix `[B, P, width]`, whose last position predicts the first LOA
token, and a mask `[B, P]` or None. `clocked` says whether its tokens carry their time.
The paper's operator is not public, so the choice is ours and is a config field.
"""

from collections.abc import Mapping

from einops import repeat
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import clock, layer_norm, linear, table
from mfm_jax.mapper.streams import Stream, Streams
from mfm_jax.typing import Array, Bool, Float

_EPSILON = 1e-5
ROWS = 32  # of AudioLDM2's tables of start and end vectors; one a condition is used
Prefix = tuple[Float[Array, "B P D"], Bool[Array, "B P"] | None]


class Projection(nnx.Module):
    """LayerNorm, Linear to the mapper's width, and a learned vector that names the encoder."""

    def __init__(self, d_in: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.norm = layer_norm(d_in, epsilon=_EPSILON, rngs=rngs)
        self.proj = linear(d_in, width, ("mlp", "embed"), rngs=rngs)
        self.encoder = table(width, rngs=rngs)

    def __call__(self, tokens: Float[Array, "B S C"]) -> Float[Array, "B S D"]:
        tokens = tokens.astype(self.proj.kernel.dtype)
        return self.proj(self.norm(tokens)) + self.encoder[None, None, :]


def stream_of(encoder: str) -> str:
    """The stream that an encoder of this name reads: "cavp" for "cavp" and for "cavp:2".

    What follows the colon tells one reading of a stream from another. Each has weights of its own,
    so that a mapper of one encoder can read as many tokens as one of two, and compares fairly.
    """
    return encoder.partition(":")[0]


def select(streams: Streams, names: tuple[str, ...]) -> list[Stream]:
    """The streams that the encoders `names` read, in that order.

    Raises:
        ValueError: a stream that the mapper reads is missing.
    """
    missing = [s for s in dict.fromkeys(map(stream_of, names)) if s not in streams]
    if missing:
        raise ValueError(f"this mapper reads {', '.join(names)}; missing: {', '.join(missing)}")
    return [streams[stream_of(n)] for n in names]


class TokenFusion(nnx.Module):
    """The tokens of all encoders in one sequence, then a learned start vector (the default).

    With one encoder this is the single-encoder mapper.
    """

    clocked = True

    def __init__(self, widths: Mapping[str, int], width: int, *, rngs: nnx.Rngs) -> None:
        self.names = tuple(widths)
        self.proj = nnx.Dict({name: Projection(d, width, rngs=rngs) for name, d in widths.items()})
        self.start = table(width, rngs=rngs)

    def __call__(self, streams: Streams) -> Prefix:
        chosen = select(streams, self.names)
        parts = [
            self.proj[name](s.tokens) + _clock_like(s.seconds, self.start)
            for name, s in zip(self.names, chosen, strict=True)
        ]
        start = repeat(self.start[...], "d -> b 1 d", b=parts[0].shape[0])
        return jnp.concatenate([*parts, start], axis=1), _masks(chosen, before=0, after=0, last=1)


class ChannelFusion(nnx.Module):
    """One token per token of the first encoder, the others resampled to its times and summed in.

    Concatenating channels and projecting is the same as projecting each and adding. Another
    encoder's value at a time is the mean of its tokens nearest to that time.
    """

    clocked = True

    def __init__(self, widths: Mapping[str, int], width: int, *, rngs: nnx.Rngs) -> None:
        self.names = tuple(widths)
        self.proj = nnx.Dict({name: Projection(d, width, rngs=rngs) for name, d in widths.items()})
        self.start = table(width, rngs=rngs)

    def __call__(self, streams: Streams) -> Prefix:
        chosen = select(streams, self.names)
        seconds = chosen[0].seconds
        fused = _clock_like(seconds, self.start)
        for name, stream in zip(self.names, chosen, strict=True):
            fused = fused + self.proj[name](_nearest(stream, seconds))
        start = repeat(self.start[...], "d -> b 1 d", b=fused.shape[0])
        return jnp.concatenate([fused, start], axis=1), _masks(
            chosen[:1], before=0, after=0, last=1
        )


class WrappedFusion(nnx.Module):
    """AudioLDM2's own packing: per condition a Linear, a learned vector before and one after.

    There is no clock and no normalisation; the last end vector plays the start token's part.
    Source: AudioLDM2 `audiomae_gen/sequence_input.py`, diffusers `AudioLDM2ProjectionModel`.
    """

    clocked = False

    def __init__(self, widths: Mapping[str, int], width: int, *, rngs: nnx.Rngs) -> None:
        self.names = tuple(widths)
        self.proj = nnx.Dict(
            {name: linear(d, width, ("mlp", "embed"), rngs=rngs) for name, d in widths.items()}
        )
        self.start = table(ROWS, width, rngs=rngs)
        self.end = table(ROWS, width, rngs=rngs)

    def __call__(self, streams: Streams) -> Prefix:
        parts = []
        chosen = select(streams, self.names)
        for i, (name, stream) in enumerate(zip(self.names, chosen, strict=True)):
            x = self.proj[name](stream.tokens.astype(self.start[...].dtype))
            start, end = (repeat(t[i], "d -> b 1 d", b=x.shape[0]) for t in (self.start, self.end))
            parts += [start, x, end]
        return jnp.concatenate(parts, axis=1), _masks(chosen, before=1, after=1, last=0)


Fusion = TokenFusion | ChannelFusion | WrappedFusion
FUSIONS: dict[str, type[Fusion]] = {
    "tokens": TokenFusion,
    "channels": ChannelFusion,
    "wrapped": WrappedFusion,
}


def _clock_like(seconds: Float[Array, "B S"], vector: nnx.Param) -> Float[Array, "B S D"]:
    return clock(seconds.astype(jnp.float32), vector.shape[-1]).astype(vector[...].dtype)


def _masks(chosen: list[Stream], *, before: int, after: int, last: int):
    """The prefix mask: each stream's own, with learned vectors `before`, `after` and at the end."""
    if all(s.mask is None for s in chosen):
        return None
    parts = []
    for stream in chosen:
        mask = stream.mask if stream.mask is not None else jnp.ones(stream.seconds.shape, bool)
        parts.append(jnp.pad(mask, ((0, 0), (before, after)), constant_values=True))
    return jnp.pad(jnp.concatenate(parts, axis=1), ((0, 0), (0, last)), constant_values=True)


def _nearest(stream: Stream, seconds: Float[Array, "B T"]) -> Float[Array, "B T C"]:
    """The mean of the stream's tokens whose time is nearest to each of `seconds`."""
    gap = jnp.abs(seconds[:, :, None] - stream.seconds[:, None, :])
    if stream.mask is not None:
        gap = jnp.where(stream.mask[:, None, :], gap, jnp.inf)
    near = (gap <= gap.min(axis=-1, keepdims=True) + 1e-4).astype(stream.tokens.dtype)
    weights = near / near.sum(axis=-1, keepdims=True)
    return jnp.einsum("bts,bsc->btc", weights, stream.tokens)

"""Fusions: modules that make one prefix for GPT-2 out of the encoders' tokens.

A fusion maps `Streams` to a prefix `[B, P, width]`, whose last position predicts the first LOA
token, and a mask `[B, P]` or None. `timed` is true if its tokens carry their time.
The paper's fusion is not public, so the choice is ours and is a config field.
"""

from collections.abc import Mapping

from einops import repeat
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import layer_norm, linear, table, time_embedding
from mfm_jax.models.streams import Stream, Streams
from mfm_jax.typing import Array, Bool, Float

_EPSILON = 1e-5
ROWS = 32  # of AudioLDM2's tables of start and end vectors, of which each condition uses one
Prefix = tuple[Float[Array, "B P D"], Bool[Array, "B P"] | None]


class Projection(nnx.Module):
    """LayerNorm, Linear to the mapper's width, and a learned vector that names the encoder."""

    def __init__(self, width_in: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.norm = layer_norm(width_in, epsilon=_EPSILON, rngs=rngs)
        self.proj = linear(width_in, width, ("mlp", "embed"), rngs=rngs)
        self.encoder = table(width, rngs=rngs)

    def __call__(self, tokens: Float[Array, "B S C"]) -> Float[Array, "B S D"]:
        tokens = tokens.astype(self.proj.kernel.dtype)
        return self.proj(self.norm(tokens)) + self.encoder[None, None, :]


def stream_of(encoder: str) -> str:
    """Return the stream that an encoder of this name reads: "cavp" for "cavp" and for "cavp:2".

    The part after the colon tells one reading of a stream from another. Each reading has its own
    weights, so that a mapper with one encoder can read as many tokens as one with two: a fair
    comparison.
    """
    return encoder.partition(":")[0]


def select(streams: Streams, names: tuple[str, ...]) -> list[Stream]:
    """Return the streams that the encoders `names` read, in that order.

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

    timed = True

    def __init__(self, widths: Mapping[str, int], width: int, *, rngs: nnx.Rngs) -> None:
        self.names = tuple(widths)
        self.proj = nnx.Dict({name: Projection(w, width, rngs=rngs) for name, w in widths.items()})
        self.start = table(width, rngs=rngs)

    def __call__(self, streams: Streams) -> Prefix:
        chosen = select(streams, self.names)
        parts = [
            self.proj[name](s.tokens) + _time_embedding(s.seconds, self.start)
            for name, s in zip(self.names, chosen, strict=True)
        ]
        start = repeat(self.start[...], "d -> b 1 d", b=parts[0].shape[0])
        return jnp.concatenate([*parts, start], axis=1), _masks(chosen, before=0, after=0, last=1)


class ChannelFusion(nnx.Module):
    """One token for each token of the first encoder, with the other encoders added to it.

    Concatenating channels and projecting is the same as projecting each and adding. The other
    encoders are resampled: their value at a time is the mean of their tokens nearest to that time.
    """

    timed = True

    def __init__(self, widths: Mapping[str, int], width: int, *, rngs: nnx.Rngs) -> None:
        self.names = tuple(widths)
        self.proj = nnx.Dict({name: Projection(w, width, rngs=rngs) for name, w in widths.items()})
        self.start = table(width, rngs=rngs)

    def __call__(self, streams: Streams) -> Prefix:
        chosen = select(streams, self.names)
        seconds = chosen[0].seconds
        fused = _time_embedding(seconds, self.start)
        for name, stream in zip(self.names, chosen, strict=True):
            fused = fused + self.proj[name](_nearest(stream, seconds))
        start = repeat(self.start[...], "d -> b 1 d", b=fused.shape[0])
        return jnp.concatenate([fused, start], axis=1), _masks(
            chosen[:1], before=0, after=0, last=1
        )


class WrappedFusion(nnx.Module):
    """AudioLDM2's own packing: per condition a Linear, a learned vector before and one after.

    There is no time embedding and no normalisation; the last end vector takes the place of the
    start vector.
    Source: AudioLDM2 `audiomae_gen/sequence_input.py`, diffusers `AudioLDM2ProjectionModel`.
    """

    timed = False

    def __init__(self, widths: Mapping[str, int], width: int, *, rngs: nnx.Rngs) -> None:
        self.names = tuple(widths)
        self.proj = nnx.Dict(
            {name: linear(w, width, ("mlp", "embed"), rngs=rngs) for name, w in widths.items()}
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


def _time_embedding(seconds: Float[Array, "B S"], vector: nnx.Param) -> Float[Array, "B S D"]:
    """Return the embedding of `seconds` in the width and the precision of `vector`."""
    return time_embedding(seconds.astype(jnp.float32), vector.shape[-1]).astype(vector[...].dtype)


def _masks(
    chosen: list[Stream], *, before: int, after: int, last: int
) -> Bool[Array, "B P"] | None:
    """Return the mask of a prefix, or None if every token counts.

    It is each stream's own mask, with `before` and `after` learned vectors around each stream and
    `last` ones at the end.
    """
    if all(s.mask is None for s in chosen):
        return None
    parts = []
    for stream in chosen:
        mask = stream.mask if stream.mask is not None else jnp.ones(stream.seconds.shape, bool)
        parts.append(jnp.pad(mask, ((0, 0), (before, after)), constant_values=True))
    return jnp.pad(jnp.concatenate(parts, axis=1), ((0, 0), (0, last)), constant_values=True)


def _nearest(stream: Stream, seconds: Float[Array, "B T"]) -> Float[Array, "B T C"]:
    """Return, for each of `seconds`, the mean of the stream's tokens nearest in time."""
    gap = jnp.abs(seconds[:, :, None] - stream.seconds[:, None, :])
    if stream.mask is not None:
        gap = jnp.where(stream.mask[:, None, :], gap, jnp.inf)
    near = (gap <= gap.min(axis=-1, keepdims=True) + 1e-4).astype(stream.tokens.dtype)
    weights = near / near.sum(axis=-1, keepdims=True)
    return jnp.einsum("bts,bsc->btc", weights, stream.tokens)

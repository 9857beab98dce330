"""Adapters: what lets a frozen UNet see when, beside the LOA that tells it what.

LOA on AudioLDM2's grid has a token for 1.28 s: it says what sounds, and hardly when. An adapter
reads the tokens of video encoders with their times. Its last layers are zeros, so that the UNet
does at first what it did before, to the bit:

- `FeatureAdapter` lays the tokens on the rows of the latents and adds them to the end of each level
  on the way down, as T2I-Adapter does with pictures (arXiv 2302.08453).
- `AttentionAdapter` attends to the tokens beside the frozen attention to LOA, as IP-Adapter does
  (arXiv 2308.06721). Queries and keys have their times in seconds.

An adapter of the streams returns what `UNet.__call__` takes as `beside`. `AdaptedUNet` is a UNet
with its adapter, which is called like the UNet alone, with streams.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
from einops import rearrange
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import Attention, conv, layer_norm, linear, time_embedding
from mfm_jax.models.stem import Stem
from mfm_jax.models.streams import Stream, Streams
from mfm_jax.models.unet import Beside, UNet, UNetConfig
from mfm_jax.runtime.config import later
from mfm_jax.typing import Array, Bool, Float, Int

_EPSILON = 1e-5


@dataclass(frozen=True)
class AdapterConfig:
    """Sizes of an adapter.

    Raises:
        ValueError: `kind` is neither "features" nor "attention", nothing is read, there is a stem
            of a stream that is not read, or a dilation is below 1.
    """

    unet: UNetConfig
    # (stream, tokens in a window, their width), as a mapper's.
    encoders: tuple[tuple[str, int, int], ...]
    kind: str = "attention"  # or "features"
    width: int = 256  # inside
    columns: int = 16  # of the latents: mel bins over the VAE's compression
    timechat: str = "video"  # which TimeChat tokens are read, as a mapper's
    stems: tuple[str, ...] = ()  # streams whose tokens pass a stem first, as a mapper's
    # Rows between those that each convolution of features reads, one convolution after the other.
    dilations: tuple[int, ...] = later((1, 1))

    def __post_init__(self) -> None:
        if self.kind not in ("features", "attention"):
            raise ValueError(f"an adapter adds features or attention, not {self.kind!r:.50}")
        if not self.encoders:
            raise ValueError("an adapter reads at least one stream")
        if min(self.dilations, default=1) < 1:
            raise ValueError(f"dilations are at least 1, not {min(self.dilations)}")
        if unread := sorted(set(self.stems) - set(self.streams)):
            read = ", ".join(self.streams)
            raise ValueError(
                f"stems names {unread[0]}, which is not read: the adapter reads {read}"
            )

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams that are read."""
        return tuple(name for name, *_ in self.encoders)

    @property
    def tensors(self) -> dict[str, str]:
        """The kind of tokens that is read of a stream, where there is a choice."""
        return {"timechat": self.timechat}

    @classmethod
    def tiny(cls) -> "AdapterConfig":
        """For the tiny UNet and the tiny encoders."""
        encoders = (("cavp", 32, 64), ("timechat", 16, 96))
        return cls(UNetConfig.tiny(), encoders, width=48)


class StreamProjection(nnx.Module):
    """The tokens of a stream in the width of an adapter."""

    def __init__(self, tokens: int, width: int, *, stem: bool, rngs: nnx.Rngs) -> None:
        self.stem = Stem(tokens, rngs=rngs) if stem else None
        self.norm = layer_norm(tokens, epsilon=_EPSILON, rngs=rngs)
        self.proj = linear(tokens, width, ("mlp", "embed"), rngs=rngs)

    def __call__(self, stream: Stream) -> Stream:
        seen = stream if self.stem is None else self.stem(stream)
        tokens = self.proj(self.norm(seen.tokens.astype(self.proj.kernel.dtype)))
        return stream._replace(tokens=tokens)


class _Adapter(nnx.Module):
    """Base of both adapters: a projection for each stream that is read."""

    def __init__(self, config: AdapterConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.streams = nnx.Dict(
            {
                name: StreamProjection(width, config.width, stem=name in config.stems, rngs=rngs)
                for name, _, width in config.encoders
            }
        )

    def read(self, streams: Streams) -> list[Stream]:
        """Return the streams that are read, in the width of the adapter.

        Raises:
            ValueError: one is missing.
        """
        if missing := [name for name in self.config.streams if name not in streams]:
            raise ValueError(f"this adapter reads {', '.join(missing)} as well")
        return [self.streams[name](streams[name]) for name in self.config.streams]


class FeatureAdapter(_Adapter):
    """Tokens on the rows of the latents, convolved over time, and added to the levels."""

    def __init__(self, config: AdapterConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        width, channels = config.width, config.unet.channels
        self.convs = nnx.List(
            conv(width, width, (5,), padding=2 * n, dilation=n, rngs=rngs) for n in config.dilations
        )
        self.levels = nnx.List(
            _zeros(linear(width, c * _halves(config.columns, n), (None, None), rngs=rngs))
            for n, c in enumerate(channels)
        )

    def features(self, streams: Streams, rows: int) -> Float[Array, "B {rows} D"]:
        """Return what is known of each row of the latents; the levels read that."""
        seconds = self.config.unet.seconds_per_row
        x = jnp.stack([_on_rows(its, rows, seconds) for its in self.read(streams)]).sum(axis=0)
        for smooth in self.convs:
            x = x + smooth(jax.nn.silu(x))
        return x

    def __call__(self, streams: Streams, rows: int) -> list[Beside]:
        """Return what is added at each place; `rows` are those of the latents."""
        x = self.features(streams, rows)
        found: list[Beside] = [_nothing] * len(self.config.unet.places)
        for level, layer in enumerate(self.levels):
            last = self.config.unet.resnets * (level + 1) - 1  # of the level, on the way down
            columns = _halves(self.config.columns, level)
            found[last] = partial(_add, rearrange(layer(x), "b h (w c) -> b h w c", w=columns))
            x = _halved(x)
        return found


class TimedAttention(nnx.Module):
    """Attention of the places of a level to tokens, with both their times."""

    def __init__(self, config: AdapterConfig, level: int, *, rngs: nnx.Rngs) -> None:
        width = config.unet.channels[level]
        self.seconds_per_row = config.unet.seconds_per_row * 2**level
        self.norm = layer_norm(width, epsilon=_EPSILON, rngs=rngs)
        heads = config.unet.heads_at(level)
        self.attn = Attention(width, heads=heads, context_width=config.width, biases="o", rngs=rngs)
        self.time_proj = linear(width, width, ("embed", "heads"), bias=False, rngs=rngs)
        _zeros(self.attn.o)

    def __call__(self, stream: Stream, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        height, columns, width = x.shape[1:]
        rows = jnp.repeat(_row_seconds(height, self.seconds_per_row), columns)[None]
        at_q, at_k = (
            rearrange(
                self.time_proj(time_embedding(s, width).astype(x.dtype)),
                "b l (n k) -> b l n k",
                n=self.attn.heads,
            )
            for s in (rows, stream.seconds.astype(jnp.float32))
        )
        mask = None if stream.mask is None else stream.mask[:, None, None, :]
        y = self.attn(
            self.norm(rearrange(x, "b h w c -> b (h w) c")),
            stream.tokens,
            mask=mask,
            position=lambda q, k: (q + at_q, k + at_k),
        )
        return rearrange(y, "b (h w) c -> b h w c", h=height)


class AttentionAdapter(_Adapter):
    """Attention to the tokens beside the transformers of every place that has some."""

    def __init__(self, config: AdapterConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs=rngs)
        unet = config.unet
        last = unet.resnets * len(unet.channels) + 1  # the middle's second place has no transformer
        self.places = tuple(
            i for i, n in enumerate(unet.places) if unet.attentions[n] and i != last
        )
        self.attentions = nnx.List(
            TimedAttention(config, unet.places[i], rngs=rngs) for i in self.places
        )

    def __call__(self, streams: Streams, rows: int) -> list[Beside]:
        """Return what is added at each place; `rows` are those of the latents, and not needed."""
        del rows
        read = _joined(self.read(streams))
        found: list[Beside] = [_nothing] * len(self.config.unet.places)
        for place, attention in zip(self.places, self.attentions, strict=True):
            found[place] = partial(attention, read)
        return found


Adapter = FeatureAdapter | AttentionAdapter
ADAPTERS: Mapping[str, type[Adapter]] = {
    "features": FeatureAdapter,
    "attention": AttentionAdapter,
}
"""The constructor of each kind of adapter."""


def build_adapter(config: AdapterConfig, *, rngs: nnx.Rngs) -> Adapter:
    """Build an adapter of the kind that `config` names."""
    return ADAPTERS[config.kind](config, rngs=rngs)


class AdaptedUNet(nnx.Module):
    """A UNet that reads LOA, and its adapter, which reads video."""

    def __init__(self, unet: UNet, adapter: Adapter) -> None:
        self.unet = unet
        self.adapter = adapter

    @property
    def config(self) -> UNetConfig:
        """Sizes of the UNet."""
        return self.unet.config

    def __call__(
        self,
        latents: Float[Array, "B H W C"],
        t: Float[Array, " B"] | Int[Array, " B"],
        contexts: tuple[Float[Array, "B _S _C"], ...],
        masks: tuple[Bool[Array, "B _S"] | None, ...] | None = None,
        *,
        context_seconds: Float[Array, " S"] | Float[Array, "B S"] | None = None,
        streams: Streams,
    ) -> Float[Array, "B H W C"]:
        """Do what `UNet.__call__` does, where the adapter reads `streams`."""
        beside = self.adapter(streams, latents.shape[1])
        return self.unet(
            latents, t, contexts, masks, context_seconds=context_seconds, beside=beside
        )


def seeing(unet: UNet | AdaptedUNet, streams: Streams | None) -> Callable[..., Array]:
    """Return the UNet, of which the adapter, if there is one, reads `streams`."""
    return partial(unet, streams=streams or {}) if isinstance(unet, AdaptedUNet) else unet


def without_video(streams: Streams, where: Bool[Array, " B"] | None = None) -> Streams:
    """Return streams whose tokens are zeros: what the unconditional half of guidance reads.

    Args:
        where: of these clips; of all if not given.
    """
    blank = True if where is None else where[:, None, None]
    return {
        name: its._replace(tokens=jnp.where(blank, jnp.zeros_like(its.tokens), its.tokens))
        for name, its in streams.items()
    }


def _zeros(layer: nnx.Linear) -> nnx.Linear:
    """Return the layer with zeros for weights: what comes behind it is at first as without it."""
    layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
    return layer


def _nothing(x: Array) -> None:
    del x


def _add(added: Float[Array, "B H W C"], x: Float[Array, "B H2 W C"]) -> Float[Array, "B H2 W C"]:
    """Return what is added, cut to the rows that there are."""
    return added[:, : x.shape[1]]


def _halves(columns: int, times: int) -> int:
    """Return the columns of a level: half of those above, rounded up."""
    return -(-columns // 2**times)


def _row_seconds(rows: int, seconds_per_row: float) -> Float[Array, " {rows}"]:
    """Return the middle of each row."""
    return (jnp.arange(rows, dtype=jnp.float32) + 0.5) * seconds_per_row


def _joined(streams: Sequence[Stream]) -> Stream:
    """Return the tokens of all streams as one."""
    masks = [jnp.ones(its.seconds.shape, bool) if its.mask is None else its.mask for its in streams]
    return Stream(
        jnp.concatenate([its.tokens for its in streams], axis=1),
        jnp.concatenate([its.seconds for its in streams], axis=1),
        jnp.concatenate(masks, axis=1) if any(its.mask is not None for its in streams) else None,
    )


def _on_rows(stream: Stream, rows: int, seconds_per_row: float) -> Float[Array, "B {rows} D"]:
    """Return the mean of the tokens around the time of each row, or nearest to it.

    Their weights fall with the distance as a Gaussian whose deviation is a row.
    """
    at = _row_seconds(rows, seconds_per_row)[None, :, None]
    distance = (at - stream.seconds.astype(jnp.float32)[:, None, :]) / seconds_per_row
    scores = -0.5 * distance**2
    if stream.mask is not None:
        scores = jnp.where(stream.mask[:, None, :], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(stream.tokens.dtype)
    return jnp.einsum("bhs,bsd->bhd", weights, stream.tokens)


def _halved(x: Float[Array, "B H D"]) -> Float[Array, "B H2 D"]:
    """Return the means of pairs of rows; a last row that is left alone stays."""
    even = jnp.concatenate([x, x[:, -1:]], axis=1) if x.shape[1] % 2 else x
    return rearrange(even, "b (h p) d -> b h p d", p=2).mean(axis=2)

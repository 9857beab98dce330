"""Adapters: what lets a frozen UNet hear when, beside the LOA that tells it what.

LOA on AudioLDM2's grid has a token for 1.28 s: it says what sounds, and hardly when. An adapter
reads tokens that are finer in time: those of LOA's second grid, or of a video. Its last layers are
zeros, so that the UNet does at first what it did before, to the bit:

- `FeatureAdapter` lays the tokens on the rows of the latents and adds them to the end of each level
  on the way down, as T2I-Adapter does with pictures (arXiv 2302.08453).
- `AttentionAdapter` attends to the tokens beside the frozen attention to LOA, as IP-Adapter does
  (arXiv 2308.06721). Queries and keys have their times in seconds.

An adapter of the tokens returns what `UNet.__call__` takes as `beside`. `AdaptedUNet` is a UNet
with its adapter, which is called like the UNet alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import jax
from einops import rearrange
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import Attention, conv, layer_norm, linear, time_embedding
from mfm_jax.models.audiomae import LOA
from mfm_jax.models.unet import Beside, UNet, UNetConfig
from mfm_jax.typing import Array, Bool, Float, Int

_EPSILON = 1e-5


class TimedTokens(NamedTuple):
    """Tokens and the time of each since the window's start."""

    tokens: Float[Array, "B S C"]
    seconds: Float[Array, "#B S"]
    mask: Bool[Array, "B S"] | None = None  # False at padding, which changes nothing


@dataclass(frozen=True)
class AdapterConfig:
    """Sizes of an adapter.

    Raises:
        ValueError: `kind` is not one of `ADAPTERS`, or LOA has no second grid.
    """

    unet: UNetConfig
    tokens: int  # width of a token
    width: int = 256  # inside
    kind: str = "features"  # or "attention"
    columns: int = 16  # of the latents: mel bins over the VAE's compression
    # The grids of the LOA that the UNet and the adapter read.
    loa: LOA = field(default_factory=lambda: LOA(fine=(1, 8)))

    def __post_init__(self) -> None:
        if self.kind not in ("features", "attention"):
            raise ValueError(f"an adapter adds features or attention, not {self.kind!r:.50}")
        if self.loa.fine is None:
            raise ValueError("an adapter reads LOA's second grid: set loa.fine")

    @classmethod
    def tiny(cls) -> "AdapterConfig":
        """For the tiny UNet where it reads LOA on AudioLDM2's grid alone."""
        loa = LOA(grid=(16, 8), pool=(8, 8), fine=(1, 8))
        return cls(UNetConfig.tiny(), tokens=128, width=48, loa=loa)


class FeatureAdapter(nnx.Module):
    """Tokens on the rows of the latents, convolved over time, and added to the levels."""

    def __init__(self, config: AdapterConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        width, channels = config.width, config.unet.channels
        self.norm = layer_norm(config.tokens, epsilon=_EPSILON, rngs=rngs)
        self.proj = linear(config.tokens, width, ("mlp", "embed"), rngs=rngs)
        self.convs = nnx.List(conv(width, width, (5,), padding=2, rngs=rngs) for _ in range(2))
        self.levels = nnx.List(
            _zeros(linear(width, c * _halves(config.columns, n), (None, None), rngs=rngs))
            for n, c in enumerate(channels)
        )

    def __call__(self, timed: TimedTokens, rows: int) -> list[Beside]:
        """Return what is added at each place; `rows` are those of the latents."""
        x = self.proj(self.norm(timed.tokens.astype(self.proj.kernel.dtype)))
        x = _on_rows(x, timed, rows, self.config.unet.seconds_per_row)
        for smooth in self.convs:
            x = x + smooth(jax.nn.silu(x))
        found: list[Beside] = [_nothing] * len(self.config.unet.places)
        for level, layer in enumerate(self.levels):
            last = self.config.unet.resnets * (level + 1) - 1  # of the level, on the way down
            columns = _halves(self.config.columns, level)
            found[last] = partial(_add, rearrange(layer(x), "b h (w c) -> b h w c", w=columns))
            x = _halved(x)
        return found


class TimedAttention(nnx.Module):
    """Attention of the places of a level to timed tokens, with both their times."""

    def __init__(self, config: AdapterConfig, level: int, *, rngs: nnx.Rngs) -> None:
        width = config.unet.channels[level]
        self.seconds_per_row = config.unet.seconds_per_row * 2**level
        self.norm = layer_norm(width, epsilon=_EPSILON, rngs=rngs)
        heads = config.unet.heads_at(level)
        self.attn = Attention(width, heads=heads, context_width=config.width, biases="o", rngs=rngs)
        self.time_proj = linear(width, width, ("embed", "heads"), bias=False, rngs=rngs)
        _zeros(self.attn.o)

    def __call__(self, timed: TimedTokens, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        height, columns, width = x.shape[1:]
        rows = jnp.repeat(_row_seconds(height, self.seconds_per_row), columns)[None]
        at_q, at_k = (
            rearrange(
                self.time_proj(time_embedding(s, width).astype(x.dtype)),
                "b l (n k) -> b l n k",
                n=self.attn.heads,
            )
            for s in (rows, timed.seconds.astype(jnp.float32))
        )
        mask = None if timed.mask is None else timed.mask[:, None, None, :]
        y = self.attn(
            self.norm(rearrange(x, "b h w c -> b (h w) c")),
            timed.tokens,
            mask=mask,
            position=lambda q, k: (q + at_q, k + at_k),
        )
        return rearrange(y, "b (h w) c -> b h w c", h=height)


class AttentionAdapter(nnx.Module):
    """Attention to timed tokens beside the transformers of every place that has some."""

    def __init__(self, config: AdapterConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.norm = layer_norm(config.tokens, epsilon=_EPSILON, rngs=rngs)
        self.proj = linear(config.tokens, config.width, ("mlp", "embed"), rngs=rngs)
        unet = config.unet
        last = unet.resnets * len(unet.channels) + 1  # the middle's second place has no transformer
        self.places = tuple(
            i for i, n in enumerate(unet.places) if unet.attentions[n] and i != last
        )
        self.attentions = nnx.List(
            TimedAttention(config, unet.places[i], rngs=rngs) for i in self.places
        )

    def __call__(self, timed: TimedTokens, rows: int) -> list[Beside]:
        """Return what is added at each place; `rows` are those of the latents, and not needed."""
        del rows
        tokens = self.proj(self.norm(timed.tokens.astype(self.proj.kernel.dtype)))
        read = timed._replace(tokens=tokens)
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
    """A UNet that reads LOA's first grid, and an adapter that reads the second."""

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
        context_seconds: Float[Array, " S"],
    ) -> Float[Array, "B H W C"]:
        """Do what `UNet.__call__` does; context 0 is LOA of both grids, which has no mask."""
        count = self.adapter.config.loa.grids[0].tokens
        loa, *others = contexts
        timed = TimedTokens(loa[:, count:], context_seconds[None, count:])
        return self.unet(
            latents,
            t,
            (loa[:, :count], *others),
            masks,
            context_seconds=context_seconds[:count],
            beside=self.adapter(timed, latents.shape[1]),
        )


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


def _on_rows(
    x: Float[Array, "B S D"], timed: TimedTokens, rows: int, seconds_per_row: float
) -> Float[Array, "B {rows} D"]:
    """Return the mean of the tokens around the time of each row, or nearest to it.

    Their weights fall with the distance as a Gaussian whose deviation is a row.
    """
    at = _row_seconds(rows, seconds_per_row)[None, :, None]
    distance = (at - timed.seconds.astype(jnp.float32)[:, None, :]) / seconds_per_row
    scores = -0.5 * distance**2
    if timed.mask is not None:
        scores = jnp.where(timed.mask[:, None, :], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
    return jnp.einsum("bhs,bsd->bhd", weights, x)


def _halved(x: Float[Array, "B H D"]) -> Float[Array, "B H2 D"]:
    """Return the means of pairs of rows; a last row that is left alone stays."""
    even = jnp.concatenate([x, x[:, -1:]], axis=1) if x.shape[1] % 2 else x
    return rearrange(even, "b (h p) d -> b h p d", p=2).mean(axis=2)

"""The mapper: from the video encoders' tokens to LOA, the features that AudioLDM2 listens to.

`GPT2Mapper` is the paper's; `LinearMapper` is the baseline it is measured against.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from einops import rearrange, reduce
from flax import nnx
from jax import lax
from jax import numpy as jnp

from mfm_jax.errors import SettingError
from mfm_jax.layers import KV, clock, linear
from mfm_jax.mapper.fusion import FUSIONS, select, stream_of
from mfm_jax.mapper.streams import Streams
from mfm_jax.models.audiomae import LOA
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.typing import Array, Bool, Float


@dataclass(frozen=True)
class MapperConfig:
    """A mapper's inputs, its network and the LOA grid it predicts."""

    # (name, tokens in a window, their width). The tokens of "cavp" once more are named "cavp:2".
    encoders: tuple[tuple[str, int, int], ...]
    loa_width: int  # of the AudioMAE that made the targets
    loa: LOA = field(
        default_factory=LOA
    )  # the grid of the targets; the default is what AudioLDM2 was trained on
    kind: str = "gpt2"  # "gpt2", or a baseline: "linear_pooled", "linear_flat"
    fusion: str = "tokens"  # "tokens", "channels" or "wrapped"; ours, the paper's is not public
    gpt2: GPT2Config = field(default_factory=GPT2Config.small)
    head: bool = False  # a Linear in and out of GPT-2; needed where LOA is standardised
    timechat: str = "video"  # which TimeChat tokens are read: "frame", "video" or "llama"

    @property
    def widths(self) -> dict[str, int]:
        """Token width by encoder."""
        return {name: width for name, _, width in self.encoders}

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that the encoders read, each once."""
        return tuple(dict.fromkeys(map(stream_of, self.widths)))

    @classmethod
    def base(cls) -> "MapperConfig":
        """GPT-2 small between the released encoders and AudioLDM2."""
        return cls(encoders=(("cavp", 40, 512), ("timechat", 96, 768)), loa_width=768)


class _Mapper(nnx.Module):
    """What all mappers share: the units of LOA, in which the network works and is scored.

    With a head (or a linear map) these are standard deviations from the mean, which the mapper
    keeps with its weights. GPT-2 without a head works in LOA's own units, as in AudioLDM2.
    """

    def __init__(self, config: MapperConfig) -> None:
        self.config = config
        self.standardised = config.head or config.kind != "gpt2"
        if self.standardised:
            self.loa_mean = nnx.BatchStat(jnp.zeros(config.loa_width))
            self.loa_std = nnx.BatchStat(jnp.ones(config.loa_width))

    def standardise(self, loa: Float[Array, "B K D"]) -> Float[Array, "B K D"]:
        """LOA in the units that `__call__` predicts."""
        if not self.standardised:
            return loa
        loa = loa.astype(self.loa_mean[...].dtype)
        return (loa - self.loa_mean[None, None]) / self.loa_std[None, None]

    def restore(self, predicted: Float[Array, "B K D"]) -> Float[Array, "B K D"]:
        """The inverse of `standardise`."""
        if not self.standardised:
            return predicted
        predicted = predicted.astype(self.loa_std[...].dtype)
        return predicted * self.loa_std[None, None] + self.loa_mean[None, None]


class GPT2Mapper(_Mapper):
    """Fusion, then GPT-2 over the fused prefix and the LOA so far.

    Called with the true LOA it predicts, in the units of `standardise`, each vector from those
    before it; `generate` feeds on its own predictions and gives LOA in LOA's own units.

    The output at the prefix's last position predicts the first LOA vector, the output at each LOA
    vector predicts the next. Without a head the hidden state after GPT-2's final LayerNorm is the
    prediction itself, as in AudioLDM2.
    """

    def __init__(self, config: MapperConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config)
        width = config.gpt2.width
        if not config.head and width != config.loa_width:
            raise ValueError(
                f"without a head GPT-2's width {width} must equal LOA's {config.loa_width}"
            )
        self.fusion = FUSIONS[config.fusion](config.widths, width, rngs=rngs)
        self.gpt2 = GPT2(config.gpt2, rngs=rngs)
        if config.head:
            self.loa_in = linear(config.loa_width, width, ("mlp", "embed"), rngs=rngs)
            self.loa_out = linear(width, config.loa_width, ("embed", "mlp"), rngs=rngs)

    def _clock(self, first: int | Array, length: int) -> Float[Array, "1 {length} D"]:
        """The time of the LOA vector that each of `length` positions from `first` on predicts."""
        width, dtype = self.config.gpt2.width, self.gpt2.wpe.embedding.dtype
        if not self.fusion.clocked:
            return jnp.zeros((1, length, width), dtype)
        seconds = lax.dynamic_slice(jnp.asarray(self.config.loa.times()), (first,), (length,))
        return clock(seconds, width).astype(dtype)[None]

    def _read(self, standard: Float[Array, "B L D"]) -> Float[Array, "B L W"]:
        if not self.config.head:
            return standard
        return self.loa_in(standard.astype(self.loa_in.kernel.dtype))

    def _predict(self, hidden: Float[Array, "B L W"]) -> Float[Array, "B L D"]:
        return self.loa_out(hidden) if self.config.head else hidden

    def _prefix(self, streams: Streams) -> tuple[Float[Array, "B P W"], Bool[Array, "B P"] | None]:
        """The fused prefix and its mask."""
        prefix, mask = self.fusion(streams)
        return prefix.at[:, -1:].add(self._clock(0, 1)), mask

    def __call__(self, streams: Streams, loa: Float[Array, "B K D"]) -> Float[Array, "B K D"]:
        prefix, mask = self._prefix(streams)
        known = self._read(self.standardise(loa)[:, :-1])
        known = known + self._clock(1, known.shape[1])
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (0, known.shape[1])), constant_values=True)
        embeds = jnp.concatenate([prefix, known], axis=1)
        return self._predict(self.gpt2(embeds, mask, last=loa.shape[1]))

    def begin(self, streams: Streams) -> "Begun":
        """The video read: what `follow` and `generate` go on from."""
        prefix, mask = self._prefix(streams)
        before = None if mask is None else mask[:, :-1]
        _, kvs = self.gpt2.begin(prefix[:, :-1], before)
        return Begun(kvs, before, prefix[:, -1:])

    def follow(self, begun: "Begun", loa: Float[Array, "B K D"]) -> Float[Array, "B K D"]:
        """As the call: of several LOA for the same streams, these are read only once."""
        known = self._read(self.standardise(loa)[:, :-1])
        embeds = jnp.concatenate([begun.last, known + self._clock(1, known.shape[1])], axis=1)
        # Else XLA copies the activations of these few positions and of the whole prefix into one
        # array, to multiply it with a weight of both.
        gpt2 = lax.platform_dependent(
            self.gpt2, cuda=lax.optimization_barrier, default=lambda gpt2: gpt2
        )
        hidden, _ = gpt2.extend(
            embeds, begun.prefix, gpt2.empty_cache(*embeds.shape[:2]), begun.mask
        )
        return self._predict(hidden)

    def generate(self, streams: Streams) -> Float[Array, "B K D"]:
        begun, tokens = self.begin(streams), self.config.loa.tokens

        def step(carry, k):
            caches, embeds = carry
            hidden, caches = self.gpt2.extend(embeds, begun.prefix, caches, begun.mask)
            predicted = self._predict(hidden)
            # After the last one nothing reads the time, which is then any.
            embeds = self._read(predicted) + self._clock(jnp.minimum(k + 1, tokens - 1), 1)
            return (caches, embeds), predicted[:, 0]

        caches = self.gpt2.empty_cache(len(begun.last), tokens)
        _, standard = lax.scan(step, (caches, begun.last), jnp.arange(tokens))
        return self.restore(rearrange(standard, "k b d -> b k d"))


class Begun(NamedTuple):
    """A mapper that has read the video and no LOA yet."""

    prefix: tuple[KV, ...]  # of each block of GPT-2, without the last position
    mask: Bool[Array, "B P"] | None  # of those positions
    last: Float[Array, "B 1 W"]  # what GPT-2 reads at the last position of the prefix


class LinearMapper(_Mapper):
    """One Linear from video tokens to all LOA vectors at once: the baseline.

    `linear_pooled` reads the mean token of each encoder, `linear_flat` all tokens laid end to end.
    """

    def __init__(self, config: MapperConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config)
        self.pooled = config.kind == "linear_pooled"
        d_in = sum(d if self.pooled else n * d for _, n, d in config.encoders)
        self.proj = linear(d_in, config.loa.tokens * config.loa_width, rngs=rngs)

    def _map(self, streams: Streams) -> Float[Array, "B K D"]:
        chosen = select(streams, tuple(self.config.widths))
        pattern = "b s d -> b d"
        parts = [
            reduce(s.tokens, pattern, "mean")
            if self.pooled
            else rearrange(s.tokens, "b s d -> b (s d)")
            for s in chosen
        ]
        flat = jnp.concatenate(parts, axis=-1).astype(self.proj.kernel.dtype)
        return rearrange(self.proj(flat), "b (k d) -> b k d", k=self.config.loa.tokens)

    def __call__(self, streams: Streams, loa: Float[Array, "B K D"]) -> Float[Array, "B K D"]:
        return self._map(streams)

    def generate(self, streams: Streams) -> Float[Array, "B K D"]:
        return self.restore(self._map(streams))


Mapper = GPT2Mapper | LinearMapper
KINDS: dict[str, type[Mapper]] = {
    "gpt2": GPT2Mapper,
    "linear_pooled": LinearMapper,
    "linear_flat": LinearMapper,
}


def build_mapper(config: MapperConfig, *, rngs: nnx.Rngs) -> Mapper:
    """The mapper that `config.kind` names.

    Raises:
        SettingError: an unknown kind, fusion or TimeChat tensor; an encoder named twice, or a
            stream of two sizes.
    """
    for name, known in (
        ("kind", tuple(KINDS)),
        ("fusion", tuple(FUSIONS)),
        ("timechat", ("frame", "video", "llama")),
    ):
        if getattr(config, name) not in known:
            raise SettingError(f"{name}={getattr(config, name)!r} is not one of {', '.join(known)}")
    _check_encoders(config)
    return KINDS[config.kind](config, rngs=rngs)


def _check_encoders(config: MapperConfig) -> None:
    sizes: dict[str, tuple[int, int]] = {}
    for i, (name, tokens, width) in enumerate(config.encoders):
        if name in (other for other, _, _ in config.encoders[:i]):
            stream = stream_of(name)
            raise SettingError(f"encoders names {name} twice: tell them apart, as {stream}:2 does")
        first = sizes.setdefault(stream_of(name), (tokens, width))
        if first != (tokens, width):
            raise SettingError(
                f"encoders: {name} is {tokens} tokens of {width}, but {stream_of(name)} was "
                f"{first[0]} of {first[1]}: give them the same"
            )

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
from mfm_jax.layers import KV, linear, time_embedding
from mfm_jax.layers.backend import apart
from mfm_jax.mapper.fusion import FUSIONS, select, stream_of
from mfm_jax.models.audiomae import LOA
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.models.stem import Stem
from mfm_jax.models.streams import Streams
from mfm_jax.runtime.config import later
from mfm_jax.typing import Array, Bool, Float


@dataclass(frozen=True)
class MapperConfig:
    """A mapper's inputs, its network and the LOA grid it predicts."""

    # (name, tokens in a window, their width). A second reading of the tokens of "cavp" is "cavp:2".
    encoders: tuple[tuple[str, int, int], ...]
    loa_width: int  # of the AudioMAE that made the targets
    # The grid of the targets; the default is the one that AudioLDM2 was trained on.
    loa: LOA = field(default_factory=LOA)
    kind: str = "gpt2"  # "gpt2", or a baseline: "linear_pooled", "linear_flat"
    fusion: str = "tokens"  # "tokens", "channels" or "wrapped"; ours, the paper's is not public
    gpt2: GPT2Config = field(default_factory=GPT2Config.small)
    head: bool = False  # a Linear in and out of GPT-2; needed where LOA is standardised
    timechat: str = "video"  # which TimeChat tokens are read: "frame", "video" or "llama"
    # Streams whose tokens pass a stem of convolutions over time first, which is trained with GPT-2.
    stems: tuple[str, ...] = later(())

    @property
    def widths(self) -> dict[str, int]:
        """Token width by encoder."""
        return {name: width for name, _, width in self.encoders}

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams that the encoders read, each once."""
        return tuple(dict.fromkeys(map(stream_of, self.widths)))

    @property
    def tensors(self) -> dict[str, str]:
        """The kind of tokens that is read of a stream, where there is a choice."""
        return {"timechat": self.timechat}

    @classmethod
    def base(cls) -> "MapperConfig":
        """GPT-2 small between the released encoders and AudioLDM2."""
        return cls(encoders=(("cavp", 40, 512), ("timechat", 96, 768)), loa_width=768)

    @classmethod
    def tiny(cls) -> "MapperConfig":
        """Between the tiny encoders: 16 LOA tokens of 160 ms, in standard deviations."""
        return cls(
            encoders=(("cavp", 32, 64), ("timechat", 16, 96)),
            loa_width=128,
            loa=LOA(grid=(16, 8), pool=(1, 8)),
            gpt2=GPT2Config.tiny(),
            head=True,
        )


class _Mapper(nnx.Module):
    """Base of all mappers: the units of LOA in which the network works and is scored.

    With a head (or a linear map) the units are standard deviations from the mean; the mapper keeps
    both with its weights. GPT-2 without a head works in LOA's own units, as in AudioLDM2.
    """

    def __init__(self, config: MapperConfig) -> None:
        self.config = config
        self.standardised = config.head or config.kind != "gpt2"
        if self.standardised:
            self.loa_mean = nnx.BatchStat(jnp.zeros(config.loa_width))
            self.loa_std = nnx.BatchStat(jnp.ones(config.loa_width))

    def standardise(self, loa: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
        """Return LOA in the units that `__call__` predicts."""
        if not self.standardised:
            return loa
        loa = loa.astype(self.loa_mean[...].dtype)
        return (loa - self.loa_mean[None, None]) / self.loa_std[None, None]

    def restore(self, predicted: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
        """Return LOA in its own units: the inverse of `standardise`."""
        if not self.standardised:
            return predicted
        predicted = predicted.astype(self.loa_std[...].dtype)
        return predicted * self.loa_std[None, None] + self.loa_mean[None, None]


class GPT2Mapper(_Mapper):
    """Fusion, then GPT-2 over the fused prefix and the LOA so far.

    Called with the true LOA, it predicts each vector from those before it, in the units of
    `standardise` (teacher forcing). `generate` reads its own predictions instead and returns LOA in
    LOA's own units.

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
        if config.stems:
            widths = {stream_of(name): w for name, w in config.widths.items()}
            self.stems = nnx.Dict({name: Stem(widths[name], rngs=rngs) for name in config.stems})

    def _time_embedding(self, first: int | Array, length: int) -> Float[Array, "1 {length} D"]:
        """Return the embedded times of `length` LOA vectors from number `first` on.

        Each position reads the time of the vector that it predicts.
        """
        width, dtype = self.config.gpt2.width, self.gpt2.wpe.embedding.dtype
        if not self.fusion.timed:
            return jnp.zeros((1, length, width), dtype)
        seconds = lax.dynamic_slice(jnp.asarray(self.config.loa.times()), (first,), (length,))
        return time_embedding(seconds, width).astype(dtype)[None]

    def _read(self, standard: Float[Array, "B L E"]) -> Float[Array, "B L D"]:
        """Return LOA, in the units of `standardise`, in GPT-2's width."""
        if not self.config.head:
            return standard
        return self.loa_in(standard.astype(self.loa_in.kernel.dtype))

    def _predict(self, hidden: Float[Array, "B L D"]) -> Float[Array, "B L E"]:
        """Return the LOA, in the units of `standardise`, that hidden states predict."""
        return self.loa_out(hidden) if self.config.head else hidden

    def _prefix(self, streams: Streams) -> tuple[Float[Array, "B P D"], Bool[Array, "B P"] | None]:
        """Return the fused prefix and its mask."""
        if stems := [name for name in self.config.stems if name in streams]:
            streams = {**streams, **{name: self.stems[name](streams[name]) for name in stems}}
        prefix, mask = self.fusion(streams)
        return prefix.at[:, -1:].add(self._time_embedding(0, 1)), mask

    def __call__(self, streams: Streams, loa: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
        """Predict LOA by teacher forcing, in the units of `standardise`."""
        prefix, mask = self._prefix(streams)
        known = self._read(self.standardise(loa)[:, :-1])
        known = known + self._time_embedding(1, known.shape[1])
        if mask is not None:
            mask = jnp.pad(mask, ((0, 0), (0, known.shape[1])), constant_values=True)
        embeds = jnp.concatenate([prefix, known], axis=1)
        return self._predict(self.gpt2(embeds, mask, last=loa.shape[1]))

    def prefill(self, streams: Streams) -> "PrefixCache":
        """Read the video: `teacher_force` and `generate` go on from the result."""
        prefix, mask = self._prefix(streams)
        before = None if mask is None else mask[:, :-1]
        _, kvs = self.gpt2.prefill(prefix[:, :-1], before)
        return PrefixCache(kvs, before, prefix[:, -1:])

    def teacher_force(
        self, cache: "PrefixCache", loa: Float[Array, "B L E"]
    ) -> Float[Array, "B L E"]:
        """Predict LOA as the call does, for video that has been read already.

        Several LOA of the same video need one `prefill`.
        """
        known = self._read(self.standardise(loa)[:, :-1])
        known = known + self._time_embedding(1, known.shape[1])
        embeds = jnp.concatenate([cache.last, known], axis=1)
        # The products of these few positions are not worth joining with those of the prefix.
        gpt2 = apart(self.gpt2)
        hidden, _ = gpt2.extend(
            embeds, cache.prefix, gpt2.empty_cache(*embeds.shape[:2]), cache.mask
        )
        return self._predict(hidden)

    def generate(self, streams: Streams) -> Float[Array, "B L E"]:
        """Return the LOA of the streams, in LOA's own units."""
        cache, tokens = self.prefill(streams), self.config.loa.tokens

        def step(carry, k):
            filled, embeds = carry
            hidden, filled = self.gpt2.extend(embeds, cache.prefix, filled, cache.mask)
            predicted = self._predict(hidden)
            # Nothing reads the time after the last vector, so any will do.
            following = self._time_embedding(jnp.minimum(k + 1, tokens - 1), 1)
            return (filled, self._read(predicted) + following), predicted[:, 0]

        empty = self.gpt2.empty_cache(len(cache.last), tokens)
        _, standard = lax.scan(step, (empty, cache.last), jnp.arange(tokens))
        return self.restore(rearrange(standard, "k b d -> b k d"))


class PrefixCache(NamedTuple):
    """Keys and values of the video that a mapper has read, and its next input."""

    prefix: tuple[KV, ...]  # keys and values of each block of GPT-2, without the last position
    mask: Bool[Array, "B P"] | None  # of those positions
    last: Float[Array, "B 1 D"]  # GPT-2's input at the last position of the prefix


class LinearMapper(_Mapper):
    """One Linear from video tokens to all LOA vectors at once: the baseline.

    `linear_pooled` reads the mean token of each encoder, `linear_flat` all tokens laid end to end.
    """

    def __init__(self, config: MapperConfig, *, rngs: nnx.Rngs) -> None:
        super().__init__(config)
        self.pooled = config.kind == "linear_pooled"
        width_in = sum(w if self.pooled else n * w for _, n, w in config.encoders)
        self.proj = linear(width_in, config.loa.tokens * config.loa_width, rngs=rngs)

    def _map(self, streams: Streams) -> Float[Array, "B L E"]:
        """Return LOA in the units of `standardise`."""
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

    def __call__(self, streams: Streams, loa: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
        """Predict LOA in the units of `standardise`; the true `loa` is not read."""
        return self._map(streams)

    def generate(self, streams: Streams) -> Float[Array, "B L E"]:
        """Return the LOA of the streams, in LOA's own units."""
        return self.restore(self._map(streams))


Mapper = GPT2Mapper | LinearMapper
MAPPERS: dict[str, type[Mapper]] = {
    "gpt2": GPT2Mapper,
    "linear_pooled": LinearMapper,
    "linear_flat": LinearMapper,
}


def build_mapper(config: MapperConfig, *, rngs: nnx.Rngs) -> Mapper:
    """Return the mapper that `config.kind` names.

    Raises:
        SettingError: an unknown kind, fusion or TimeChat tensor; an encoder named twice, a stream
            of two sizes, or a stem of a stream that is not read.
    """
    for name, known in (
        ("kind", tuple(MAPPERS)),
        ("fusion", tuple(FUSIONS)),
        ("timechat", ("frame", "video", "llama")),
    ):
        if getattr(config, name) not in known:
            raise SettingError(f"{name}={getattr(config, name)!r} is not one of {', '.join(known)}")
    _check_encoders(config)
    _check_stems(config)
    return MAPPERS[config.kind](config, rngs=rngs)


def _check_encoders(config: MapperConfig) -> None:
    """Refuse an encoder that is named twice, and a stream of two sizes."""
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


def _check_stems(config: MapperConfig) -> None:
    """Refuse a stem of a stream that is not read, and one before a linear map, which has none."""
    if config.stems and config.kind != "gpt2":
        raise SettingError(f"stems go with kind='gpt2', not with {config.kind!r}: leave them out")
    for i, name in enumerate(config.stems):
        if name not in config.streams:
            read = ", ".join(config.streams)
            raise SettingError(f"stems names {name}, which is not read: this mapper reads {read}")
        if name in config.stems[:i]:
            raise SettingError(f"stems names {name} twice: name it once")

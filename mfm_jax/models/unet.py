"""AudioLDM 2's UNet: predicts the noise in a sound's latents, conditioned on token sequences.

The height axis of the latents is time, the width axis is frequency. AudioLDM 2 gives it two
sequences ("contexts"): AudioMAE features of the sound (LOA, 768 wide) and T5 states (1024 wide).
Follows AudioLDM2UNet2DConditionModel, diffusers 0.42.1 pipelines/audioldm2/modeling_audioldm2.py.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from einops import rearrange, repeat
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import (
    Attention,
    add,
    conv,
    conv_doubled,
    group_norm,
    layer_norm,
    linear,
    time_embedding,
)
from mfm_jax.layers.mlp import gelu_exact
from mfm_jax.layers.remat import run
from mfm_jax.runtime.sharding import constrain
from mfm_jax.typing import Array, Bool, Float, Int

# This is added to the scores of masked keys. It is finite on purpose: if every key is masked, the
# softmax is that of the scores without it.
MASKED = -10000.0


@dataclass(frozen=True)
class UNetConfig:
    """Sizes of the UNet. A level is one resolution, with half the rows and columns of the last."""

    channels: tuple[int, ...]  # width of each level, full resolution first
    # Per level, what the transformers after each resnet read beside the latents: the index of a
    # context, or None for the latents themselves. The middle is like the last level.
    attentions: tuple[tuple[int | None, ...], ...]
    contexts: tuple[int, ...]  # width of each context
    heads: int | tuple[int, ...]  # number of heads, at all levels or at each
    latent_channels: int = 8  # of the VAE, in and out
    depth: int = 1  # blocks per transformer
    resnets: int = 2  # per level on the way down; one more on the way up
    groups: int = 32  # of every GroupNorm
    # Whether queries and keys know their time in seconds: that of the row, and of the token of
    # context 0. Without it a small UNet hardly learns when things sound. AudioLDM 2 has none.
    timed: bool = False
    seconds_per_row: float = 0.04  # of the latents: 4 mel frames of 10 ms; read if `timed`

    def __post_init__(self) -> None:
        """Check the fields against each other.

        Raises:
            ValueError: per-level fields of different lengths, or a context that does not exist.
        """
        per_level: dict[str, tuple] = {"attentions": self.attentions}
        if not isinstance(self.heads, int):
            per_level["heads"] = self.heads
        for name, values in per_level.items():
            if len(values) != len(self.channels):
                raise ValueError(f"{name} has {len(values)} levels, channels {len(self.channels)}")
        for route in {route for level in self.attentions for route in level} - {None}:
            if route not in range(len(self.contexts)):
                raise ValueError(f"an attention reads context {route} of {len(self.contexts)}")

    @classmethod
    def audioldm2(cls, heads: int | tuple[int, ...]) -> "UNetConfig":
        """`audioldm2` and `audioldm2-music`; `heads` is what the released file says."""
        return cls(
            channels=(128, 256, 384, 640),
            attentions=((),) + 3 * ((None, 0, 1),),
            contexts=(768, 1024),
            heads=heads,
        )

    @classmethod
    def audioldm2_large(cls, heads: int | tuple[int, ...]) -> "UNetConfig":
        """`audioldm2-large`; `heads` is what the released file says."""
        return cls(
            channels=(128, 256, 384, 640),
            attentions=((),) + 3 * ((None, 0, 1, None),),
            contexts=(768, 1024),
            heads=heads,
            depth=2,
        )

    @classmethod
    def tiny(cls, loa: int = 128) -> "UNetConfig":
        """For 2.56 s, latents 64 x 16 x 8: reads LOA of width `loa` with its times, and no text."""
        return cls(
            channels=(24, 48, 80),
            attentions=((), (0,), (0,)),
            contexts=(loa,),
            heads=2,
            resnets=1,
            groups=8,
            timed=True,
        )

    @property
    def places(self) -> tuple[int, ...]:
        """The level of each resnet with its transformers, in the order in which they run."""
        levels, more = range(len(self.channels)), self.resnets + 1
        down = [n for n in levels for _ in range(self.resnets)]
        return *down, levels[-1], levels[-1], *(n for n in reversed(levels) for _ in range(more))

    @property
    def step_width(self) -> int:
        """Width of the embedded diffusion time step."""
        return 4 * self.channels[0]

    def heads_at(self, level: int) -> int:
        """Return the number of attention heads at `level`."""
        return self.heads if isinstance(self.heads, int) else self.heads[level]


class Conditions(NamedTuple):
    """The inputs beside the latents, which every part of the network reads."""

    step: Float[Array, "B D"]  # embedded diffusion time step, activated
    contexts: tuple[Float[Array, "B _S _C"], ...]
    biases: tuple[Float[Array, "B 1 1 _S"] | None, ...]  # on the scores of each context's tokens
    seconds: Float[Array, "#B S"] | None  # of the tokens of context 0


class StepEmbedding(nnx.Module):
    """Vector of a diffusion time step: cosines and sines, then two dense layers."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs) -> None:
        self.half = config.channels[0] // 2
        self.up = linear(2 * self.half, config.step_width, ("embed", "mlp"), rngs=rngs)
        self.down = linear(config.step_width, config.step_width, ("mlp", "embed"), rngs=rngs)

    def __call__(self, t: Float[Array, " B"] | Int[Array, " B"]) -> Float[Array, "B D"]:
        rates = np.exp(-math.log(10000) * np.arange(self.half) / self.half).astype(np.float32)
        angles = t.astype(jnp.float32)[:, None] * rates[None, :]
        waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        return self.down(jax.nn.silu(self.up(waves.astype(self.up.kernel.dtype))))


class Resnet(nnx.Module):
    """Two normalised 3x3 convolutions, the time step added between them, and a shortcut."""

    def __init__(self, c_in: int, c_out: int, config: UNetConfig, *, rngs: nnx.Rngs) -> None:
        self.norm1 = group_norm(c_in, config.groups, epsilon=1e-5, rngs=rngs)
        self.conv1 = conv(c_in, c_out, (3, 3), padding=1, rngs=rngs)
        self.step = linear(config.step_width, c_out, ("embed", "conv_out"), rngs=rngs)
        self.norm2 = group_norm(c_out, config.groups, epsilon=1e-5, rngs=rngs)
        self.conv2 = conv(c_out, c_out, (3, 3), padding=1, rngs=rngs)
        self.shortcut = (
            linear(c_in, c_out, ("conv_in", "conv_out"), rngs=rngs) if c_in != c_out else None
        )

    def __call__(
        self, x: Float[Array, "B H W C"], step: Float[Array, "B D"]
    ) -> Float[Array, "B H W C2"]:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = y + self.step(step)[:, None, None, :]
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class GEGLU(nnx.Module):
    """Feed-forward of a block: `down(up(x) * gelu(gate(x)))`, four times as wide inside."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.up = linear(width, 4 * width, ("embed", "mlp"), rngs=rngs)
        self.gate = linear(width, 4 * width, ("embed", "mlp"), rngs=rngs)
        self.down = linear(4 * width, width, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return self.down(self.up(x) * gelu_exact(self.gate(x)))


class Block(nnx.Module):
    """Pre-norm: attention to itself, to a context (or to itself again), feed-forward.

    If `timed`, the embedded times of row and token go through one matrix and are added to query and
    key; the values stay as they are.
    """

    def __init__(
        self, width: int, heads: int, context_width: int | None, *, timed: bool, rngs: nnx.Rngs
    ) -> None:
        self.attn1_norm = layer_norm(width, epsilon=1e-5, rngs=rngs)
        self.attn1 = Attention(width, heads=heads, biases="o", rngs=rngs)
        self.attn2_norm = layer_norm(width, epsilon=1e-5, rngs=rngs)
        self.attn2 = Attention(
            width, heads=heads, context_width=context_width, biases="o", rngs=rngs
        )
        self.mlp_norm = layer_norm(width, epsilon=1e-5, rngs=rngs)
        self.mlp = GEGLU(width, rngs=rngs)
        self.time_proj = (
            linear(width, width, ("embed", "heads"), bias=False, rngs=rngs) if timed else None
        )

    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: Float[Array, "B S C"] | None,
        bias: Float[Array, "B 1 1 S"] | None,
        times: tuple[Float[Array, "1 L D"], Float[Array, "#B S D"]] | None,
    ) -> Float[Array, "B L D"]:
        x = add(x, self.attn1(self.attn1_norm(x)))
        y = self.attn2(self.attn2_norm(x), context, bias=bias, position=self._position(times))
        x = add(x, y)
        return add(x, self.mlp(self.mlp_norm(x)))

    def _position(self, times: tuple[Array, Array] | None) -> Callable | None:
        """Return the function that adds embedded times to queries and keys, if there are any."""
        if self.time_proj is None or times is None:
            return None
        at_q, at_k = (
            rearrange(self.time_proj(t), "b l (n k) -> b l n k", n=self.attn2.heads) for t in times
        )
        return lambda q, k: (q + at_q, k + at_k)


class Transformer(nnx.Module):
    """Blocks over the positions of the latents, row by row, that read one context or none."""

    def __init__(
        self, config: UNetConfig, level: int, route: int | None, *, rngs: nnx.Rngs
    ) -> None:
        width = config.channels[level]
        self.route = route
        self.timed = config.timed and route == 0
        self.seconds_per_row = config.seconds_per_row * 2**level
        self.norm = group_norm(width, config.groups, epsilon=1e-6, rngs=rngs)
        self.proj_in = linear(width, width, ("conv_in", "conv_out"), rngs=rngs)
        self.blocks = nnx.List(
            Block(
                width,
                config.heads_at(level),
                None if route is None else config.contexts[route],
                timed=self.timed,
                rngs=rngs,
            )
            for _ in range(config.depth)
        )
        self.proj_out = linear(width, width, ("conv_in", "conv_out"), rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"], given: Conditions) -> Float[Array, "B H W C"]:
        context = bias = times = None
        if self.route is not None:
            context, bias = given.contexts[self.route], given.biases[self.route]
        if self.timed and given.seconds is not None:
            times = self._times(x, given.seconds)
        y = self.proj_in(rearrange(self.norm(x), "b h w c -> b (h w) c"))
        for block in self.blocks:
            y = block(y, context, bias, times)
        return x + rearrange(self.proj_out(y), "b (h w) c -> b h w c", h=x.shape[1])

    def _times(self, x: Array, token_seconds: Array) -> tuple[Array, Array]:
        """Return the embedded time of each place and of each token.

        The time of a place is the middle of its row, the same for all columns.
        """
        height, columns, width = x.shape[1:]
        rows = (jnp.arange(height, dtype=jnp.float32) + 0.5) * self.seconds_per_row
        seconds = jnp.repeat(rows, columns)[None, :], token_seconds
        at_q, at_k = (time_embedding(s, width).astype(x.dtype) for s in seconds)
        return at_q, at_k


Beside = Callable[[Float[Array, "B H W C"]], Float[Array, "B H W C"] | None]
"""Makes of a resnet's output what is added behind the transformers that follow it, or nothing."""


class Stage(nnx.Module):
    """The resnets of one level of one path, each followed by its transformers.

    `attentions` is flat, all those of the first resnet first. There may be fewer sets of them than
    resnets: the middle is resnet, transformers, resnet.
    """

    def __init__(
        self,
        config: UNetConfig,
        level: int,
        c_in: Sequence[int],
        *,
        attended: int | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        routes = config.attentions[level]
        self.per_resnet = len(routes)
        self.resnets = nnx.List(Resnet(c, config.channels[level], config, rngs=rngs) for c in c_in)
        self.attentions = nnx.List(
            Transformer(config, level, route, rngs=rngs)
            for _ in range(len(c_in) if attended is None else attended)
            for route in routes
        )

    def __call__(
        self, i: int, x: Float[Array, "B H W C"], given: Conditions, beside: "Beside | None" = None
    ) -> Float[Array, "B H W C2"]:
        """Run resnet `i` and the transformers that follow it; add what is made beside those."""
        x = constrain(run(self.resnets[i], x, given.step), "batch")
        added = None if beside is None else beside(x)
        for attention in self.attentions[i * self.per_resnet : (i + 1) * self.per_resnet]:
            x = constrain(run(attention, x, given), "batch")
        return x if added is None else x + added.astype(x.dtype)


class UNet(nnx.Module):
    """Predicts the noise (or velocity) from noisy latents, their time step and the contexts."""

    def __init__(self, config: UNetConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        channels, last = config.channels, len(config.channels) - 1
        self.step_embedding = StepEmbedding(config, rngs=rngs)
        self.conv_in = conv(config.latent_channels, channels[0], (3, 3), padding=1, rngs=rngs)
        above = (channels[0], *channels[:-1])
        self.down = nnx.List(
            Stage(config, n, [above[n]] + [c] * (config.resnets - 1), rngs=rngs)
            for n, c in enumerate(channels)
        )
        self.downsample = nnx.List(
            conv(c, c, (3, 3), strides=2, padding=1, rngs=rngs) for c in channels[:-1]
        )
        self.mid = Stage(config, last, [channels[-1]] * 2, attended=1, rngs=rngs)
        below = (*channels[1:], channels[-1])
        self.up = nnx.List(
            # Each resnet also takes a skip, the last one from the level above.
            Stage(
                config,
                n,
                [below[n] + channels[n]]
                + [2 * channels[n]] * (config.resnets - 1)
                + [channels[n] + above[n]],
                rngs=rngs,
            )
            for n in reversed(range(len(channels)))
        )
        self.upsample = nnx.List(
            conv(c, c, (3, 3), padding=1, rngs=rngs) for c in reversed(channels[1:])
        )
        self.norm_out = group_norm(channels[0], config.groups, epsilon=1e-5, rngs=rngs)
        self.conv_out = conv(channels[0], config.latent_channels, (3, 3), padding=1, rngs=rngs)

    def __call__(
        self,
        latents: Float[Array, "B H W C"],
        t: Float[Array, " B"] | Int[Array, " B"],
        contexts: tuple[Float[Array, "B _S _C"], ...],
        masks: tuple[Bool[Array, "B _S"] | None, ...] | None = None,
        *,
        context_seconds: Float[Array, " S"] | Float[Array, "B S"] | None = None,
        beside: Sequence[Beside] | None = None,
    ) -> Float[Array, "B H W C"]:
        """Return the prediction for `latents` at time steps `t`, in the weights' precision.

        Any height and width will do. A mask is True at tokens that may be read, and a mask that is
        False throughout does not switch a context off: it does nothing (SPEC of AudioLDM 2,
        section 8). `context_seconds` are the times of context 0's tokens, which only a `timed`
        UNet reads. `beside` is what an adapter (`mfm_jax.models.adapters`) does at each of the
        config's `places`.

        Raises:
            ValueError: contexts or masks of another number than configured, or no times for a
                `timed` UNet.
        """
        given = self.conditions(t, contexts, masks, context_seconds)
        x = self.conv_in(latents.astype(self.conv_in.kernel.dtype))
        skips, places = [x], len(self.config.places)
        adapted: Iterator[Beside | None] = iter([None] * places if beside is None else beside)
        for n, stage in enumerate(self.down):
            for i in range(len(stage.resnets)):
                x = stage(i, x, given, next(adapted))
                skips.append(x)
            if n < len(self.downsample):
                x = self.downsample[n](x)
                skips.append(x)
        for i in range(len(self.mid.resnets)):
            x = self.mid(i, x, given, next(adapted))
        for n, stage in enumerate(self.up):
            for i in range(len(stage.resnets)):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = stage(i, x, given, next(adapted))
            if n < len(self.upsample):
                x = upsampled(self.upsample[n], x, *skips[-1].shape[1:3])
        return self.conv_out(jax.nn.silu(self.norm_out(x)))

    def conditions(
        self,
        t: Float[Array, " B"] | Int[Array, " B"],
        contexts: tuple[Float[Array, "B _S _C"], ...],
        masks: tuple[Bool[Array, "B _S"] | None, ...] | None,
        context_seconds: Float[Array, " S"] | Float[Array, "B S"] | None,
    ) -> Conditions:
        """Return the inputs beside the latents as the stages read them."""
        masks = (None,) * len(contexts) if masks is None else masks
        expected = len(self.config.contexts)
        if not len(contexts) == len(masks) == expected:
            raise ValueError(
                f"this UNet reads {expected} contexts, got {len(contexts)} and {len(masks)} masks"
            )
        if self.config.timed and context_seconds is None:
            raise ValueError("this UNet is timed: give context_seconds")
        if context_seconds is not None and context_seconds.ndim == 1:
            context_seconds = context_seconds[None, :]
        biases = (None if m is None else jnp.where(m, 0.0, MASKED)[:, None, None, :] for m in masks)
        dtype = self.conv_in.kernel.dtype
        return Conditions(
            jax.nn.silu(self.step_embedding(t)),
            tuple(c.astype(dtype) for c in contexts),
            tuple(biases),
            context_seconds,
        )


def upsampled(
    layer: nnx.Conv, x: Float[Array, "B H W C"], height: int, width: int
) -> Float[Array, "B H2 W2 C2"]:
    """Return `layer(doubled(x, height, width))`."""
    if (height, width) == (2 * x.shape[1], 2 * x.shape[2]):
        return conv_doubled(layer, x)
    return layer(doubled(x, height, width))


def doubled(x: Float[Array, "B H W C"], height: int, width: int) -> Float[Array, "B H2 W2 C"]:
    """Repeat every row and column, and cut to `height` x `width`: nearest interpolation.

    The cut takes off the row that an odd size gained when it was halved.
    """
    return repeat(x, "b h w c -> b (h m) (w n) c", m=2, n=2)[:, :height, :width]

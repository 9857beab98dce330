"""The VAE between log-mel spectrograms and the latents that diffusion works in.

Height is time and width is mel bins. A level is one resolution; each next one has half of both.
Follows AutoencoderKL of diffusers 0.42.1, models/autoencoders/autoencoder_kl.py and vae.py.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import jax
from einops import rearrange
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import Attention, conv, conv_doubled, group_norm, linear
from mfm_jax.layers.remat import run
from mfm_jax.typing import Array, Float


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the VAE, and the scale of its latents."""

    # Diffusion sees learnt latents times this factor, which gives them about unit spread. Released
    # weights come with it (vae/config.json). For a VAE of one's own it is 1.0 while the VAE is
    # trained, and 1 / spread afterwards.
    scaling_factor: float
    channels: tuple[int, ...] = (128, 256, 512)  # width of each level, full resolution first
    resnets: int = 2  # per level in the encoder; one more in the decoder
    latent_channels: int = 8
    groups: int = 32  # of every GroupNorm

    def __post_init__(self) -> None:
        if not self.scaling_factor > 0:
            raise ValueError(
                f"the VAE's scaling_factor must be positive, got {self.scaling_factor}"
            )

    @classmethod
    def audioldm2(cls, scaling_factor: float | None) -> "VAEConfig":
        """All AudioLDM 2 models; `scaling_factor` is what the released file says.

        Raises:
            ValueError: there is no `scaling_factor`.
        """
        if scaling_factor is None:
            raise ValueError("the VAE's scaling_factor is learnt: take it from vae/config.json")
        return cls(scaling_factor=scaling_factor)

    @classmethod
    def tiny(cls, scaling_factor: float = 1.0) -> "VAEConfig":
        """For a mel of 256 x 64: latents 64 x 16 x 8."""
        return cls(scaling_factor=scaling_factor, channels=(16, 24, 32), resnets=1, groups=8)

    @property
    def compression(self) -> int:
        """Mel frames per row of latents, and mel bins per column."""
        return 2 ** (len(self.channels) - 1)


class Resnet(nnx.Module):
    """Two normalised 3x3 convolutions and a shortcut."""

    def __init__(self, c_in: int, c_out: int, groups: int, *, rngs: nnx.Rngs) -> None:
        self.norm1 = group_norm(c_in, groups, epsilon=1e-6, rngs=rngs)
        self.conv1 = conv(c_in, c_out, (3, 3), padding=1, rngs=rngs)
        self.norm2 = group_norm(c_out, groups, epsilon=1e-6, rngs=rngs)
        self.conv2 = conv(c_out, c_out, (3, 3), padding=1, rngs=rngs)
        self.shortcut = (
            linear(c_in, c_out, ("conv_in", "conv_out"), rngs=rngs) if c_in != c_out else None
        )

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C2"]:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class Middle(nnx.Module):
    """Between two resnets, attention of one head over all places of the lowest resolution."""

    def __init__(self, channels: int, groups: int, *, rngs: nnx.Rngs) -> None:
        self.resnets = nnx.List([Resnet(channels, channels, groups, rngs=rngs) for _ in range(2)])
        self.norm = group_norm(channels, groups, epsilon=1e-6, rngs=rngs)
        self.attn = Attention(channels, heads=1, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        x = self.resnets[0](x)
        places = self.attn(rearrange(self.norm(x), "b h w c -> b (h w) c"))
        x = x + rearrange(places, "b (h w) c -> b h w c", h=x.shape[1])
        return self.resnets[1](x)


class Down(nnx.Module):
    """A level of the encoder: resnets, then half the resolution unless it is the last."""

    def __init__(
        self, c_in: int, c_out: int, config: VAEConfig, *, last: bool, rngs: nnx.Rngs
    ) -> None:
        widths = [c_in] + config.resnets * [c_out]
        self.resnets = nnx.List(
            [Resnet(a, b, config.groups, rngs=rngs) for a, b in pairwise(widths)]
        )
        self.downsample = None if last else conv(c_out, c_out, (3, 3), strides=2, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        for resnet in self.resnets:
            x = run(resnet, x)
        if self.downsample is None:
            return x
        # The original pads right and bottom only.
        return self.downsample(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))))


class Up(nnx.Module):
    """A level of the decoder: resnets, then twice the resolution unless it is the last."""

    def __init__(
        self, c_in: int, c_out: int, config: VAEConfig, *, last: bool, rngs: nnx.Rngs
    ) -> None:
        widths = [c_in] + (config.resnets + 1) * [c_out]
        self.resnets = nnx.List(
            [Resnet(a, b, config.groups, rngs=rngs) for a, b in pairwise(widths)]
        )
        self.upsample = None if last else conv(c_out, c_out, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
        for resnet in self.resnets:
            x = run(resnet, x)
        if self.upsample is None:
            return x
        return conv_doubled(self.upsample, x)


class Encoder(nnx.Module):
    """Network from log-mel to the mean and the log-variance of each latent, side by side."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs) -> None:
        first, last = config.channels[0], config.channels[-1]
        self.conv_in = conv(1, first, (3, 3), padding=1, rngs=rngs)
        widths = (first, *config.channels)
        self.down = nnx.List(
            [
                Down(a, b, config, last=i == len(config.channels) - 1, rngs=rngs)
                for i, (a, b) in enumerate(pairwise(widths))
            ]
        )
        self.middle = Middle(last, config.groups, rngs=rngs)
        self.norm_out = group_norm(last, config.groups, epsilon=1e-6, rngs=rngs)
        self.conv_out = conv(last, 2 * config.latent_channels, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x: Float[Array, "B T M 1"]) -> Float[Array, "B H W C"]:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.norm_out(run(self.middle, x))))


class Decoder(nnx.Module):
    """Network from latents to log-mel."""

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs) -> None:
        first, last = config.channels[-1], config.channels[0]
        self.conv_in = conv(config.latent_channels, first, (3, 3), padding=1, rngs=rngs)
        self.middle = Middle(first, config.groups, rngs=rngs)
        widths = (first, *reversed(config.channels))
        self.up = nnx.List(
            [
                Up(a, b, config, last=i == len(config.channels) - 1, rngs=rngs)
                for i, (a, b) in enumerate(pairwise(widths))
            ]
        )
        self.norm_out = group_norm(last, config.groups, epsilon=1e-6, rngs=rngs)
        self.conv_out = conv(last, 1, (3, 3), padding=1, rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B T M 1"]:
        x = run(self.middle, self.conv_in(x))
        for level in self.up:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class VAE(nnx.Module):
    """Encodes log-mels and decodes latents.

    Latents here are always scaled by `config.scaling_factor`, in and out: what `encode` returns is
    what diffusion learns, and what diffusion samples is what `decode` takes.
    """

    def __init__(self, config: VAEConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        moments, axes = 2 * config.latent_channels, ("conv_in", "conv_out")
        self.encoder = Encoder(config, rngs=rngs)
        self.quant = linear(moments, moments, axes, rngs=rngs)
        self.post_quant = linear(config.latent_channels, config.latent_channels, axes, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

    def latent_shape(self, frames: int, mels: int) -> tuple[int, int, int]:
        """Return the shape of the latents of a mel of `frames` x `mels`, without the batch axis."""
        by = self.config.compression
        return frames // by, mels // by, self.config.latent_channels

    def encode(
        self, mel: Float[Array, "B T M 1"]
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B H W C"]]:
        """Return mean and log-variance of the latents, `[B, T / compression, M / compression, C]`.

        Raises:
            ValueError: the number of frames or of mel bins is no multiple of `compression`.
        """
        by = self.config.compression
        if mel.shape[1] % by or mel.shape[2] % by:
            raise ValueError(
                f"a mel of {mel.shape[1]} frames and {mel.shape[2]} bins: "
                f"pad both to a multiple of {by}"
            )
        moments = self.quant(self.encoder(mel.astype(self.quant.kernel.dtype)))
        mean, logvar = jnp.split(moments, 2, axis=-1)
        factor = self.config.scaling_factor
        return factor * mean, jnp.clip(logvar, -30.0, 20.0) + 2 * math.log(factor)

    def decode(self, latents: Float[Array, "B H W C"]) -> Float[Array, "B T M 1"]:
        """Return the log-mel of (scaled) latents, `[B, H * compression, W * compression, 1]`."""
        x = (latents / self.config.scaling_factor).astype(self.post_quant.kernel.dtype)
        return self.decoder(self.post_quant(x))

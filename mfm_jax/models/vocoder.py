"""HiFi-GAN (arXiv 2010.05646): the waveform of a log-mel spectrogram.

Follows SpeechT5HifiGan of transformers 5.23, models/speecht5/modeling_speecht5.py, as AudioLDM 2
uses it: no normalisation of the mel, weight norm folded into the weights.
"""

import math
from dataclasses import dataclass

import jax
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import conv
from mfm_jax.layers.initial import lecun_normal
from mfm_jax.layers.remat import run
from mfm_jax.typing import Array, Float


@dataclass(frozen=True)
class VocoderConfig:
    """Sizes of the vocoder. A stage is one upsampler and the residual blocks that follow it."""

    channels: int  # before the first stage; each stage halves them
    mels: int = 64  # bins of the log-mel
    rates: tuple[int, ...] = (5, 4, 2, 2, 2)  # samples per sample, of each stage
    kernels: tuple[int, ...] = (16, 16, 8, 4, 4)  # of each stage's upsampler
    block_kernels: tuple[int, ...] = (3, 7, 11)  # of the residual blocks side by side in a stage
    dilations: tuple[tuple[int, ...], ...] = 3 * ((1, 3, 5),)  # of each block's convolutions

    def __post_init__(self) -> None:
        """Check the fields against each other.

        Raises:
            ValueError: fields of different lengths that should have the same.
        """
        for a, b in (("rates", "kernels"), ("block_kernels", "dilations")):
            if len(getattr(self, a)) != len(getattr(self, b)):
                raise ValueError(f"{a} and {b} must have one entry for the same thing each")

    @classmethod
    def audioldm2(cls) -> "VocoderConfig":
        """All AudioLDM 2 models, 16 kHz."""
        return cls(channels=1024)

    @classmethod
    def tiny(cls) -> "VocoderConfig":
        """Fewer stages with small blocks, but as many samples per frame as the release.

        The first stage stays at the rate of the frames, where channels cost little.
        """
        return cls(
            channels=256,
            rates=(1, 16, 10),
            kernels=(3, 32, 30),
            block_kernels=(3,),
            dilations=((1,),),
        )

    @property
    def hop(self) -> int:
        """Samples per mel frame."""
        return math.prod(self.rates)

    def samples(self, frames: int) -> int:
        """Return the samples of `frames` mel frames: for AudioLDM 2, 160 * frames + 32.

        A kernel that exceeds its rate by an odd number cannot be centred and adds one sample.
        """
        for rate, kernel in zip(self.rates, self.kernels, strict=True):
            frames = frames * rate + (kernel - rate) % 2
        return frames


def _upsampler(c_in: int, c_out: int, kernel: int, rate: int, rngs: nnx.Rngs) -> nnx.ConvTranspose:
    """Return PyTorch's ConvTranspose1d with padding `(kernel - rate) // 2`.

    The weight is `[kernel, out, in]`.
    """
    pad = kernel - 1 - (kernel - rate) // 2  # around the input with `rate - 1` zeros between
    return nnx.ConvTranspose(
        c_in,
        c_out,
        (kernel,),
        strides=rate,
        padding=[(pad, pad)],
        transpose_kernel=True,
        kernel_init=lecun_normal,
        kernel_metadata={"axes": (None, "conv_out", "conv_in")},
        bias_metadata={"axes": ("conv_out",)},
        rngs=rngs,
    )


class ResidualBlock(nnx.Module):
    """Pairs of convolutions, a dilated and a plain one, each pair added to its input."""

    def __init__(
        self, channels: int, kernel: int, dilations: tuple[int, ...], *, rngs: nnx.Rngs
    ) -> None:
        self.dilated, self.plain = (
            nnx.List(
                [
                    conv(
                        channels,
                        channels,
                        (kernel,),
                        padding=rate * (kernel - 1) // 2,
                        dilation=rate,
                        rngs=rngs,
                    )
                    for rate in rates
                ]
            )
            for rates in (dilations, len(dilations) * (1,))
        )

    def __call__(self, x: Float[Array, "B L C"]) -> Float[Array, "B L C"]:
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            x = x + plain(_leaky(dilated(_leaky(x))))
        return x


def _leaky(x: Float[Array, "B L C"]) -> Float[Array, "B L C"]:
    return jax.nn.leaky_relu(x, 0.1)


class Vocoder(nnx.Module):
    """Network from a log-mel (natural log of magnitudes, floor 1e-5) to a waveform in -1..1.

    Run it in float32: bfloat16 has 8 bits, and a waveform would sound like it.
    """

    def __init__(self, config: VocoderConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        widths = [config.channels // 2**stage for stage in range(len(config.rates) + 1)]
        self.conv_in = conv(config.mels, widths[0], (7,), padding=3, rngs=rngs)
        self.upsamplers = nnx.List(
            [
                _upsampler(*sizes, rngs=rngs)
                for sizes in zip(widths, widths[1:], config.kernels, config.rates, strict=False)
            ]
        )
        # The blocks of one stage follow each other, as in the released files.
        self.blocks = nnx.List(
            [
                ResidualBlock(width, kernel, dilations, rngs=rngs)
                for width in widths[1:]
                for kernel, dilations in zip(config.block_kernels, config.dilations, strict=True)
            ]
        )
        self.conv_out = conv(widths[-1], 1, (7,), padding=3, rngs=rngs)

    def __call__(self, mel: Float[Array, "B T M"]) -> Float[Array, "B A"]:
        """Return the waveform, of `config.samples(T)` samples."""
        side_by_side = len(self.config.block_kernels)
        x = self.conv_in(mel.astype(self.conv_in.kernel.dtype))
        for stage, upsampler in enumerate(self.upsamplers):
            x = upsampler(_leaky(x))
            first, *others = self.blocks[stage * side_by_side : (stage + 1) * side_by_side]
            x = sum((run(block, x) for block in others), start=run(first, x)) / side_by_side
        # The original leaves out the slope here, which makes it 0.01.
        x = self.conv_out(jax.nn.leaky_relu(x, 0.01))
        return jnp.tanh(x[..., 0])

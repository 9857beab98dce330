"""CAVP (Diff-Foley, arXiv 2306.17203): video frames and sound in one space, aligned in time.

The video tower is SlowOnly, a ResNet3D-50 that never strides over time: one vector per frame.
`CAVPVideo` alone is what generation needs; scores compare it with `CAVPAudio`. `CAVP` is both, for
contrastive training.
"""

from dataclasses import dataclass, replace

import jax
import numpy as np
from einops import rearrange
from flax import nnx
from jax import lax
from jax import numpy as jnp

from mfm_jax.layers import batch_norm, conv, linear
from mfm_jax.layers.remat import run
from mfm_jax.models.cnn14 import Cnn14, Cnn14Config
from mfm_jax.typing import Array, Float

EXPANSION = 4  # output width of a block over its inner width
TEMPORAL = (False, False, True, True)  # stages whose first convolution spans three frames


@dataclass(frozen=True)
class CAVPConfig:
    """Sizes of both towers, and the clip format they were trained on."""

    width: int  # channels of the stem; the stages have 1, 2, 4 and 8 times as many inside
    blocks: tuple[int, int, int, int]  # bottlenecks in each stage
    embed: int  # width of the shared space
    audio: Cnn14Config
    pool: int  # steps over whose maximum a clip becomes one vector
    fps: float  # video frames per second
    size: int  # height and width of a frame in pixels
    hop: int  # samples at 16 kHz from one mel column to the next

    @classmethod
    def diff_foley(cls) -> "CAVPConfig":
        """The release `cavp_epoch66.ckpt`: clips of 16 frames, 4 s."""
        return cls(
            width=64,
            blocks=(3, 4, 6, 3),
            embed=512,
            audio=Cnn14Config.cavp(),
            pool=16,
            fps=4.0,
            size=224,
            hop=250,
        )

    @classmethod
    def tiny(cls) -> "CAVPConfig":
        """Clips of 32 small frames, 2.56 s; both towers give 12.5 steps a second."""
        return cls(
            width=8,
            blocks=(1, 1, 2, 2),
            embed=64,
            audio=Cnn14Config.tiny(),
            pool=32,
            fps=12.5,
            size=32,
            hop=320,
        )

    @classmethod
    def tiny_slow(cls) -> "CAVPConfig":
        """The tiny variant at the release's 4 frames a second, with 16 mel columns to a frame."""
        pools = ((2, 2), (2, 2), (2, 2), (2, 2), (1, 2), (1, 1))
        audio = replace(Cnn14Config.tiny(), pools=pools)
        return replace(cls.tiny(), audio=audio, pool=10, fps=4.0, hop=250)


class ConvNorm(nnx.Module):
    """A Conv3d whose `(time, height, width)` kernel spans either space or time, and its BatchNorm.

    It is computed as a 2-D convolution, with time folded into the batch or with rows and columns
    folded into one axis: XLA's 3-D convolutions take 2 to 6 times as long on a CPU.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: tuple[int, int, int],
        *,
        stride: int = 1,
        rngs: nnx.Rngs,
    ) -> None:
        time, *space = kernel
        self.over_time = time > 1
        plane = (time, 1) if self.over_time else tuple(space)
        pads = [k // 2 for k in plane]
        self.conv = conv(c_in, c_out, plane, strides=stride, padding=pads, bias=False, rngs=rngs)
        self.norm = batch_norm(c_out, rngs=rngs)

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 C2"]:
        if not self.over_time:
            return self.norm(self.conv(x))
        height = x.shape[2]
        y = self.conv(rearrange(x, "b t h w c -> b t (h w) c"))
        return self.norm(rearrange(y, "b t (h w) c -> b t h w c", h=height))


class Bottleneck(nnx.Module):
    """Residual block: 1x1, 3x3 and 1x1 convolutions (`cavp_modules.py:302-325`)."""

    def __init__(
        self,
        c_in: int,
        width: int,
        *,
        temporal: bool,
        stride: int = 1,
        shortcut: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        c_out = EXPANSION * width
        self.conv1 = ConvNorm(c_in, width, (3 if temporal else 1, 1, 1), rngs=rngs)
        self.conv2 = ConvNorm(width, width, (1, 3, 3), stride=stride, rngs=rngs)
        self.conv3 = ConvNorm(width, c_out, (1, 1, 1), rngs=rngs)
        self.shortcut = (
            ConvNorm(c_in, c_out, (1, 1, 1), stride=stride, rngs=rngs) if shortcut else None
        )

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 C2"]:
        y = jax.nn.relu(self.conv1(x))
        y = jax.nn.relu(self.conv2(y))
        y = self.conv3(y)
        return jax.nn.relu(y + (x if self.shortcut is None else self.shortcut(x)))


def _stage(
    c_in: int, width: int, blocks: int, *, temporal: bool, stride: int, rngs: nnx.Rngs
) -> list[Bottleneck]:
    """Return the blocks of a stage, of which only the first changes width and resolution."""
    first = Bottleneck(c_in, width, temporal=temporal, stride=stride, shortcut=True, rngs=rngs)
    rest = [
        Bottleneck(EXPANSION * width, width, temporal=temporal, rngs=rngs)
        for _ in range(blocks - 1)
    ]
    return [first, *rest]


class SlowOnly(nnx.Module):
    """ResNet3D-50 without strides over time.

    An output sees as many frames to either side as there are temporal blocks, 9 in the release.
    Cutting a video into chunks therefore changes the features near the cuts.
    """

    def __init__(self, config: CAVPConfig, *, rngs: nnx.Rngs) -> None:
        self.stem = ConvNorm(3, config.width, (1, 7, 7), stride=2, rngs=rngs)
        stages, c_in = [], config.width
        for i, (blocks, temporal) in enumerate(zip(config.blocks, TEMPORAL, strict=True)):
            width, stride = config.width * 2**i, 1 if i == 0 else 2
            stages.append(_stage(c_in, width, blocks, temporal=temporal, stride=stride, rngs=rngs))
            c_in = EXPANSION * width
        self.stages = nnx.List([nnx.List(stage) for stage in stages])

    def pool(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H2 W2 C"]:
        """Return the 3x3 maximum with stride 2 between the stem and the stages.

        It is taken of slices, first over rows: XLA's maximum over windows takes three times as long
        on a CPU.
        """
        x = jnp.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1), (0, 0)], constant_values=-jnp.inf)
        for axis in (2, 3):
            first, middle, last = (
                lax.slice_in_dim(x, i, x.shape[axis] - 2 + i, stride=2, axis=axis) for i in range(3)
            )
            x = jnp.maximum(jnp.maximum(first, middle), last)
        return x

    def __call__(self, frames: Float[Array, "B T H W 3"]) -> Float[Array, "B T C"]:
        x = self.pool(jax.nn.relu(self.stem(frames)))
        for stage in self.stages:
            for block in stage:
                x = run(block, x)
        return x.mean(axis=(2, 3))


def _finish(
    x: Float[Array, "B T D"], steps: int | None, normalize: bool
) -> Float[Array, "B ... D"]:
    """Take the maximum over the first `steps`, if given, and scale to unit length.

    The original pools with stride `steps` and squeezes, so a second window would turn its
    normalisation to the wrong axis; such clips are refused here.
    """
    if steps is not None:
        if not steps <= x.shape[1] < 2 * steps:
            raise ValueError(
                f"pool=True makes one vector of {steps} to {2 * steps - 1} time steps, got "
                f"{x.shape[1]}; give a clip of that length or use pool=False"
            )
        x = x[:, :steps].max(axis=1)
    if normalize:
        length = jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True)
        x = x / jnp.maximum(length, 1e-12).astype(x.dtype)
    return x


class CAVPVideo(nnx.Module):
    """The video half: SlowOnly and the projection to the shared space."""

    def __init__(self, config: CAVPConfig, *, rngs: nnx.Rngs) -> None:
        self.steps = config.pool
        self.tower = SlowOnly(config, rngs=rngs)
        width = EXPANSION * config.width * 2 ** (len(config.blocks) - 1)
        self.project = linear(width, config.embed, ("mlp", "embed"), rngs=rngs)

    def __call__(
        self, frames: Float[Array, "B T H W 3"], *, pool: bool = False, normalize: bool = True
    ) -> Float[Array, "B ... D"]:
        """Return one vector per frame, `[B, T, D]`, or with `pool` one per clip, `[B, D]`.

        `frames` are RGB in [0, 1] without mean or deviation taken out, any height and width.

        Raises:
            ValueError: `pool` with a number of frames outside `config.pool` to twice that, less 1.
        """
        features = self.project(self.tower(frames.astype(self.project.kernel.dtype)))
        return _finish(features, self.steps if pool else None, normalize)


class CAVPAudio(nnx.Module):
    """The audio half: Cnn14's trunk and the projection (Diff-Foley `cavp_modules.py:1440-1545`)."""

    def __init__(self, config: CAVPConfig, *, rngs: nnx.Rngs) -> None:
        width = config.audio.widths[-1]
        self.steps = config.pool
        self.trunk = Cnn14(config.audio, rngs=rngs)
        self.fc1 = linear(width, width, ("embed", "mlp"), rngs=rngs)
        self.project = linear(width, config.embed, ("mlp", "embed"), rngs=rngs)

    def __call__(
        self,
        mel: Float[Array, "B M T"],
        *,
        pool: bool = False,
        normalize: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> Float[Array, "B ... D"]:
        """Return one vector per time step (16 mel columns in the release), or per clip with `pool`.

        `mel` is `cavp_mel`'s log-mel in [0, 1] as published, bins first. `rngs` draws the dropout
        in training.

        Raises:
            ValueError: `pool` with a number of steps outside `config.pool` to twice that, less 1.
        """
        x = self.trunk(rearrange(mel, "b m t -> b t m"), rngs=rngs)
        # Over each step and its neighbours. Only the average counts the zeros beyond the ends.
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
        average = (padded[:, :-2] + x + padded[:, 2:]) / 3.0
        x = nnx.max_pool(x, (3,), padding=[(1, 1)]) + average
        x = jax.nn.relu(self.fc1(x))
        x = jax.nn.relu(self.fc1(x))  # the original applies the same layer twice
        return _finish(self.project(x), self.steps if pool else None, normalize)


class CAVP(nnx.Module):
    """Both towers and the temperature of the contrastive loss."""

    def __init__(self, config: CAVPConfig, *, rngs: nnx.Rngs) -> None:
        self.video = CAVPVideo(config, rngs=rngs)
        self.audio = CAVPAudio(config, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(np.log(1 / 0.07), jnp.float32), axes=())

    def __call__(
        self,
        frames: Float[Array, "B T H W 3"],
        mel: Float[Array, "B M T2"],
        *,
        pool: bool = True,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "B ... D"], Float[Array, "B ... D"], Float[Array, ""]]:
        """Return unit features of video and audio, and the factor on their products in the loss."""
        video = self.video(frames, pool=pool)
        audio = self.audio(mel, pool=pool, rngs=rngs)
        return video, audio, jnp.exp(self.logit_scale[...])

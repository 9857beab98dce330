"""Cnn14 (PANNs, arXiv 1912.10211): convolutions over a log-mel, and the two heads it is used with.

CAVP's audio tower (`mfm_jax.models.cavp`) keeps time and ends in the space it shares with video.
PANNs' tagger pools time away and ends in AudioSet classes; metrics read its embedding.
"""

from dataclasses import dataclass

import jax
from einops import reduce
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import batch_norm, conv, linear
from mfm_jax.layers.remat import run
from mfm_jax.typing import Array, Float

AUDIOSET_CLASSES = 527


@dataclass(frozen=True)
class Cnn14Config:
    """Sizes of the convolutional trunk.

    Raises:
        ValueError: not as many pools as widths.
    """

    mels: int  # bins of the log-mel
    widths: tuple[int, ...]  # channels of each block; the last is also the width of the head
    pools: tuple[tuple[int, int], ...]  # average pool (time, mel) that ends each block
    dropout: float  # rate after each block, in training only

    def __post_init__(self) -> None:
        if len(self.pools) != len(self.widths):
            raise ValueError(f"{len(self.widths)} blocks need as many pools, got {self.pools}")

    @classmethod
    def cavp(cls) -> "Cnn14Config":
        """CAVP's: 128 bins, 16 mel columns to one step."""
        return cls(
            mels=128,
            widths=(64, 128, 256, 512, 1024, 2048),
            pools=((2, 2), (2, 2), (2, 2), (2, 2), (1, 2), (1, 1)),
            dropout=0.2,
        )

    @classmethod
    def panns(cls) -> "Cnn14Config":
        """PANNs' `Cnn14` and `Cnn14_16k`: 64 bins, 32 mel columns to one step."""
        return cls(
            mels=64,
            widths=(64, 128, 256, 512, 1024, 2048),
            pools=((2, 2), (2, 2), (2, 2), (2, 2), (2, 2), (1, 1)),
            dropout=0.2,
        )

    @classmethod
    def tiny(cls) -> "Cnn14Config":
        """For CAVP's tiny variant: 4 mel columns to one step."""
        return cls(
            mels=128,
            widths=(8, 16, 32, 48, 64, 96),
            pools=((2, 2), (2, 2), (1, 2), (1, 2), (1, 2), (1, 1)),
            dropout=0.0,
        )


class ConvBlock(nnx.Module):
    """Two 3x3 convolutions with BatchNorm and ReLU, then an average pool."""

    def __init__(
        self, c_in: int, c_out: int, *, pool: tuple[int, int], dropout: float, rngs: nnx.Rngs
    ) -> None:
        self.pool = pool
        self.conv1 = conv(c_in, c_out, (3, 3), padding=1, bias=False, rngs=rngs)
        self.norm1 = batch_norm(c_out, rngs=rngs)
        self.conv2 = conv(c_out, c_out, (3, 3), padding=1, bias=False, rngs=rngs)
        self.norm2 = batch_norm(c_out, rngs=rngs)
        self.drop = nnx.Dropout(dropout, deterministic=True)

    def __call__(
        self, x: Float[Array, "B T M C"], key: Array | None = None
    ) -> Float[Array, "B T2 M2 C2"]:
        """Return the pooled output; `key` draws the dropout, which is on after `module.train()`."""
        x = jax.nn.relu(self.norm1(self.conv1(x)))
        x = jax.nn.relu(self.norm2(self.conv2(x)))
        time, mels = (size // p for size, p in zip(x.shape[1:3], self.pool, strict=True))
        x = x[:, : time * self.pool[0], : mels * self.pool[1]]
        pooled = reduce(x, "b (t p) (m q) c -> b t m c", "mean", t=time, m=mels)
        return self.drop(pooled, rngs=key)


class Cnn14(nnx.Module):
    """The trunk: BatchNorm per mel bin, six blocks, mean over the mel bins that are left."""

    def __init__(self, config: Cnn14Config, *, rngs: nnx.Rngs) -> None:
        self.norm = batch_norm(config.mels, rngs=rngs)
        channels = (1, *config.widths)
        self.blocks = nnx.List(
            [
                ConvBlock(c_in, c_out, pool=pool, dropout=config.dropout, rngs=rngs)
                for c_in, c_out, pool in zip(
                    channels[:-1], config.widths, config.pools, strict=True
                )
            ]
        )

    def __call__(
        self, mel: Float[Array, "B T M"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "B T2 C"]:
        x_BTMC = self.norm(mel.astype(self.norm.mean.dtype))[..., None]
        for block in self.blocks:
            x_BTMC = run(block, x_BTMC, None if rngs is None else rngs.dropout())
        return x_BTMC.mean(axis=2)


class Cnn14Tagger(nnx.Module):
    """PANNs' AudioSet tagger, the feature extractor of FD, KL and IS."""

    def __init__(
        self, config: Cnn14Config, classes: int = AUDIOSET_CLASSES, *, rngs: nnx.Rngs
    ) -> None:
        width = config.widths[-1]
        self.trunk = Cnn14(config, rngs=rngs)
        self.fc1 = linear(width, width, ("embed", "mlp"), rngs=rngs)
        self.classify = linear(width, classes, ("mlp", "vocab"), rngs=rngs)

    def __call__(
        self, mel_db: Float[Array, "B T M"]
    ) -> tuple[Float[Array, "B D"], Float[Array, "B V"]]:
        """Return the embedding (`fc1` after its ReLU) and the class logits of a log-mel in dB."""
        x = self.trunk(mel_db)
        embedding = jax.nn.relu(self.fc1(jnp.max(x, axis=1) + jnp.mean(x, axis=1)))
        return embedding, self.classify(embedding)

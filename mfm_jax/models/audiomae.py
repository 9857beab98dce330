"""AudioMAE (arXiv 2207.06405): a ViT over log-mel patches, its pooled LOA tokens, its pretraining.

Tokens run time-major: with F patches along the mel axis, patch `(t, f)` is token `1 + t * F + f`.
Token 0 is the class token. The channels C of a patch are its `patch ** 2` values.
"""

from dataclasses import dataclass

import jax
import numpy as np
from einops import rearrange, reduce
from flax import nnx
from jax import lax
from jax import numpy as jnp

from mfm_jax.layers import MLP, Attention, layer_norm, linear, table
from mfm_jax.layers.remat import run
from mfm_jax.typing import Array, Bool, Float, Int

FRAME_SECONDS = 0.01  # hop of the Kaldi filter bank
EPSILON = 1e-6  # of every LayerNorm


@dataclass(frozen=True)
class LOA:
    """The grid of LOA tokens: how AudioMAE's patches are pooled, and the time of each token.

    Raises:
        ValueError: `pool` does not divide `grid`.
    """

    grid: tuple[int, int] = (64, 8)  # patches along (time, mel)
    pool: tuple[int, int] = (8, 8)  # patches in one token along (time, mel)
    patch_seconds: float = 0.16  # duration of one patch

    def __post_init__(self) -> None:
        for axis, patches, pooled in zip(("time", "mel"), self.grid, self.pool, strict=True):
            if pooled < 1 or patches % pooled:
                raise ValueError(
                    f"LOA pools {pooled} patches along {axis}, which does not divide the "
                    f"{patches} there are; choose a divisor of {patches}"
                )

    @property
    def shape(self) -> tuple[int, int]:
        """Tokens along (time, mel)."""
        return self.grid[0] // self.pool[0], self.grid[1] // self.pool[1]

    @property
    def tokens(self) -> int:
        """Number of tokens L of one clip."""
        return self.shape[0] * self.shape[1]

    @property
    def token_seconds(self) -> float:
        """Duration that one token covers."""
        return self.pool[0] * self.patch_seconds

    def times(self) -> Float[np.ndarray, " L"]:
        """Return the middle of each token in seconds; the tokens of one moment share it."""
        middles = (np.arange(self.shape[0]) + 0.5) * self.token_seconds
        return np.repeat(middles, self.shape[1]).astype(np.float32)

    def pooled(
        self, tokens: Float[Array | np.ndarray, "B S D"]
    ) -> Float[Array | np.ndarray, "B L D"]:
        """Return the LOA of AudioMAE's tokens (`pool_loa`).

        Raises:
            ValueError: `tokens` are not those of `grid`.
        """
        return pool_loa(tokens, self.grid, self.pool)


@dataclass(frozen=True)
class AudioMAEConfig:
    """Sizes of the encoder and of the decoder that only pretraining needs.

    Raises:
        ValueError: sizes that do not go together.
    """

    frames: int = 1024  # filter-bank frames of 10 ms
    mels: int = 128  # filter-bank bins
    patch: int = 16  # frames, and bins, of one square patch
    width: int = 768
    depth: int = 12  # blocks
    heads: int = 12
    mlp_ratio: int = 4  # feed-forward width over width, in both networks
    averaged: int = 3  # last blocks whose normalised outputs are averaged
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16

    def __post_init__(self) -> None:
        if self.frames % self.patch or self.mels % self.patch:
            raise ValueError(f"patches of {self.patch} do not tile {self.frames} x {self.mels}")
        if not 1 <= self.averaged <= self.depth:
            raise ValueError(f"cannot average the last {self.averaged} of {self.depth} blocks")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (time, mel)."""
        return self.frames // self.patch, self.mels // self.patch

    @property
    def patches(self) -> int:
        """Patches of one clip."""
        return self.grid[0] * self.grid[1]

    def loa(self, pool: tuple[int, int]) -> LOA:
        """Return the grid of LOA tokens of one clip, of `pool` patches along (time, mel) each."""
        return LOA(self.grid, pool, self.patch * FRAME_SECONDS)

    @classmethod
    def base(cls) -> "AudioMAEConfig":
        """ViT-B/16 of 10.24 s, the encoder that AudioLDM2 was trained with."""
        return cls()

    @classmethod
    def tiny(cls) -> "AudioMAEConfig":
        """2.56 s at the token rate and with the front end of `base`; about 1 M weights."""
        return cls(
            frames=256,
            width=128,
            depth=4,
            heads=4,
            decoder_width=96,
            decoder_depth=2,
            decoder_heads=4,
        )


def patchify(fbank: Float[Array, "B T M"], patch: int) -> Float[Array, "B G C"]:
    """Cut squares of `patch` frames x `patch` bins, in time-major order, flattened by frame."""
    return rearrange(fbank, "b (t p) (m q) -> b (t m) (p q)", p=patch, q=patch)


def sincos_pos_embed(grid: tuple[int, int], width: int) -> Float[np.ndarray, "L {width}"]:
    """Return the fixed positions of the class token (zeros) and of the patches of a grid.

    The grid is `(time, mel)`.

    A quirk of the original is kept (util/patch_embed.py:14, util/pos_embed.py:39): it declares the
    grid as (mel, time) while tokens run (time, mel). So token `i` is coded as position
    `i % time` in the first half of the width and as `i // time` in the second.

    Raises:
        ValueError: `width` is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width that 4 divides, got {width}")
    time, mel = grid
    token = np.arange(time * mel)
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    halves = []
    for position in (token % time, token // time):
        angles = position[:, None] * frequencies[None]
        halves += [np.sin(angles), np.cos(angles)]
    positions = np.concatenate(halves, axis=1)
    return np.concatenate([np.zeros((1, width)), positions]).astype(np.float32)


def _positions(grid: tuple[int, int], width: int) -> nnx.Param:
    """Return the positions as a stored weight, as in the checkpoints; it gets no gradient."""
    return nnx.Param(jnp.asarray(sincos_pos_embed(grid, width)), axes=(None, "embed"))


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, *, rngs: nnx.Rngs) -> None:
        self.attn_norm = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.attn = Attention(width, heads=heads, rngs=rngs)
        self.mlp_norm = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.mlp = MLP(width, mlp_ratio * width, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class AudioMAE(nnx.Module):
    """The encoder: one vector per patch of a normalised Kaldi filter bank, and a class token."""

    def __init__(self, config: AudioMAEConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.patch_embed = linear(config.patch**2, config.width, (None, "embed"), rngs=rngs)
        self.cls_token = table(config.width, rngs=rngs)
        self.pos_embed = _positions(config.grid, config.width)
        self.blocks = nnx.List(
            [
                Block(config.width, config.heads, config.mlp_ratio, rngs=rngs)
                for _ in range(config.depth)
            ]
        )
        self.norm = layer_norm(config.width, epsilon=EPSILON, rngs=rngs)

    def embed(
        self, fbank: Float[Array, "B T M"], visible: Int[Array, "B S"] | None = None
    ) -> Float[Array, "B L D"]:
        """Return the input of the first block: the class token, then all or the `visible` patches.

        Raises:
            ValueError: the filter bank has other sizes than the config says.
        """
        size = (self.config.frames, self.config.mels)
        if fbank.shape[1:] != size:
            raise ValueError(
                f"AudioMAE reads filter banks of {size[0]} frames x {size[1]} bins, "
                f"got {fbank.shape[1]} x {fbank.shape[2]}"
            )
        patches = patchify(fbank, self.config.patch).astype(self.patch_embed.kernel.dtype)
        positions = lax.stop_gradient(self.pos_embed[...])
        x = self.patch_embed(patches) + positions[None, 1:]
        if visible is not None:
            x = jnp.take_along_axis(x, visible[:, :, None], axis=1)
        first = jnp.broadcast_to(self.cls_token[...] + positions[0], (x.shape[0], 1, x.shape[2]))
        return jnp.concatenate([first, x], axis=1)

    def __call__(self, fbank: Float[Array, "B T M"]) -> Float[Array, "B L D"]:
        """Return features of the class token and every patch, as AudioLDM2 takes them.

        They are the mean of the last blocks' outputs, each normalised (models_mae.py:447 there).
        """
        x = self.embed(fbank)
        outputs = []
        for block in self.blocks:
            x = run(block, x)
            outputs.append(x)
        normed = [self.norm(y) for y in outputs[-self.config.averaged :]]
        return sum(normed[1:], normed[0]) / len(normed)

    def encode_visible(
        self, fbank: Float[Array, "B T M"], visible: Int[Array, "B S"]
    ) -> Float[Array, "B L D"]:
        """Encode the class token and the `visible` patches, for pretraining."""
        x = self.embed(fbank, visible)
        for block in self.blocks:
            x = run(block, x)
        return self.norm(x)


def pool_loa(
    tokens: Float[Array | np.ndarray, "B S D"],
    grid: tuple[int, int] = (64, 8),
    pool: tuple[int, int] = (8, 8),
) -> Float[Array | np.ndarray, "B L D"]:
    """Return LOA: the mean of average and maximum over `pool` patches along (time, mel).

    `tokens` are AudioMAE's, of which the class token is dropped. LOA is time-major.

    Raises:
        ValueError: `pool` does not divide `grid`, or `tokens` are not those of `grid`.
    """
    time, mel = LOA(grid, pool).shape
    if tokens.shape[1] != 1 + grid[0] * grid[1]:
        raise ValueError(
            f"{tokens.shape[1]} tokens are not a class token and a grid of {grid[0]} x {grid[1]}"
        )
    pattern = "b (t p m q) d -> b (t m) d"
    sizes = {"t": time, "p": pool[0], "m": mel, "q": pool[1]}
    average, maximum = (reduce(tokens[:, 1:], pattern, how, **sizes) for how in ("mean", "max"))
    return (average + maximum) / 2


class AudioMAEDecoder(nnx.Module):
    """A plain ViT that predicts the masked patches, for pretraining only.

    The released AudioMAE was pretrained with a windowed decoder; nothing reads it afterwards.
    """

    def __init__(self, config: AudioMAEConfig, *, rngs: nnx.Rngs) -> None:
        width = config.decoder_width
        self.embed = linear(config.width, width, ("embed", None), rngs=rngs)
        self.mask_token = table(width, rngs=rngs)
        self.pos_embed = _positions(config.grid, width)
        self.blocks = nnx.List(
            [
                Block(width, config.decoder_heads, config.mlp_ratio, rngs=rngs)
                for _ in range(config.decoder_depth)
            ]
        )
        self.norm = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.pred = linear(width, config.patch**2, ("embed", None), rngs=rngs)

    def __call__(
        self, encoded: Float[Array, "B L D"], visible: Int[Array, "B S"]
    ) -> Float[Array, "B G C"]:
        """Return the contents of all patches from the encoded class token and visible patches."""
        positions = lax.stop_gradient(self.pos_embed[...])
        x = self.embed(encoded)
        batch, _, width = x.shape
        patches = jnp.broadcast_to(self.mask_token[...], (batch, len(positions) - 1, width))
        patches = patches.at[jnp.arange(batch)[:, None], visible].set(x[:, 1:])
        x = jnp.concatenate([x[:, :1], patches], axis=1) + positions[None]
        for block in self.blocks:
            x = run(block, x)
        return self.pred(self.norm(x[:, 1:]))


def random_visible(key: Array, batch: int, patches: int, ratio: float) -> Int[Array, "{batch} S"]:
    """Draw ascending indices of the patches that stay if a share `ratio` of each clip is masked.

    The mask is unstructured: neither whole frames nor whole bands.

    Raises:
        ValueError: `ratio` is not in [0, 1), or leaves no patch.
    """
    stay = patches - round(ratio * patches)
    if not 0 <= ratio < 1 or stay < 1:
        raise ValueError(f"a mask ratio of {ratio} leaves none of {patches} patches")
    noise = jax.random.uniform(key, (batch, patches))
    return jnp.sort(jnp.argsort(noise, axis=1)[:, :stay], axis=1)


def masked_patches(visible: Int[Array, "B S"], patches: int) -> Bool[Array, "B {patches}"]:
    """Return the mask that is True at the patches that are not `visible`."""
    rows = jnp.arange(len(visible))[:, None]
    return jnp.ones((len(visible), patches), bool).at[rows, visible].set(False)


def reconstruction_loss(
    predicted: Float[Array, "B G C"], target: Float[Array, "B G C"], masked: Bool[Array, "B G"]
) -> Float[Array, ""]:
    """Return the mean squared error over `masked` patches, each target at mean 0 and variance 1.

    The variance is the unbiased one, with 1e-6 added, as in the original.
    """
    target = target.astype(jnp.float32)
    mean = target.mean(axis=-1, keepdims=True)
    variance = target.var(axis=-1, keepdims=True, ddof=1)
    error = predicted.astype(jnp.float32) - (target - mean) * lax.rsqrt(variance + 1e-6)
    return jnp.mean(error**2, where=masked[:, :, None])


def pretraining_loss(
    encoder: AudioMAE,
    decoder: AudioMAEDecoder,
    fbank: Float[Array, "B T M"],
    *,
    key: Array,
    ratio: float = 0.8,
) -> Float[Array, ""]:
    """Return the loss of one masked-autoencoder step; `key` draws the mask, `ratio` is its share.

    Raises:
        ValueError: `ratio` masks no patch, or all of them.
    """
    config = encoder.config
    visible = random_visible(key, len(fbank), config.patches, ratio)
    if visible.shape[1] == config.patches:
        raise ValueError(f"a mask ratio of {ratio} masks none of {config.patches} patches")
    predicted = decoder(encoder.encode_visible(fbank, visible), visible)
    masked = masked_patches(visible, config.patches)
    return reconstruction_loss(predicted, patchify(fbank, config.patch), masked)

"""Start a video network from one that knows pictures, as Motionformer starts from a ViT."""

from collections.abc import Sequence

from einops import repeat
from jax import numpy as jnp

from mfm_jax.models.eva_vit import EvaViT, EvaViTConfig
from mfm_jax.models.synchformer_video import VideoTower, VideoTowerConfig
from mfm_jax.storage.weights import named_weights, with_weights

NOTHING = ("time_attn.o.kernel", "time_attn.o.bias", "space_attn.k.bias", "time_embed")
"""Weights that become zeros: the transformer knows no time, and its keys have no bias."""


def inflated(
    tower: VideoTower, vit: EvaViT, mean: Sequence[float], std: Sequence[float]
) -> VideoTower:
    """Return a video tower with the weights of a vision transformer.

    A patch of several frames is embedded as their mean. Attention over space and the feed-forward
    networks are the transformer's; attention over time and the vectors of time add nothing at first
    (TimeSformer, arXiv 2102.05095). The final norm and the pooling stay as they are.

    Args:
        vit: reads frames as `(x - mean) / std`, with `x` in 0 to 1 and three numbers each.

    Raises:
        ValueError: the two have other sizes.
    """
    check_sizes(tower.config, vit.config)
    frames = tower.config.patch_frames
    weights, given = (
        {n: jnp.asarray(w) for n, w in named_weights(network).items()} for network in (tower, vit)
    )
    for name in weights:
        if name.endswith(NOTHING):
            weights[name] = jnp.zeros_like(weights[name])
    for name, weight in given.items():
        if name.startswith("blocks."):
            name = name.replace(".attn_norm.", ".space_norm.").replace(".attn.", ".space_attn.")
            weights[name] = weight
    # The tower reads y = 2 x - 1, so (x - mean) / std is y / (2 std) + (0.5 - mean) / std.
    kernel, spread = given["patch.kernel"], jnp.asarray(std)
    shift = (0.5 - jnp.asarray(mean)) / spread
    of_a_frame = kernel / (2 * frames * spread[None, None, :, None])
    weights |= {
        "patch_embed.kernel": repeat(of_a_frame, "q r c d -> (p q r c) d", p=frames),
        "patch_embed.bias": given["patch.bias"] + jnp.einsum("qrcd,c->d", kernel, shift),
        "cls_token": given["class_token"],
        "pos_embed": given["positions"],
    }
    return with_weights(tower, weights)


def check_sizes(tower: VideoTowerConfig, vit: EvaViTConfig) -> None:
    """Check that a tower can start as a vision transformer.

    Raises:
        ValueError: the two have other sizes.
    """
    sizes = (tower.image, tower.patch, tower.width, tower.depth, tower.heads, tower.mlp_width)
    wanted = ((vit.image, vit.image), vit.patch, vit.width, vit.depth, vit.heads, vit.mlp_width)
    if sizes != wanted:
        raise ValueError(
            f"the video tower's image, patch, width, depth, heads and mlp_width are {sizes}, those "
            f"of the vision transformer {wanted}"
        )

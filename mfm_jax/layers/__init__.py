"""The layers that networks are written with: each declares its weights once, with logical axes."""

from mfm_jax.layers.attention import KV, Attention, KVCache, attend
from mfm_jax.layers.clock import clock
from mfm_jax.layers.conv import conv
from mfm_jax.layers.linear import embedding, linear, table
from mfm_jax.layers.mlp import MLP
from mfm_jax.layers.norm import batch_norm, group_norm, layer_norm

__all__ = [
    "KV",
    "MLP",
    "Attention",
    "KVCache",
    "attend",
    "batch_norm",
    "clock",
    "conv",
    "embedding",
    "group_norm",
    "layer_norm",
    "linear",
    "table",
]

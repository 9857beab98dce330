"""Layers of the networks: each declares its weights once, with logical axes."""

from mfm_jax.layers.attention import KV, Attention, KVCache, attend
from mfm_jax.layers.backend import add
from mfm_jax.layers.conv import conv, conv_doubled
from mfm_jax.layers.linear import embedding, linear, table
from mfm_jax.layers.mlp import MLP
from mfm_jax.layers.norm import batch_norm, group_norm, layer_norm
from mfm_jax.layers.time_embedding import time_embedding

__all__ = [
    "KV",
    "MLP",
    "Attention",
    "KVCache",
    "add",
    "attend",
    "batch_norm",
    "conv",
    "conv_doubled",
    "embedding",
    "group_norm",
    "layer_norm",
    "linear",
    "table",
    "time_embedding",
]

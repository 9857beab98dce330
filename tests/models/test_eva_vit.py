"""EVA's vision transformer against transformers; the goldens are in test_timechat.py."""

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from jax import numpy as jnp

from convert.table import Table
from convert.timechat import vit_rows
from mfm_jax.layers import layer_norm
from mfm_jax.models.eva_vit import EvaViT, EvaViTConfig
from mfm_jax.storage.weights import abstract, cast, with_weights
from tests.randomise import randomise

SMALL = EvaViTConfig(image=42, patch=6, width=20, depth=2, heads=4, mlp_width=52)
ORIGINAL_NAMES = (
    ("embeddings.class_embedding", "cls_token"),
    ("embeddings.position_embedding", "pos_embed"),
    ("embeddings.patch_embedding", "patch_embed.proj"),
    ("encoder.layers.", "blocks."),
    (".layer_norm", ".norm"),
    (".self_attn.projection", ".attn.proj"),
    (".self_attn.qkv", ".attn.qkv"),
)


apply = jax.jit(lambda module, *inputs: module(*inputs))


@pytest.fixture(scope="module")
def peer():
    config = transformers.Blip2VisionConfig(
        hidden_size=20,
        intermediate_size=52,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=42,
        patch_size=6,
    )
    peer = randomise(transformers.Blip2VisionModel(config).eval(), seed=0)
    with torch.no_grad():
        for layer in peer.encoder.layers:
            layer.self_attn.qkv.bias[20:40] = 0.0  # the original's keys have no bias
    peer.post_layernorm.eps = 1e-5  # TimeChat's ln_vision; here it would be the blocks' 1e-6
    return peer


@pytest.fixture(scope="module")
def ours(peer) -> EvaViT:
    state = {}
    for name, tensor in peer.state_dict().items():
        for old, new in ORIGINAL_NAMES:
            name = name.replace(old, new)
        if name.endswith("qkv.bias"):
            state[name.replace("qkv.", "q_")] = tensor[:20].numpy()
            state[name.replace("qkv.", "v_")] = tensor[40:].numpy()
        elif not name.startswith("post_layernorm"):
            state[name] = tensor.numpy()
    weights = {k: jax.device_put(v) for k, v in Table(vit_rows("", "")).to_ours(state)}
    return with_weights(abstract(lambda rngs: EvaViT(SMALL, rngs=rngs)), weights)


@pytest.mark.parity
def test_agrees_with_blip2(parity, ours, peer):
    against = "transformers Blip2VisionModel"
    pixels = np.random.default_rng(2).standard_normal((3, 42, 42, 3), np.float32)
    theirs = torch.tensor(pixels).permute(0, 3, 1, 2)
    with torch.no_grad():
        x, y = jax.jit(EvaViT.embed)(ours, jnp.asarray(pixels)), peer.embeddings(theirs)
        parity("EVA ViT embeddings", against, x, y, 1e-4)
        for i, (block, layer) in enumerate(zip(ours.blocks, peer.encoder.layers, strict=True)):
            x, y = apply(block, x), layer(y)
            parity(f"EVA ViT block {i}", against, x, y, 1e-4)
        final = peer(theirs).last_hidden_state
    norm = with_weights(
        layer_norm(SMALL.width, epsilon=1e-5, rngs=nnx.Rngs(0)),
        {
            "scale": jnp.asarray(peer.post_layernorm.weight.detach().numpy()),
            "bias": jnp.asarray(peer.post_layernorm.bias.detach().numpy()),
        },
    )
    whole = apply(norm, apply(ours, jnp.asarray(pixels)))
    parity("EVA ViT and ln_vision", against, whole, final, 1e-4)


def test_computes_in_the_precision_of_its_weights(ours):
    pixels = jax.ShapeDtypeStruct((1, 42, 42, 3), jnp.float32)
    with jax.numpy_dtype_promotion("standard"):  # flax's LayerNorm promotes bfloat16 by itself
        result = jax.eval_shape(lambda ours, x: apply(cast(ours, jnp.bfloat16), x), ours, pixels)
    assert result.dtype == jnp.bfloat16


def test_wrong_sizes_are_refused(ours):
    with pytest.raises(ValueError, match="do not tile"):
        EvaViTConfig(image=40, patch=6, width=20, depth=1, heads=4, mlp_width=52)
    with pytest.raises(ValueError, match="takes 42"):
        ours(jnp.zeros((1, 36, 42, 3)))

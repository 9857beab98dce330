"""`python -m benchmarks`: time our networks and the PyTorch originals, with the same weights.

It prints the hardware, then one line per network: milliseconds of each (median of alternating runs)
and the ratio. The sizes suit a laptop.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.audioldm2 import AudioLDM2UNet2DConditionModel
from transformers import GPT2Config as TheirGPT2Config
from transformers import GPT2Model

from benchmarks.hardware import hardware
from convert import gpt2, unet, vae
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.models.unet import UNet
from mfm_jax.models.vae import VAE, VAEConfig
from mfm_jax.runtime.memory import keep_freed_memory
from mfm_jax.storage.weights import abstract, with_weights

ROUNDS = 7
UNET = {
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": (64, 128, 192),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": [[None, 768, 1024]] * 3,
    "transformer_layers_per_block": 1,
}


def ours_like(theirs: torch.nn.Module, table, build: Callable):
    """Return our network with their weights."""
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    return with_weights(abstract(build), {k: jnp.asarray(v) for k, v in table.to_ours(state)})


def time_pair(ours: Callable[[], jax.Array], theirs: Callable[[], object]) -> tuple[float, float]:
    """Return the median seconds of each over alternating runs, after a run that compiles."""
    jax.block_until_ready(ours())
    theirs()
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for run, times in zip((ours, theirs), spent, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run())
            times.append(time.perf_counter() - start)
    return statistics.median(spent[0]), statistics.median(spent[1])


def gpt2_pair():
    """Return both forward passes of GPT-2 small over 256 vectors."""
    theirs = GPT2Model(TheirGPT2Config()).eval()
    config = GPT2Config.small()
    ours = ours_like(theirs, gpt2.table(config), lambda rngs: GPT2(config, rngs=rngs))
    x = np.random.default_rng(0).standard_normal((2, 256, 768), np.float32)
    # The network is an argument; in a closure its weights would be constants of the program.
    forward = jax.jit(GPT2.__call__)
    xj, xt = jnp.asarray(x), torch.tensor(x)
    return lambda: forward(ours, xj, None), lambda: theirs(inputs_embeds=xt).last_hidden_state


def unet_pair():
    """Return both forward passes of AudioLDM2's UNet at half its width: 10.24 s, batch 2."""
    theirs = AudioLDM2UNet2DConditionModel(**UNET).eval()
    config = unet.config(json.loads(theirs.to_json_string()))
    ours = ours_like(theirs, unet.TABLE, lambda rngs: UNet(config, rngs=rngs))
    rng = np.random.default_rng(0)
    x, loa, text = (
        rng.standard_normal(s, np.float32) for s in ((2, 256, 16, 8), (2, 8, 768), (2, 1, 1024))
    )
    forward = jax.jit(lambda network, x, t, a, b: network(x, t, (a, b)))
    args = ours, jnp.asarray(x), jnp.full((2,), 500), jnp.asarray(loa), jnp.asarray(text)
    given = {
        "encoder_hidden_states": torch.tensor(loa),
        "encoder_hidden_states_1": torch.tensor(text),
    }
    latents = torch.tensor(np.moveaxis(x, -1, 1).copy())
    return lambda: forward(*args), lambda: theirs(latents, 500, **given).sample


def vae_pair():
    """Return both forward passes of the VAE's decoder at half its width, 2.56 s."""
    channels = (64, 128, 256)
    theirs = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        block_out_channels=channels,
        latent_channels=8,
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        scaling_factor=1.0,
    ).eval()
    ours = ours_like(theirs, vae.TABLE, lambda rngs: VAE(VAEConfig(1.0, channels), rngs=rngs))
    x = np.random.default_rng(0).standard_normal((1, 64, 16, 8), np.float32)
    forward = jax.jit(VAE.decode)
    xj, xt = jnp.asarray(x), torch.tensor(np.moveaxis(x, -1, 1).copy())
    return lambda: forward(ours, xj), lambda: theirs.decode(xt).sample


def main() -> None:
    """Print the table."""
    keep_freed_memory()
    print(
        f"{hardware(Path())}; jax {jax.__version__} on {jax.devices()[0].device_kind}, "
        f"torch {torch.__version__} on cpu with {torch.get_num_threads()} threads, float32"
    )
    print(f"{'network':28}  {'ours ms':>8}  {'torch ms':>8}  {'ratio':>6}")
    with torch.no_grad():
        for name, pair in (
            ("GPT-2 small, 2 x 256", gpt2_pair),
            ("UNet, width / 2, 10.24 s", unet_pair),
            ("VAE decoder, width / 2", vae_pair),
        ):
            mine, other = time_pair(*pair())
            print(f"{name:28}  {mine * 1e3:8.1f}  {other * 1e3:8.1f}  {mine / other:6.2f}")


if __name__ == "__main__":
    main()

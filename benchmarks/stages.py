"""The networks of generation and extraction as stages, on both sides, with drawn weights."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import torch
from jax import numpy as jnp

from benchmarks import torch_networks
from benchmarks.beside import Setting, Stage, numbers
from mfm_jax.mapper import Stream
from mfm_jax.models.audiomae import AudioMAE
from mfm_jax.models.cavp import CAVPVideo
from mfm_jax.models.eva_vit import EvaViT
from mfm_jax.models.qformer import QFormer
from mfm_jax.models.vae import VAE
from mfm_jax.models.vocoder import Vocoder

STEPS = 10
"""Steps of the sampler."""

WORDS = 16
"""Tokens of the sentence with a frame's time."""


def vit(setting: Setting) -> Stage:
    """Blocks of EVA-CLIP-g, or all of it."""
    timechat = setting.sizes.configs["timechat"]
    whole, clips = timechat.vit, setting.batch
    depth, frames = (2, 4 * clips) if setting.part else (whole.depth, timechat.frames * clips)
    config = replace(whole, depth=depth)
    pixels = numbers(frames, config.image, config.image, 3)
    given = setting.tensor(pixels.transpose(0, 3, 1, 2))
    part = f", {depth} of {whole.depth} blocks" if setting.part else ""
    return Stage(
        f"ViT{part}, {frames} frames",
        jax.jit(EvaViT.__call__),
        (setting.draw(partial(EvaViT, config)), jnp.asarray(pixels)),
        timechat.frames / frames * whole.depth / depth,
        torch_networks.eva_vit(config),
        lambda network: network(given).last_hidden_state,
    )


def image_qformer(setting: Setting) -> Stage:
    """The Q-Former that reads a frame and the sentence with its time."""
    timechat = setting.sizes.configs["timechat"]
    config = timechat.image_qformer
    frames = (8 if setting.part else timechat.frames) * setting.batch
    context = numbers(frames, timechat.vit.tokens, config.context_width)
    ids, mask = np.zeros((frames, WORDS), np.int32), np.ones((frames, WORDS), bool)
    queries = setting.tensor(np.zeros((frames, config.queries, config.width), np.float32))
    given, seen = setting.tensor(ids.astype(np.int64)), setting.tensor(context)
    visible = torch.ones(frames, config.queries + WORDS, dtype=torch.long, device=setting.device)
    return Stage(
        f"Q-Former of images, {frames} frames",
        jax.jit(QFormer.__call__),
        (setting.draw(partial(QFormer, config)), *map(jnp.asarray, (context, ids, mask))),
        timechat.frames / frames,
        torch_networks.qformer(config),
        lambda network: network(
            input_ids=given, attention_mask=visible, query_embeds=queries,
            encoder_hidden_states=seen,
        ).last_hidden_state,
    )  # fmt: skip


def video_qformer(setting: Setting) -> Stage:
    """The Q-Former that reads the tokens of all frames of a window of TimeChat's."""
    timechat = setting.sizes.configs["timechat"]
    config, image = timechat.video_qformer, timechat.image_qformer
    rows = len(timechat.windows(timechat.frames)) * setting.batch
    context = numbers(rows, timechat.window * (image.queries + WORDS), config.context_width)
    queries = setting.tensor(np.zeros((rows, config.queries, config.width), np.float32))
    seen = setting.tensor(context)
    return Stage(
        f"Q-Former of videos, {rows} windows",
        jax.jit(lambda network, context: network(context)),
        (setting.draw(partial(QFormer, config)), jnp.asarray(context)),
        1 / setting.batch,
        torch_networks.qformer(config),
        lambda network: network(
            input_ids=None, query_embeds=queries, encoder_hidden_states=seen
        ).last_hidden_state,
    )  # fmt: skip


def cavp(setting: Setting) -> Stage:
    """CAVP's video tower."""
    config = setting.sizes.configs["cavp"]
    frames = int(setting.sizes.settings.seconds * config.fps + 1e-9)
    some = min(8, frames) if setting.part else frames
    shape = (setting.batch, some, config.size, config.size, 3)
    pixels = np.random.default_rng(0).random(shape, np.float32)
    given = setting.tensor(pixels.transpose(0, 4, 1, 2, 3))
    return Stage(
        f"CAVP, {setting.batch} x {some} frames",
        jax.jit(CAVPVideo.__call__),
        (setting.draw(partial(CAVPVideo, config)), jnp.asarray(pixels)),
        frames / some / setting.batch,
        torch_networks.CAVPVideo(config),
        lambda network: network(given),
    )


def audiomae(setting: Setting) -> Stage:
    """AudioMAE's encoder, of a whole clip."""
    config = setting.sizes.configs["audiomae"]
    fbank = numbers(setting.batch, config.frames, config.mels)
    given = setting.tensor(fbank[:, None])
    return Stage(
        f"AudioMAE, {config.patches} patches",
        jax.jit(AudioMAE.__call__),
        (setting.draw(partial(AudioMAE, config)), jnp.asarray(fbank)),
        1 / setting.batch,
        torch_networks.audiomae(config),
        lambda network: network(given).last_hidden_state,
    )


def vae_encoder(setting: Setting) -> Stage:
    """The VAE's encoder, to the mean of the latents."""
    config = setting.sizes.configs["vae"]
    mels = setting.sizes.configs["vocoder"].mels
    mel = numbers(setting.batch, setting.sizes.settings.frames, mels, 1)
    given = setting.tensor(mel.transpose(0, 3, 1, 2))
    return Stage(
        "VAE encoder",
        jax.jit(lambda vae, mel: vae.encode(mel)[0]),
        (setting.draw(partial(VAE, config)), jnp.asarray(mel)),
        1 / setting.batch,
        _Encoder(torch_networks.vae(config)),
        lambda network: network(given),
    )


class _Encoder(torch.nn.Module):
    """The encoder of a VAE, called as a network."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Return the mean of the latents."""
        return self.vae.encode(mel).latent_dist.mean


class Decoder(torch.nn.Module):
    """The decoder of a VAE, called as a network."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the log-mel."""
        return self.vae.decode(latents).sample


def mapper(setting: Setting) -> Stage:
    """GPT-2 reads the video's tokens and generates the LOA vectors."""
    config, batch = setting.sizes.configs["mapper"], setting.batch
    streams = {
        name: Stream(
            jnp.asarray(numbers(batch, count, width)),
            jnp.tile(jnp.linspace(0, 10, count), (batch, 1)),
        )
        for name, count, width in config.encoders
    }
    tokens = sum(count for _, count, _ in config.encoders)
    prefix = setting.tensor(numbers(batch, tokens, config.gpt2.width))
    return Stage(
        f"GPT-2, {tokens} + {config.loa.tokens} tokens",
        jax.jit(lambda network, streams: network.generate(streams)),
        (setting.component("mapper"), streams),
        1 / batch,
        torch_networks.gpt2(config.gpt2),
        lambda network: generate_loa(network, prefix, config.loa.tokens),
    )


def generate_loa(network: Any, prefix: torch.Tensor, count: int) -> torch.Tensor:
    """Return what PyTorch's GPT-2 generates after a prefix, each output read as the next input."""
    found, embeds, cache = [], prefix, None
    for _ in range(count):
        done = network(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        embeds, cache = done.last_hidden_state[:, -1:], done.past_key_values
        found.append(embeds)
    return torch.cat(found, dim=1)


def unet(setting: Setting) -> Stage:
    """A step of AudioLDM2's UNet with guidance, which doubles the batch."""
    config, sizes = setting.sizes.configs["unet"], setting.sizes
    vae, mels = sizes.configs["vae"], sizes.configs["vocoder"].mels
    rows, (wide, text) = 2 * setting.batch, config.contexts
    by = vae.compression
    x = numbers(rows, sizes.settings.frames // by, mels // by, config.latent_channels)
    loa = numbers(rows, sizes.configs["mapper"].loa.tokens, wide)
    words = numbers(rows, sizes.configs["text"].tokens, text)
    latents = setting.tensor(x.transpose(0, 3, 1, 2))
    given = {
        "encoder_hidden_states": setting.tensor(loa),
        "encoder_hidden_states_1": setting.tensor(words),
    }
    return Stage(
        "UNet, a step with guidance",
        jax.jit(lambda network, x, t, contexts: network(x, t, contexts)),
        (
            setting.component("unet"), jnp.asarray(x), jnp.full((rows,), 500),
            (jnp.asarray(loa), jnp.asarray(words)),
        ),
        STEPS / setting.batch,
        torch_networks.unet(config),
        lambda network: network(latents, 500, **given).sample,
    )  # fmt: skip


def vae_decoder(setting: Setting) -> Stage:
    """The VAE's decoder."""
    config, sizes = setting.sizes.configs["vae"], setting.sizes
    by, mels = config.compression, sizes.configs["vocoder"].mels
    x = numbers(setting.batch, sizes.settings.frames // by, mels // by, config.latent_channels)
    latents = setting.tensor(x.transpose(0, 3, 1, 2))
    return Stage(
        "VAE decoder",
        jax.jit(VAE.decode),
        (setting.draw(partial(VAE, config)), jnp.asarray(x)),
        1 / setting.batch,
        Decoder(torch_networks.vae(config)),
        lambda network: network(latents),
    )


def vocoder(setting: Setting) -> Stage:
    """AudioLDM2's HiFi-GAN."""
    config = setting.sizes.configs["vocoder"]
    mel = numbers(setting.batch, setting.sizes.settings.frames, config.mels)
    given = setting.tensor(mel)
    return Stage(
        "HiFi-GAN",
        jax.jit(Vocoder.__call__),
        (setting.draw(partial(Vocoder, config)), jnp.asarray(mel)),
        1 / setting.batch,
        torch_networks.vocoder(config),
        lambda network: network(given),
    )


GENERATION: tuple[Callable[[Setting], Stage], ...] = (
    vit, image_qformer, video_qformer, cavp, mapper, unet, vae_decoder, vocoder,
)  # fmt: skip
EXTRACTION: tuple[Callable[[Setting], Stage], ...] = (
    vit, image_qformer, video_qformer, cavp, audiomae, vae_encoder,
)  # fmt: skip

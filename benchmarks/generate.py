"""`python -m benchmarks.generate`: every stage of generation beside PyTorch, at released sizes.

Both sides have drawn weights, the same inputs, precision and threads, and run by turns. PyTorch's
sides are transformers (ViT-g, Q-Former, GPT-2, HiFi-GAN), diffusers (UNet, VAE), and CAVP written
out with torch's layers. The last line adds up the stages of a clip of 10.24 s, each as often as it
runs: 96 frames, all blocks, ten steps with guidance.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.audioldm2 import AudioLDM2UNet2DConditionModel
from jax import numpy as jnp
from transformers import GPT2Config as TheirGPT2Config
from transformers import (
    GPT2Model,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    InstructBlipVisionModel,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
)
from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel

from benchmarks.hardware import hardware
from mfm_jax.cost import flops
from mfm_jax.mapper import MapperConfig, Stream, build_mapper
from mfm_jax.models.cavp import EXPANSION, TEMPORAL, CAVPConfig, CAVPVideo
from mfm_jax.models.eva_vit import EvaViT, EvaViTConfig
from mfm_jax.models.qformer import QFormer
from mfm_jax.models.timechat import TimeChatConfig
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.models.vae import VAE, VAEConfig
from mfm_jax.models.vocoder import Vocoder, VocoderConfig
from mfm_jax.runtime.memory import keep_freed_memory
from mfm_jax.storage.weights import initialise
from mfm_jax.text.wordpiece import tiny_timestamp_vocabulary

FRAMES, STEPS = 96, 10
"""Frames that TimeChat reads of a window, and steps of the sampler, of a whole clip."""


@dataclass(frozen=True)
class Stage:
    """A network, or a part of one, on both sides."""

    name: str
    ours: Callable[..., Any]  # compiled; takes `arguments`
    arguments: tuple[Any, ...]
    theirs: Callable[[], Any]
    times: float  # how often it runs for a clip


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Return normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def vit(depth: int = 2, frames: int = 4) -> Stage:
    """Blocks of EVA-CLIP-g."""
    config = replace(EvaViTConfig.eva_clip_g(), depth=depth)
    theirs = InstructBlipVisionModel(
        InstructBlipVisionConfig(
            hidden_size=config.width, intermediate_size=config.mlp_width, num_hidden_layers=depth,
            num_attention_heads=config.heads, image_size=config.image, patch_size=config.patch,
        )
    ).eval()  # fmt: skip
    ours = initialise(partial(EvaViT, config), 0)
    pixels = numbers(frames, config.image, config.image, 3)
    given = torch.tensor(pixels.transpose(0, 3, 1, 2).copy())
    return Stage(
        f"ViT-g, {depth} of 39 blocks, {frames} frames",
        jax.jit(EvaViT.__call__),
        (ours, jnp.asarray(pixels)),
        lambda: theirs(given).last_hidden_state,
        FRAMES / frames * EvaViTConfig.eva_clip_g().depth / depth,
    )


def image_qformer(frames: int = 8, words: int = 16) -> Stage:
    """The Q-Former that reads a frame and the sentence with its time."""
    config = TimeChatConfig.timechat_7b(tiny_timestamp_vocabulary()).image_qformer
    theirs = InstructBlipQFormerModel(
        InstructBlipQFormerConfig(
            vocab_size=config.words or 0, hidden_size=config.width, num_hidden_layers=config.depth,
            num_attention_heads=config.heads, intermediate_size=config.mlp_width,
            encoder_hidden_size=config.context_width, cross_attention_frequency=config.cross_every,
        )
    ).eval()  # fmt: skip
    ours = initialise(partial(QFormer, config), 0)
    context, ids = numbers(frames, 257, config.context_width), np.zeros((frames, words), np.int32)
    mask = np.ones((frames, words), bool)
    queries = torch.zeros(frames, config.queries, config.width)
    seen = torch.tensor(context)
    whole = torch.ones(frames, config.queries + words, dtype=torch.long)
    return Stage(
        f"Q-Former of images, {frames} frames",
        jax.jit(QFormer.__call__),
        (ours, jnp.asarray(context), jnp.asarray(ids), jnp.asarray(mask)),
        lambda: theirs(
            input_ids=torch.zeros(frames, words, dtype=torch.long), attention_mask=whole,
            query_embeds=queries, encoder_hidden_states=seen,
        ).last_hidden_state,
        FRAMES / frames,
    )  # fmt: skip


class TheirBottleneck(torch.nn.Module):
    """A block of SlowOnly."""

    def __init__(self, c_in: int, width: int, *, temporal: bool, stride: int, first: bool) -> None:
        super().__init__()
        c_out = EXPANSION * width
        kernel = (3, 1, 1) if temporal else (1, 1, 1)
        self.path = torch.nn.Sequential(
            *_conv3d(c_in, width, kernel), torch.nn.ReLU(),
            *_conv3d(width, width, (1, 3, 3), stride), torch.nn.ReLU(),
            *_conv3d(width, c_out, (1, 1, 1)),
        )  # fmt: skip
        shortcut = torch.nn.Sequential(*_conv3d(c_in, c_out, (1, 1, 1), stride))
        self.shortcut = shortcut if first else torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features `[B, C, T, H, W]`."""
        return torch.relu(self.path(x) + self.shortcut(x))


def _conv3d(c_in: int, c_out: int, kernel: Sequence[int], stride: int = 1) -> list[torch.nn.Module]:
    pads = tuple(k // 2 for k in kernel)
    strides = (1, stride, stride)
    return [
        torch.nn.Conv3d(c_in, c_out, tuple(kernel), strides, pads, bias=False),
        torch.nn.BatchNorm3d(c_out),
    ]


def their_slow_only(config: CAVPConfig) -> torch.nn.Module:
    """Return the video tower of CAVP with torch's layers."""
    layers: list[torch.nn.Module] = [
        *_conv3d(3, config.width, (1, 7, 7), 2), torch.nn.ReLU(),
        torch.nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
    ]  # fmt: skip
    c_in = config.width
    for i, (blocks, temporal) in enumerate(zip(config.blocks, TEMPORAL, strict=True)):
        width = config.width * 2**i
        for number in range(blocks):
            first = number == 0
            stride = 2 if first and i else 1
            layers.append(
                TheirBottleneck(c_in, width, temporal=temporal, stride=stride, first=first)
            )
            c_in = EXPANSION * width
    return torch.nn.Sequential(*layers).eval()


def cavp(frames: int = 8) -> Stage:
    """CAVP's video tower."""
    config = CAVPConfig.diff_foley()
    theirs, ours = their_slow_only(config), initialise(partial(CAVPVideo, config), 0)
    pixels = np.random.default_rng(0).random((1, frames, 224, 224, 3), np.float32)
    given = torch.tensor(pixels.transpose(0, 4, 1, 2, 3).copy())
    return Stage(
        f"CAVP, {frames} frames",
        jax.jit(CAVPVideo.__call__),
        (ours, jnp.asarray(pixels)),
        lambda: theirs(given).mean(dim=(3, 4)),
        40 / frames,
    )


def mapper() -> Stage:
    """GPT-2 reads the video's tokens and generates eight LOA vectors."""
    config = MapperConfig.base()
    ours = initialise(partial(build_mapper, config), 0)
    theirs = GPT2Model(TheirGPT2Config()).eval()
    streams = {
        name: Stream(jnp.asarray(numbers(1, count, width)), jnp.linspace(0, 10, count)[None])
        for name, count, width in config.encoders
    }
    prefix = torch.tensor(numbers(1, sum(count for _, count, _ in config.encoders), 768))

    def generate() -> list[torch.Tensor]:
        found, embeds, cache = [], prefix, None
        for _ in range(config.loa.tokens):
            done = theirs(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
            embeds, cache = done.last_hidden_state[:, -1:], done.past_key_values
            found.append(embeds)
        return found

    compiled = jax.jit(lambda network, streams: network.generate(streams))
    return Stage("GPT-2, 136 + 8 tokens", compiled, (ours, streams), generate, 1)


def unet() -> Stage:
    """A step of AudioLDM2's UNet with guidance, which doubles the batch."""
    config = UNetConfig.audioldm2(8)
    theirs = AudioLDM2UNet2DConditionModel(
        in_channels=8, out_channels=8, block_out_channels=(128, 256, 384, 640), layers_per_block=2,
        norm_num_groups=32, attention_head_dim=8, transformer_layers_per_block=1,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 3),
        up_block_types=(*["CrossAttnUpBlock2D"] * 3, "UpBlock2D"),
        cross_attention_dim=[[None, 768, 1024]] * 4,
    ).eval()  # fmt: skip
    ours = initialise(partial(UNet, config), 0)
    x, loa, text = numbers(2, 256, 16, 8), numbers(2, 8, 768), numbers(2, 1, 1024)
    contexts = (jnp.asarray(loa), jnp.asarray(text))
    latents = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    given = {
        "encoder_hidden_states": torch.tensor(loa),
        "encoder_hidden_states_1": torch.tensor(text),
    }
    return Stage(
        "UNet, a step with guidance",
        jax.jit(lambda network, x, t, contexts: network(x, t, contexts)),
        (ours, jnp.asarray(x), jnp.full((2,), 500), contexts),
        lambda: theirs(latents, 500, **given).sample,
        STEPS,
    )


def vae() -> Stage:
    """The VAE's decoder."""
    channels = (128, 256, 512)
    theirs = AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=channels, latent_channels=8,
        layers_per_block=2, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, scaling_factor=1.0,
    ).eval()  # fmt: skip
    ours = initialise(partial(VAE, VAEConfig.audioldm2(1.0)), 0)
    x = numbers(1, 256, 16, 8)
    latents = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    return Stage(
        "VAE decoder",
        jax.jit(VAE.decode),
        (ours, jnp.asarray(x)),
        lambda: theirs.decode(latents).sample,
        1,
    )


def vocoder() -> Stage:
    """AudioLDM2's HiFi-GAN."""
    config = VocoderConfig.audioldm2()
    theirs = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=config.mels, upsample_initial_channel=config.channels,
            upsample_rates=list(config.rates), upsample_kernel_sizes=list(config.kernels),
            resblock_kernel_sizes=list(config.block_kernels),
            resblock_dilation_sizes=[list(dilations) for dilations in config.dilations],
            normalize_before=False,
        )
    ).eval()  # fmt: skip
    ours = initialise(partial(Vocoder, config), 0)
    mel = numbers(1, 1024, config.mels)
    return Stage(
        "HiFi-GAN",
        jax.jit(Vocoder.__call__),
        (ours, jnp.asarray(mel)),
        lambda: theirs(torch.tensor(mel)),
        1,
    )


STAGES = (vit, image_qformer, cavp, mapper, unet, vae, vocoder)


@dataclass(frozen=True)
class Measured:
    """Seconds of a stage on both sides, the medians over rounds, and its operations."""

    stage: Stage
    ours: float
    theirs: float
    operations: int

    @property
    def ratio(self) -> float:
        """Our time over theirs."""
        return self.ours / self.theirs


def measure(stage: Stage, rounds: int) -> Measured:
    """Time both sides by turns, after a run of each that compiles."""
    sides = (lambda: jax.block_until_ready(stage.ours(*stage.arguments)), stage.theirs)
    spent: tuple[list[float], ...] = ([], [])
    for number in range(1 + rounds):
        for run, times in zip(sides, spent, strict=True):
            start = time.perf_counter()
            run()
            if number:
                times.append(time.perf_counter() - start)
    operations = flops.count_flops(stage.ours, *stage.arguments)
    return Measured(stage, statistics.median(spent[0]), statistics.median(spent[1]), operations)


def lines(found: Sequence[Measured]) -> Iterator[str]:
    """Yield the table."""
    yield f"{'stage':34}  {'ours ms':>8}  {'torch ms':>8}  {'ratio':>5}  {'GFLOP/s':>7}"
    for one in found:
        speed = one.operations / one.ours / 1e9
        yield (
            f"{one.stage.name:34}  {one.ours * 1e3:8.1f}  {one.theirs * 1e3:8.1f}  "
            f"{one.ratio:5.2f}  {speed:7.0f}"
        )


def whole(found: Sequence[Measured]) -> str:
    """Say what a clip takes, each stage as often as it runs."""
    ours, theirs = (
        sum(getattr(one, side) * one.stage.times for one in found) for side in ("ours", "theirs")
    )
    operations = sum(one.operations * one.stage.times for one in found)
    return (
        f"a clip of 10.24 s, {STEPS} steps, from the stages: {ours:.1f} s, torch {theirs:.1f} s, "
        f"ratio {ours / theirs:.2f}, {operations / 1e12:.1f} TFLOP"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=[stage.__name__ for stage in STAGES])
    args = parser.parse_args()
    keep_freed_memory()
    print(
        f"{hardware(Path())}; jax {jax.__version__} on {jax.devices()[0].device_kind}, "
        f"torch {torch.__version__} on cpu with {torch.get_num_threads()} threads, float32"
    )
    with torch.no_grad():
        found = [
            measure(stage(), args.rounds)
            for stage in STAGES
            if args.only is None or stage.__name__ in args.only
        ]
    print("\n".join(lines(found)))
    if args.only is None:
        print(whole(found))


if __name__ == "__main__":
    main()

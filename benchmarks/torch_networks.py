"""PyTorch's side of each network, with the sizes of a config of ours and drawn weights.

They are from transformers (EVA's ViT, Q-Former, GPT-2, AudioMAE's ViT, HiFi-GAN) and diffusers
(UNet, VAE). CAVP's video tower, which no library has, is written out with torch's layers.
"""

import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.audioldm2 import AudioLDM2UNet2DConditionModel
from torch import nn
from transformers import (
    GPT2Config as TheirGPT2Config,
)
from transformers import (
    GPT2Model,
    InstructBlipQFormerConfig,
    InstructBlipVisionConfig,
    InstructBlipVisionModel,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    ViTConfig,
    ViTModel,
)
from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel

from mfm_jax.models.audiomae import AudioMAEConfig
from mfm_jax.models.cavp import EXPANSION, TEMPORAL, CAVPConfig
from mfm_jax.models.eva_vit import EvaViTConfig
from mfm_jax.models.gpt2 import GPT2Config
from mfm_jax.models.qformer import QFormerConfig
from mfm_jax.models.unet import UNetConfig
from mfm_jax.models.vae import VAEConfig
from mfm_jax.models.vocoder import VocoderConfig


def eva_vit(config: EvaViTConfig) -> nn.Module:
    """Return the vision transformer of InstructBLIP, which is EVA-CLIP-g's."""
    return InstructBlipVisionModel(
        InstructBlipVisionConfig(
            hidden_size=config.width, intermediate_size=config.mlp_width,
            num_hidden_layers=config.depth, num_attention_heads=config.heads,
            image_size=config.image, patch_size=config.patch,
        )
    )  # fmt: skip


def qformer(config: QFormerConfig) -> nn.Module:
    """Return a Q-Former; one that reads no text has a table of words that is not used."""
    return InstructBlipQFormerModel(
        InstructBlipQFormerConfig(
            vocab_size=config.words or 1, hidden_size=config.width,
            num_hidden_layers=config.depth, num_attention_heads=config.heads,
            intermediate_size=config.mlp_width, encoder_hidden_size=config.context_width,
            cross_attention_frequency=config.cross_every,
        )
    )  # fmt: skip


class Bottleneck(nn.Module):
    """A block of SlowOnly."""

    def __init__(self, c_in: int, width: int, *, temporal: bool, stride: int, first: bool) -> None:
        super().__init__()
        c_out = EXPANSION * width
        kernel = (3, 1, 1) if temporal else (1, 1, 1)
        self.path = nn.Sequential(
            *_conv3d(c_in, width, kernel), nn.ReLU(),
            *_conv3d(width, width, (1, 3, 3), stride), nn.ReLU(),
            *_conv3d(width, c_out, (1, 1, 1)),
        )  # fmt: skip
        shortcut = nn.Sequential(*_conv3d(c_in, c_out, (1, 1, 1), stride))
        self.shortcut = shortcut if first else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return features `[B, C, T, H, W]`."""
        return torch.relu(self.path(x) + self.shortcut(x))


def _conv3d(
    c_in: int, c_out: int, kernel: tuple[int, int, int], stride: int = 1
) -> list[nn.Module]:
    t, h, w = kernel
    pads, strides = (t // 2, h // 2, w // 2), (1, stride, stride)
    return [
        nn.Conv3d(c_in, c_out, kernel, strides, pads, bias=False),
        nn.BatchNorm3d(c_out),
    ]


class CAVPVideo(nn.Module):
    """The video tower of CAVP: SlowOnly and the projection to the shared space."""

    def __init__(self, config: CAVPConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            *_conv3d(3, config.width, (1, 7, 7), 2), nn.ReLU(),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        ]  # fmt: skip
        c_in = config.width
        for i, (blocks, temporal) in enumerate(zip(config.blocks, TEMPORAL, strict=True)):
            width = config.width * 2**i
            for number in range(blocks):
                first = number == 0
                stride = 2 if first and i else 1
                layers.append(
                    Bottleneck(c_in, width, temporal=temporal, stride=stride, first=first)
                )
                c_in = EXPANSION * width
        self.tower = nn.Sequential(*layers)
        self.project = nn.Linear(c_in, config.embed)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Return a vector of unit length for each frame of `[B, 3, T, H, W]`."""
        features = self.tower(frames).mean(dim=(3, 4)).transpose(1, 2)
        return nn.functional.normalize(self.project(features), dim=-1)


def gpt2(config: GPT2Config) -> nn.Module:
    """Return a GPT-2 without the scores of words."""
    return GPT2Model(
        TheirGPT2Config(
            n_embd=config.width, n_layer=config.depth, n_head=config.heads,
            n_positions=config.positions,
        )
    )  # fmt: skip


def audiomae(config: AudioMAEConfig) -> nn.Module:
    """Return a vision transformer over filter banks of one channel."""
    return ViTModel(
        ViTConfig(
            image_size=[config.frames, config.mels], patch_size=config.patch, num_channels=1,
            hidden_size=config.width, num_hidden_layers=config.depth,
            num_attention_heads=config.heads, intermediate_size=config.mlp_ratio * config.width,
        ),
        add_pooling_layer=False,
    )  # fmt: skip


def unet(config: UNetConfig) -> nn.Module:
    """Return AudioLDM2's UNet, whose first level has no transformer."""
    levels = len(config.channels)
    return AudioLDM2UNet2DConditionModel(
        in_channels=config.latent_channels, out_channels=config.latent_channels,
        block_out_channels=config.channels, layers_per_block=config.resnets,
        norm_num_groups=config.groups, attention_head_dim=config.heads,
        transformer_layers_per_block=config.depth,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * (levels - 1)),
        up_block_types=(*["CrossAttnUpBlock2D"] * (levels - 1), "UpBlock2D"),
        cross_attention_dim=[[None, *config.contexts]] * levels,
    )  # fmt: skip


def vae(config: VAEConfig) -> nn.Module:
    """Return AudioLDM2's VAE."""
    levels = len(config.channels)
    return AutoencoderKL(
        in_channels=1, out_channels=1, block_out_channels=config.channels,
        latent_channels=config.latent_channels, layers_per_block=config.resnets,
        norm_num_groups=config.groups, scaling_factor=config.scaling_factor,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
    )  # fmt: skip


def vocoder(config: VocoderConfig) -> nn.Module:
    """Return AudioLDM2's HiFi-GAN."""
    return SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=config.mels, upsample_initial_channel=config.channels,
            upsample_rates=list(config.rates), upsample_kernel_sizes=list(config.kernels),
            resblock_kernel_sizes=list(config.block_kernels),
            resblock_dilation_sizes=[list(dilations) for dilations in config.dilations],
            normalize_before=False,
        )
    )  # fmt: skip

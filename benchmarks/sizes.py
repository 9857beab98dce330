"""The sizes of the networks that are measured: the released ones, or small ones of the same kind.

The small ones have every part of the released ones, so that a benchmark can be tried in seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mfm_jax.bundle import Settings
from mfm_jax.mapper import MapperConfig
from mfm_jax.models.audiomae import LOA, AudioMAEConfig
from mfm_jax.models.eva_vit import EvaViTConfig
from mfm_jax.models.gpt2 import GPT2Config
from mfm_jax.models.text import EmptyTextConfig
from mfm_jax.plan.released import released

FPS = 25
"""Frames per second of the clips that are made."""


@dataclass(frozen=True)
class Sizes:
    """The config of each component, the settings of the bundle, and the pixels of a clip."""

    configs: Mapping[str, Any]
    settings: Settings
    width: int
    height: int


def released_sizes() -> Sizes:
    """Return the sizes of the released networks, and clips of 640 x 360."""
    return Sizes(released(), Settings(), 640, 360)


def small_sizes() -> Sizes:
    """Return networks with the parts of the released ones, for clips of 2.56 s and 96 x 64."""
    configs, width = dict(released()), 48
    cavp, timechat = configs["cavp"], configs["timechat"]
    image = replace(
        timechat.image_qformer, queries=4, width=width, context_width=64, depth=2, heads=4,
        mlp_width=96, words=len(timechat.vocabulary),
    )  # fmt: skip
    video = replace(
        timechat.video_qformer, queries=4, width=width, context_width=width, heads=4, mlp_width=96
    )
    configs["cavp"] = replace(cavp, width=8, blocks=(1, 1, 1, 1), embed=32, size=64)
    configs["timechat"] = replace(
        timechat, vit=EvaViTConfig(image=56, patch=14, width=64, depth=4, heads=4, mlp_width=128),
        image_qformer=image, video_qformer=video, frames=8, window=4, stride=4, llama_width=None,
    )  # fmt: skip
    configs["audiomae"] = replace(AudioMAEConfig.tiny(), width=64, depth=3)
    configs["mapper"] = MapperConfig(
        encoders=(("cavp", 10, 32), ("timechat", 8, width)), loa_width=64,
        loa=LOA(grid=(16, 8), pool=(8, 8)),
        gpt2=GPT2Config(width=64, depth=2, heads=4, positions=64),
    )  # fmt: skip
    configs["unet"] = replace(
        configs["unet"], channels=(32, 64, 64, 96), contexts=(64, width), heads=4
    )
    configs["vae"] = replace(configs["vae"], channels=(32, 32, 64))
    configs["vocoder"] = replace(configs["vocoder"], channels=64)
    configs["text"] = EmptyTextConfig(width=width)
    return Sizes(configs, Settings(frames=256, overlap=0.32), 96, 64)


SIZES = {"released": released_sizes, "small": small_sizes}

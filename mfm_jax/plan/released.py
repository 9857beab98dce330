"""A bundle with the sizes of the released networks and without weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mfm_jax.bundle import write_sizes
from mfm_jax.mapper import MapperConfig
from mfm_jax.models.audiomae import AudioMAEConfig
from mfm_jax.models.cavp import CAVPConfig
from mfm_jax.models.gpt2 import GPT2Config
from mfm_jax.models.synchformer import SynchformerConfig
from mfm_jax.models.text import EmptyTextConfig
from mfm_jax.models.timechat import TimeChatConfig
from mfm_jax.models.unet import UNetConfig
from mfm_jax.models.vae import VAEConfig
from mfm_jax.models.vocoder import VocoderConfig
from mfm_jax.text.wordpiece import tiny_timestamp_vocabulary


def released() -> Mapping[str, Any]:
    """Return the config of each component; vocabulary and latent scale are stand-ins."""
    return {
        "cavp": CAVPConfig.diff_foley(),
        "timechat": TimeChatConfig.timechat_7b(tiny_timestamp_vocabulary()),
        "audiomae": AudioMAEConfig.base(),
        "mapper": MapperConfig.base(),
        "unet": UNetConfig.audioldm2(8),
        "vae": VAEConfig.audioldm2(1.0),
        "vocoder": VocoderConfig.audioldm2(),
        "text": EmptyTextConfig(),
        "gpt2": GPT2Config.small(),
        "synchformer": SynchformerConfig.released(),
    }


def write_released(folder: Path) -> Path:
    """Write the bundle into `folder`. It opens like any other, but there is nothing to load."""
    write_sizes(folder, released())
    return folder

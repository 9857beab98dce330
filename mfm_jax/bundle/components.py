"""The components that a bundle may have, with their configs and constructors."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from flax import nnx

from mfm_jax import __version__
from mfm_jax.diffusion import Schedule
from mfm_jax.mapper import MapperConfig, build_mapper
from mfm_jax.models.adapters import AdapterConfig, build_adapter
from mfm_jax.models.audiomae import AudioMAE, AudioMAEConfig
from mfm_jax.models.cavp import CAVPAudio, CAVPConfig, CAVPVideo
from mfm_jax.models.cnn14 import Cnn14Config, Cnn14Tagger
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.models.listener import Listener, ListenerConfig
from mfm_jax.models.synchformer import Synchformer, SynchformerConfig
from mfm_jax.models.t5 import T5Config, T5Encoder
from mfm_jax.models.text import EmptyText, EmptyTextConfig
from mfm_jax.models.timechat import TimeChat, TimeChatConfig
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.models.vae import VAE, VAEConfig
from mfm_jax.models.vocoder import Vocoder, VocoderConfig


class ComponentKind(NamedTuple):
    """The config type and the constructor of a component."""

    config: type
    build: Callable[..., nnx.Module]


COMPONENTS: dict[str, ComponentKind] = {
    "cavp": ComponentKind(CAVPConfig, CAVPVideo),
    "timechat": ComponentKind(TimeChatConfig, TimeChat),
    "audiomae": ComponentKind(AudioMAEConfig, AudioMAE),
    "mapper": ComponentKind(MapperConfig, build_mapper),
    "unet": ComponentKind(UNetConfig, UNet),
    "adapter": ComponentKind(AdapterConfig, build_adapter),  # of the UNet, for the right moment
    "vae": ComponentKind(VAEConfig, VAE),
    "vocoder": ComponentKind(VocoderConfig, Vocoder),
    "text": ComponentKind(EmptyTextConfig, EmptyText),
    "t5": ComponentKind(T5Config, T5Encoder),
    "gpt2": ComponentKind(GPT2Config, GPT2),  # initial weights of a mapper
    "sequence": ComponentKind(MapperConfig, build_mapper),  # AudioLDM2's own, from text to LOA
    "cavp_audio": ComponentKind(CAVPConfig, CAVPAudio),  # for metrics, beside the same CAVP's video
    "cnn14": ComponentKind(Cnn14Config, Cnn14Tagger),  # for metrics
    "synchformer": ComponentKind(SynchformerConfig, Synchformer),  # for DeSync
    "listener": ComponentKind(ListenerConfig, Listener),  # for the scores of Foley clips
}


@dataclass(frozen=True)
class Settings:
    """Settings that the components of a bundle share, and the defaults of sampling."""

    schedule: Schedule = field(default_factory=Schedule)  # of the UNet's training
    frames: int = 1024  # mel frames of 10 ms in a window
    overlap: float = 1.28  # seconds shared by neighbouring windows of a long video
    sampler: str = "dpm++"  # "ddim" or "dpm++"
    steps: int = 25  # of the sampler
    guidance: float = 3.5  # scale of classifier-free guidance; 1 is none

    @classmethod
    def tiny(cls) -> "Settings":
        """Settings of the shipped miniature."""
        return cls(
            schedule=Schedule(prediction="v"), frames=256, overlap=0.32, steps=8, guidance=4.0
        )

    @property
    def seconds(self) -> float:
        """Length of a window in seconds."""
        return self.frames / 100


@dataclass(frozen=True)
class Source:
    """The origin of a component's weights."""

    made_by: str  # the command that trained or converted them
    licence: str  # of the weights, an SPDX expression (`mfm_jax.bundle.licences`)
    files: tuple[tuple[str, str], ...] = ()  # (name, SHA-256) of the files converted
    version: str = __version__  # of this project
    # (component, its checksum) of the networks that it was trained with
    trained_with: tuple[tuple[str, str], ...] = ()
    data: str = ""  # what it was trained on, in a word

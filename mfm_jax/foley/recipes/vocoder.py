"""A vocoder that starts as a bank of oscillators."""

from dataclasses import dataclass, field
from typing import Any

from mfm_jax.foley.oscillators import become_oscillators, check_stages
from mfm_jax.models.vocoder import Vocoder, VocoderConfig
from mfm_jax.train.recipes.vocoder import VocoderRecipe


@dataclass(frozen=True)
class OscillatorVocoderRecipe(VocoderRecipe):
    """`VocoderRecipe` that starts from oscillators; random weights need many more steps."""

    network: VocoderConfig = field(default_factory=VocoderConfig.tiny)

    def __post_init__(self) -> None:
        check_stages(self.network)

    def warm_start(self, module: Vocoder, dataset: Any) -> Vocoder:
        """Write the oscillators into the weights, then match the loudness of the clips."""
        become_oscillators(module)
        return super().warm_start(module, dataset)

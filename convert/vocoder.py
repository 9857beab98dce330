"""Convert AudioLDM 2's HiFi-GAN, as diffusers saves it in `vocoder/`."""

from collections.abc import Mapping

from convert.configs import builtin, integer, integers, required
from convert.table import Computed, ConversionError, Row, Table
from mfm_jax.media.audio import RATE
from mfm_jax.models.vocoder import VocoderConfig

FILE = "vocoder config"
READ = (
    "model_in_dim",
    "resblock_dilation_sizes",
    "resblock_kernel_sizes",
    "upsample_initial_channel",
    "upsample_kernel_sizes",
    "upsample_rates",
)
# The library's default is True.
REQUIRED = {"normalize_before": False}
# A file may omit these, or have these values.
BUILT_IN = {"leaky_relu_slope": 0.1, "sampling_rate": RATE}


def config(theirs: Mapping) -> VocoderConfig:
    """Return the configuration that `vocoder/config.json` describes.

    Raises:
        ConversionError: a setting is missing, or is one that the network does not have.
    """
    required(theirs, (*READ, *REQUIRED), FILE)
    builtin(theirs, REQUIRED | BUILT_IN, FILE)
    rates, kernels = (integers(theirs, f"upsample_{n}", FILE) for n in ("rates", "kernel_sizes"))
    block_kernels = integers(theirs, "resblock_kernel_sizes", FILE)
    for name, of in (
        ("upsample_kernel_sizes", rates),
        ("resblock_dilation_sizes", block_kernels),
    ):
        if not isinstance(theirs[name], list) or len(theirs[name]) != len(of):
            raise ConversionError(f"{FILE}: {name} must have {len(of)} entries, is {theirs[name]}")
    return VocoderConfig(
        channels=integer(theirs, "upsample_initial_channel", FILE),
        mels=integer(theirs, "model_in_dim", FILE),
        rates=rates,
        kernels=kernels,
        block_kernels=block_kernels,
        dilations=tuple(
            integers({"resblock_dilation_sizes": each}, "resblock_dilation_sizes", FILE)
            for each in theirs["resblock_dilation_sizes"]
        ),
    )


def their_config(ours: VocoderConfig) -> dict:
    """Return the `config.json` of `transformers.SpeechT5HifiGan`."""
    return {
        **REQUIRED,
        **BUILT_IN,
        "architectures": ["SpeechT5HifiGan"],
        "model_in_dim": ours.mels,
        "model_type": "speecht5_hifigan",
        "resblock_dilation_sizes": [list(dilations) for dilations in ours.dilations],
        "resblock_kernel_sizes": list(ours.block_kernels),
        "upsample_initial_channel": ours.channels,
        "upsample_kernel_sizes": list(ours.kernels),
        "upsample_rates": list(ours.rates),
    }


CONVS = (
    ("conv_pre", "conv_in", "o i k -> k i o"),
    ("upsampler.*", "upsamplers.*", "i o k -> k o i"),
    ("resblocks.*.convs1.*", "blocks.*.dilated.*", "o i k -> k i o"),
    ("resblocks.*.convs2.*", "blocks.*.plain.*", "o i k -> k i o"),
    ("conv_post", "conv_out", "o i k -> k i o"),
)
BIASES = tuple(Row(f"{theirs}.bias", f"{ours}.bias") for theirs, ours, _ in CONVS)


def table(config: VocoderConfig) -> Table:
    """Return the table of the network, with its weight norm folded, as released."""
    weights = (Row(f"{theirs}.weight", f"{ours}.kernel", move) for theirs, ours, move in CONVS)
    return Table((*weights, *BIASES, *_buffers(config)))


def _buffers(config: VocoderConfig) -> tuple[Computed, Computed]:
    """Return the buffers for normalising the mel, which AudioLDM 2's vocoder does not use."""
    return (
        Computed("mean", "conv_in.bias", 0, (config.mels,), "float32"),
        Computed("scale", "conv_in.bias", 1, (config.mels,), "float32"),
    )

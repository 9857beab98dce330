"""AudioLDM 2's HiFi-GAN as diffusers saves it (`vocoder/`), its weight norm folded or not."""

from convert.table import Computed, Row, Table, WeightNorm
from mfm_jax.models.vocoder import VocoderConfig

CONVS = (
    ("conv_pre", "conv_in", "o i k -> k i o"),
    ("upsampler.*", "upsamplers.*", "i o k -> k o i"),
    ("resblocks.*.convs1.*", "blocks.*.dilated.*", "o i k -> k i o"),
    ("resblocks.*.convs2.*", "blocks.*.plain.*", "o i k -> k i o"),
    ("conv_post", "conv_out", "o i k -> k i o"),
)
BIASES = tuple(Row(f"{theirs}.bias", f"{ours}.bias") for theirs, ours, _ in CONVS)


def table(config: VocoderConfig) -> Table:
    """The network with its weight norm folded, as released."""
    weights = (Row(f"{theirs}.weight", f"{ours}.kernel", move) for theirs, ours, move in CONVS)
    return Table((*weights, *BIASES, *_buffers(config)))


def weight_norm_table(config: VocoderConfig) -> Table:
    """The same network saved with the two weights of each weight norm instead of their product."""
    weights = (
        WeightNorm(f"{theirs}.weight_g", f"{theirs}.weight_v", f"{ours}.kernel", move)
        for theirs, ours, move in CONVS
    )
    return Table((*weights, *BIASES, *_buffers(config)))


def _buffers(config: VocoderConfig) -> tuple[Computed, Computed]:
    """Used only by models that normalise the mel first, which AudioLDM 2's does not."""
    return (
        Computed("mean", "conv_in.bias", 0, (config.mels,), "float32"),
        Computed("scale", "conv_in.bias", 1, (config.mels,), "float32"),
    )

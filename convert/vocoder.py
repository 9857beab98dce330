"""AudioLDM 2's HiFi-GAN as diffusers saves it (`vocoder/`), its weight norm folded or not."""

from convert.table import Computed, Row, Table, WeightNorm

CONVS = (
    ("conv_pre", "conv_in", "o i k -> k i o"),
    ("upsampler.*", "upsamplers.*", "i o k -> k o i"),
    ("resblocks.*.convs1.*", "blocks.*.dilated.*", "o i k -> k i o"),
    ("resblocks.*.convs2.*", "blocks.*.plain.*", "o i k -> k i o"),
    ("conv_post", "conv_out", "o i k -> k i o"),
)
BIASES = tuple(Row(f"{theirs}.bias", f"{ours}.bias") for theirs, ours, _ in CONVS)
# Used only by models that normalise the mel first, which AudioLDM 2's does not.
BUFFERS = Computed("mean", 0.0), Computed("scale", 1.0)

TABLE = Table(
    rows=(
        *(Row(f"{theirs}.weight", f"{ours}.kernel", move) for theirs, ours, move in CONVS),
        *BIASES,
        *BUFFERS,
    )
)
# The same network saved with the two weights of each weight norm instead of their product.
WEIGHT_NORM_TABLE = Table(
    rows=(
        *(
            WeightNorm(f"{theirs}.weight_g", f"{theirs}.weight_v", f"{ours}.kernel", move)
            for theirs, ours, move in CONVS
        ),
        *BIASES,
        *BUFFERS,
    )
)

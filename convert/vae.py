"""AudioLDM 2's VAE, as diffusers saves it (`vae/`)."""

from convert.table import Row, Table

CONV = "o i h w -> h w i o"


def _named(theirs: str, ours: str, move: str) -> tuple[Row, Row]:
    """A convolution or a linear map."""
    return (
        Row(f"{theirs}.weight", f"{ours}.kernel", move),
        Row(f"{theirs}.bias", f"{ours}.bias"),
    )


def _norm(theirs: str, ours: str) -> tuple[Row, Row]:
    return Row(f"{theirs}.weight", f"{ours}.scale"), Row(f"{theirs}.bias", f"{ours}.bias")


def _half(half: str, levels: tuple[str, str], resize: tuple[str, str]) -> tuple[Row, ...]:
    """The encoder or the decoder: they differ in the names of their levels."""
    level = f"{half}.{levels[0]}.*", f"{half}.{levels[1]}.*"
    middle = f"{half}.mid_block", f"{half}.middle"
    attn = f"{half}.mid_block.attentions.0", f"{half}.middle.attn"
    return (
        *_named(f"{half}.conv_in", f"{half}.conv_in", CONV),
        *_norm(f"{level[0]}.resnets.*.norm*", f"{level[1]}.resnets.*.norm*"),
        *_named(f"{level[0]}.resnets.*.conv*", f"{level[1]}.resnets.*.conv*", CONV),
        *_named(
            f"{level[0]}.resnets.*.conv_shortcut",
            f"{level[1]}.resnets.*.shortcut",
            "o i 1 1 -> i o",
        ),
        *_named(f"{level[0]}.{resize[0]}", f"{level[1]}.{resize[1]}", CONV),
        *_norm(f"{middle[0]}.resnets.*.norm*", f"{middle[1]}.resnets.*.norm*"),
        *_named(f"{middle[0]}.resnets.*.conv*", f"{middle[1]}.resnets.*.conv*", CONV),
        *_norm(f"{attn[0]}.group_norm", f"{middle[1]}.norm"),
        *_named(f"{attn[0]}.to_q", f"{attn[1]}.q", "o i -> i o"),
        *_named(f"{attn[0]}.to_k", f"{attn[1]}.k", "o i -> i o"),
        *_named(f"{attn[0]}.to_v", f"{attn[1]}.v", "o i -> i o"),
        *_named(f"{attn[0]}.to_out.0", f"{attn[1]}.o", "o i -> i o"),
        *_norm(f"{half}.conv_norm_out", f"{half}.norm_out"),
        *_named(f"{half}.conv_out", f"{half}.conv_out", CONV),
    )


TABLE = Table(
    rows=(
        *_half("encoder", ("down_blocks", "down"), ("downsamplers.0.conv", "halve")),
        *_named("quant_conv", "quant", "o i 1 1 -> i o"),
        *_named("post_quant_conv", "post_quant", "o i 1 1 -> i o"),
        *_half("decoder", ("up_blocks", "up"), ("upsamplers.0.conv", "double")),
    )
)

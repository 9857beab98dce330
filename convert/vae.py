"""AudioLDM 2's VAE, as diffusers saves it (`vae/`)."""

from convert.rows import CONV, DENSE, POINTWISE, named, norm
from convert.table import Row, Table


def _half(half: str, levels: tuple[str, str], resize: tuple[str, str]) -> tuple[Row, ...]:
    """The encoder or the decoder: they differ in the names of their levels."""
    level = f"{half}.{levels[0]}.*", f"{half}.{levels[1]}.*"
    middle = f"{half}.mid_block", f"{half}.middle"
    attn = f"{half}.mid_block.attentions.0", f"{half}.middle.attn"
    return (
        *named(f"{half}.conv_in", f"{half}.conv_in", CONV),
        *norm(f"{level[0]}.resnets.*.norm*", f"{level[1]}.resnets.*.norm*"),
        *named(f"{level[0]}.resnets.*.conv*", f"{level[1]}.resnets.*.conv*", CONV),
        *named(
            f"{level[0]}.resnets.*.conv_shortcut",
            f"{level[1]}.resnets.*.shortcut",
            POINTWISE,
        ),
        *named(f"{level[0]}.{resize[0]}", f"{level[1]}.{resize[1]}", CONV),
        *norm(f"{middle[0]}.resnets.*.norm*", f"{middle[1]}.resnets.*.norm*"),
        *named(f"{middle[0]}.resnets.*.conv*", f"{middle[1]}.resnets.*.conv*", CONV),
        *norm(f"{attn[0]}.group_norm", f"{middle[1]}.norm"),
        *named(f"{attn[0]}.to_q", f"{attn[1]}.q", DENSE),
        *named(f"{attn[0]}.to_k", f"{attn[1]}.k", DENSE),
        *named(f"{attn[0]}.to_v", f"{attn[1]}.v", DENSE),
        *named(f"{attn[0]}.to_out.0", f"{attn[1]}.o", DENSE),
        *norm(f"{half}.conv_norm_out", f"{half}.norm_out"),
        *named(f"{half}.conv_out", f"{half}.conv_out", CONV),
    )


TABLE = Table(
    rows=(
        *_half("encoder", ("down_blocks", "down"), ("downsamplers.0.conv", "halve")),
        *named("quant_conv", "quant", POINTWISE),
        *named("post_quant_conv", "post_quant", POINTWISE),
        *_half("decoder", ("up_blocks", "up"), ("upsamplers.0.conv", "double")),
    )
)

"""T5's encoder, as in FLAN-T5 and AudioLDM2's `text_encoder_2`.

safetensors files leave tied weights out, so `encoder.embed_tokens.weight` may be absent.
"""

from convert.rows import DENSE
from convert.table import Row, Table, Tied

_SELF = "encoder.block.*.layer.0."
_FEED = "encoder.block.*.layer.1."

TABLE = Table(
    (
        Row("shared.weight", "embed.embedding"),
        Tied("encoder.embed_tokens.weight", "shared.weight"),
        Row(
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "position_bias",
        ),
        Row(f"{_SELF}layer_norm.weight", "blocks.*.norm1.scale"),
        *(
            Row(f"{_SELF}SelfAttention.{n}.weight", f"blocks.*.attn.{n}.kernel", DENSE)
            for n in "qkvo"
        ),
        Row(f"{_FEED}layer_norm.weight", "blocks.*.norm2.scale"),
        Row(f"{_FEED}DenseReluDense.wi_0.weight", "blocks.*.gate.kernel", DENSE),
        Row(f"{_FEED}DenseReluDense.wi_1.weight", "blocks.*.up.kernel", DENSE),
        Row(f"{_FEED}DenseReluDense.wo.weight", "blocks.*.down.kernel", DENSE),
        Row("encoder.final_layer_norm.weight", "norm.scale"),
    )
)

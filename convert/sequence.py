"""AudioLDM2's GPT-2 with its input layers: a `GPT2Mapper` with `wrapped` fusion and no head.

Source: the `sequence_gen` part of AudioLDM2's own checkpoint.
"""

from convert.gpt2 import UNUSED_WORDS, rows
from convert.rows import DENSE, named
from convert.table import Ignore, Row, Table


def table(encoders: tuple[str, ...]) -> Table:
    """The table for the conditions `encoders`, in their order."""
    linears = [
        row
        for i, name in enumerate(encoders)
        for row in named(f"input_sequence_embed_linear.{i}", f"fusion.proj.{name}", DENSE)
    ]
    return Table(
        (
            Row("start_of_sequence_tokens.weight", "fusion.start"),
            Row("end_of_sequence_tokens.weight", "fusion.end"),
            *linears,
            *rows("model.", "gpt2."),
        ),
        ignore=(Ignore("model.wte.weight", UNUSED_WORDS),),
    )

"""GPT-2: Hugging Face's `gpt2` and AudioLDM2's `language_model`. Kernels are stored `[in, out]`."""

from convert.rows import named, norm
from convert.table import Ignore, Row, Table

_QKV = ("attn.q", "attn.k", "attn.v")


def rows(theirs: str = "", ours: str = "") -> tuple[Row, ...]:
    """The rows of one GPT-2 whose names start with `theirs` there and `ours` here."""
    h, blocks = f"{theirs}h.*.", f"{ours}blocks.*."
    return (
        Row(f"{theirs}wpe.weight", f"{ours}wpe.embedding"),
        *norm(f"{h}ln_1", f"{blocks}norm1"),
        Row(
            f"{h}attn.c_attn.weight",
            tuple(f"{blocks}{n}.kernel" for n in _QKV),
            "i (s o) -> s i o",
        ),
        Row(f"{h}attn.c_attn.bias", tuple(f"{blocks}{n}.bias" for n in _QKV), "(s o) -> s o"),
        *named(f"{h}attn.c_proj", f"{blocks}attn.o"),
        *norm(f"{h}ln_2", f"{blocks}norm2"),
        *named(f"{h}mlp.c_fc", f"{blocks}mlp.up"),
        *named(f"{h}mlp.c_proj", f"{blocks}mlp.down"),
        *norm(f"{theirs}ln_f", f"{ours}norm"),
    )


UNUSED_WORDS = "the word table: GPT-2 reads vectors here, never words"

TABLE = Table(rows(), ignore=(Ignore("wte.weight", UNUSED_WORDS),))

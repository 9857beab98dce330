"""GPT-2: Hugging Face's `gpt2` and AudioLDM2's `language_model`. Kernels are stored `[in, out]`."""

from convert.table import Ignore, Row, Table

_QKV = ("attn.q", "attn.k", "attn.v")


def rows(theirs: str = "", ours: str = "") -> tuple[Row, ...]:
    """The rows of one GPT-2 whose names start with `theirs` there and `ours` here."""
    h, blocks = f"{theirs}h.*.", f"{ours}blocks.*."
    return (
        Row(f"{theirs}wpe.weight", f"{ours}wpe.embedding"),
        Row(f"{h}ln_1.weight", f"{blocks}norm1.scale"),
        Row(f"{h}ln_1.bias", f"{blocks}norm1.bias"),
        Row(
            f"{h}attn.c_attn.weight",
            tuple(f"{blocks}{n}.kernel" for n in _QKV),
            "i (s o) -> s i o",
        ),
        Row(f"{h}attn.c_attn.bias", tuple(f"{blocks}{n}.bias" for n in _QKV), "(s o) -> s o"),
        Row(f"{h}attn.c_proj.weight", f"{blocks}attn.o.kernel"),
        Row(f"{h}attn.c_proj.bias", f"{blocks}attn.o.bias"),
        Row(f"{h}ln_2.weight", f"{blocks}norm2.scale"),
        Row(f"{h}ln_2.bias", f"{blocks}norm2.bias"),
        Row(f"{h}mlp.c_fc.weight", f"{blocks}mlp.up.kernel"),
        Row(f"{h}mlp.c_fc.bias", f"{blocks}mlp.up.bias"),
        Row(f"{h}mlp.c_proj.weight", f"{blocks}mlp.down.kernel"),
        Row(f"{h}mlp.c_proj.bias", f"{blocks}mlp.down.bias"),
        Row(f"{theirs}ln_f.weight", f"{ours}norm.scale"),
        Row(f"{theirs}ln_f.bias", f"{ours}norm.bias"),
    )


UNUSED_WORDS = "the word table: GPT-2 reads vectors here, never words"

TABLE = Table(rows(), ignore=(Ignore("wte.weight", UNUSED_WORDS),))

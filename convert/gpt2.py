"""GPT-2: Hugging Face's `gpt2` and AudioLDM2's `language_model`. Kernels are stored `[in, out]`."""

from collections.abc import Mapping
from pathlib import Path

from convert import licences
from convert.configs import builtin, count, divides, number, required
from convert.incoming import Incoming, without_prefix
from convert.model import CONFIG, WEIGHTS, Model, Read, Request
from convert.outgoing import Outgoing, kept
from convert.rows import named, norm
from convert.source import open_weights, read_json
from convert.table import Computed, Ignore, Row, Table
from convert.tensors import Tensor
from mfm_jax.bundle import Bundle
from mfm_jax.models.gpt2 import GPT2Config

WHAT = "gpt2 config"
READ = ("layer_norm_epsilon", "n_embd", "n_head", "n_layer", "n_positions")
# What the network has built in. A file may leave a setting out, or say just this.
BUILT_IN = {
    "activation_function": "gelu_new",
    "add_cross_attention": False,
    "model_type": "gpt2",
    "reorder_and_upcast_attn": False,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
}
END = 50256
"""The token that ends a text, the last of GPT-2's own words."""


def config(theirs: Mapping) -> GPT2Config:
    """The configuration that a `config.json` describes.

    Raises:
        ConversionError: a setting is missing, or is one that the network does not have.
    """
    builtin(theirs, BUILT_IN, WHAT)
    required(theirs, READ, WHAT)
    width, heads = count(theirs, "n_embd", WHAT), count(theirs, "n_head", WHAT)
    divides(width, "n_embd", heads, "n_head", WHAT)
    if theirs.get("n_inner") is not None:
        builtin(theirs, {"n_inner": 4 * width}, WHAT)
    return GPT2Config(
        width=width,
        depth=count(theirs, "n_layer", WHAT),
        heads=heads,
        positions=count(theirs, "n_positions", WHAT),
        epsilon=number(theirs, "layer_norm_epsilon", WHAT),
    )


def their_config(ours: GPT2Config, vocabulary: int) -> dict:
    """The `config.json` of `transformers.GPT2Model` with a word table of `vocabulary` rows.

    A table too short for GPT-2's own words has no token that starts or ends a text: transformers
    warns of one that lies outside.
    """
    end = END if vocabulary > END else None
    return {
        **BUILT_IN,
        "architectures": ["GPT2Model"],
        "bos_token_id": end,
        "eos_token_id": end,
        "layer_norm_epsilon": ours.epsilon,
        "n_embd": ours.width,
        "n_head": ours.heads,
        "n_inner": None,
        "n_layer": ours.depth,
        "n_positions": ours.positions,
        "vocab_size": vocabulary,
    }


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


def words(theirs: str, ours: str, width: int) -> Computed:
    """The word table, which is never used: GPT-2 reads vectors here. We write one of one word."""
    return Computed(f"{theirs}wte.weight", f"{ours}norm.scale", 0, (1, width), "float32")


def table(config: GPT2Config) -> Table:
    """The network alone. Older files hold causal masks, and those with a head repeat the words."""
    return Table(
        (*rows(), words("", "", config.width)),
        ignore=(
            Ignore("h.*.attn.bias", "the causal mask"),
            Ignore("h.*.attn.masked_bias", "what masked scores were set to"),
            Ignore("lm_head.weight", "repeats the word table", foreign=True),
        ),
    )


def incoming(folder: Path, request: Request) -> Incoming:
    """The network that a folder holds."""
    said = read_json(folder, CONFIG)
    sizes = config(said)
    # Only AudioLDM2's language model, which was trained on, says how many tokens it makes.
    released = licences.AUDIOLDM2 if "max_new_tokens" in said else licences.GPT2
    licence = licences.stated(request.licence, said, released)
    weights = open_weights(folder, excuse=request.excuse)
    files = (folder / CONFIG, *weights.files)
    tensors = without_head(weights.tensors)
    return Incoming("gpt2", sizes, table(sizes), tensors, files, licence)


def without_head(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A model with a head keeps the network itself under a name of its own."""
    inside = without_prefix(tensors, "transformer.")
    return inside or tensors


def word_count(bundle: Bundle, component: str, key: str) -> int:
    """Rows of the word table that is written as `key`: those that came in, or one."""
    came_in, _ = kept(bundle.store(component))
    return came_in[key].shape[0] if key in came_in else 1


def write(bundle: Bundle) -> list[Outgoing]:
    """A folder that `transformers.GPT2Model` loads."""
    ours = bundle.config("gpt2")
    described = their_config(ours, word_count(bundle, "gpt2", "wte.weight"))
    return [Outgoing("gpt2", table(ours), {CONFIG: described}, {"": WEIGHTS})]


MODEL = Model(
    "GPT-2, which a mapper starts from: gpt2, or AudioLDM2's language_model",
    lambda request: Read([incoming(request.folder(), request)]),
    write,
)

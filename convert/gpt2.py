"""Convert GPT-2: `gpt2` of Hugging Face and AudioLDM2's `language_model`.

Their kernels are stored as `[in, out]`, as ours.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from convert import licences
from convert.configs import builtin, divides, integer, number, required
from convert.incoming import Incoming, without_prefix
from convert.model import CONFIG, WEIGHTS, Model, Read, Request
from convert.outgoing import Outgoing, kept
from convert.rows import named, norm
from convert.source import Weights, read_json
from convert.table import Computed, Ignore, Row, Shape, Table
from mfm_jax.bundle import Bundle
from mfm_jax.models.gpt2 import GPT2Config

FILE = "gpt2 config"
READ = ("layer_norm_epsilon", "n_embd", "n_head", "n_layer", "n_positions")
# Built into our network: a file may omit a setting, or have this value.
BUILT_IN = {
    "activation_function": "gelu_new",
    "add_cross_attention": False,
    "model_type": "gpt2",
    "reorder_and_upcast_attn": False,
    "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True,
}
TRUNK = "transformer."
"""The prefix of the network in a model with a head."""
END = 50256
"""The end-of-text token, the last of GPT-2's own vocabulary."""


def config(theirs: Mapping) -> GPT2Config:
    """Return the configuration that a `config.json` describes.

    Raises:
        ConversionError: a setting is missing, or is one that the network does not have.
    """
    builtin(theirs, BUILT_IN, FILE)
    required(theirs, READ, FILE)
    width, heads = integer(theirs, "n_embd", FILE), integer(theirs, "n_head", FILE)
    divides(width, "n_embd", heads, "n_head", FILE)
    if theirs.get("n_inner") is not None:
        builtin(theirs, {"n_inner": 4 * width}, FILE)
    return GPT2Config(
        width=width,
        depth=integer(theirs, "n_layer", FILE),
        heads=heads,
        positions=integer(theirs, "n_positions", FILE),
        epsilon=number(theirs, "layer_norm_epsilon", FILE),
    )


def their_config(ours: GPT2Config, vocabulary: int) -> dict:
    """Return the `config.json` of `transformers.GPT2Model` with `vocabulary` word embeddings.

    With fewer than GPT-2's own, there is no token to start or end a text, as transformers warns of
    one outside the vocabulary.
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
    """Return the rows of a GPT-2 whose names start with `theirs` there and `ours` here."""
    h, blocks = f"{theirs}h.*.", f"{ours}blocks.*."
    return (
        Row(f"{theirs}wpe.weight", f"{ours}wpe.embedding"),
        *norm(f"{h}ln_1", f"{blocks}attn_norm"),
        Row(
            f"{h}attn.c_attn.weight",
            tuple(f"{blocks}{n}.kernel" for n in _QKV),
            "i (s o) -> s i o",
        ),
        Row(f"{h}attn.c_attn.bias", tuple(f"{blocks}{n}.bias" for n in _QKV), "(s o) -> s o"),
        *named(f"{h}attn.c_proj", f"{blocks}attn.o"),
        *norm(f"{h}ln_2", f"{blocks}mlp_norm"),
        *named(f"{h}mlp.c_fc", f"{blocks}mlp.up"),
        *named(f"{h}mlp.c_proj", f"{blocks}mlp.down"),
        *norm(f"{theirs}ln_f", f"{ours}norm"),
    )


def words(theirs: str, ours: str, width: int) -> Computed:
    """Return the row of the word embeddings, which we do not use; we write a table of one word."""
    return Computed(f"{theirs}wte.weight", f"{ours}norm.scale", 0, (1, width), "float32")


def _causal(key: str, shape: Shape) -> np.ndarray:
    """Return the mask of as many positions as `shape` has; of one if it is no shape of a mask."""
    size = shape[-1] if shape == (1, 1, *2 * shape[-1:]) else 1
    return np.tri(size, dtype=bool)[None, None]


def table(config: GPT2Config) -> Table:
    """Return the table of the network alone.

    Older files hold causal masks, and those with a head repeat the word embeddings.
    """
    return Table(
        (*rows(), words("", "", config.width)),
        ignore=(
            Ignore("h.*.attn.bias", "the causal mask", value=_causal),
            Ignore("h.*.attn.masked_bias", "the value of masked scores"),
            Ignore("lm_head.weight", "repeats the word embeddings", foreign=True),
        ),
    )


def incoming(folder: Path, request: Request) -> Incoming:
    """Read the network from a folder."""
    said = read_json(folder, CONFIG)
    sizes = config(said)
    # Only AudioLDM2's language model, a fine-tuned GPT-2, has this setting.
    released = licences.AUDIOLDM2 if "max_new_tokens" in said else licences.GPT2
    licence = licences.stated(request.licence, said, released)
    weights = open_trunk(folder, request)
    files = (folder / CONFIG, *weights.files)
    return Incoming("gpt2", sizes, table(sizes), weights.tensors, files, licence)


def open_trunk(folder: Path, request: Request) -> Weights:
    """Open the tensors of the network alone; a model with a head has them under a prefix."""
    known = table(GPT2Config.small()).knows  # of any size
    weights = request.open(folder, lambda key: known(key.removeprefix(TRUNK)))
    inside = without_prefix(weights.tensors, TRUNK)
    return replace(weights, tensors=inside or weights.tensors)


def word_count(bundle: Bundle, component: str, key: str) -> int:
    """Return the number of word embeddings to write as `key`: those that came in, or one."""
    came_in, _ = kept(bundle.store(component))
    return next(iter(came_in[key].shape), 1) if key in came_in else 1


def write(bundle: Bundle) -> list[Outgoing]:
    """Return the folder that `transformers.GPT2Model` loads."""
    ours = bundle.config("gpt2")
    described = their_config(ours, word_count(bundle, "gpt2", "wte.weight"))
    return [Outgoing("gpt2", table(ours), {CONFIG: described}, {"": WEIGHTS})]


MODEL = Model(
    lambda request: Read([incoming(request.folder(), request)]),
    write,
)

"""Convert T5's encoder: FLAN-T5 and AudioLDM2's `text_encoder_2`.

safetensors files hold tied weights once, under either name.
"""

import shutil
from collections.abc import Container, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from convert import licences
from convert.configs import builtin, integer, number, required
from convert.incoming import Incoming
from convert.model import CONFIG, WEIGHTS, Model, Read, Request
from convert.outgoing import Outgoing
from convert.rows import DENSE
from convert.source import contained, read_json
from convert.table import Ignore, Row, Table, Tied
from convert.tensors import SourceError
from mfm_jax.bundle import Bundle
from mfm_jax.models.t5 import Block, T5Config, relative_buckets, rms_norm
from mfm_jax.storage.weights import abstract, named_weights, with_weights
from mfm_jax.typing import Float

FILE = "t5 config"
READ = (
    "d_ff",
    "d_kv",
    "d_model",
    "layer_norm_epsilon",
    "num_heads",
    "num_layers",
    "relative_attention_num_buckets",
    "vocab_size",
)
# The library's default is "relu".
REQUIRED = {"feed_forward_proj": "gated-gelu"}
# A file may omit these, or have these values.
BUILT_IN = {
    "dense_act_fn": "gelu_new",
    "is_decoder": False,
    "is_gated_act": True,
    "model_type": "t5",
}
# A constant when files did not have the setting yet.
OLD = {"relative_attention_max_distance": 128}


def config(theirs: Mapping) -> T5Config:
    """Return the configuration that a `config.json` describes.

    Raises:
        ConversionError: a setting is missing, or is one that the network does not have.
    """
    required(theirs, (*READ, *REQUIRED), FILE)
    builtin(theirs, REQUIRED | BUILT_IN, FILE)
    return T5Config(
        vocab=integer(theirs, "vocab_size", FILE),
        width=integer(theirs, "d_model", FILE),
        depth=integer(theirs, "num_layers", FILE),
        heads=integer(theirs, "num_heads", FILE),
        head_dim=integer(theirs, "d_kv", FILE),
        mlp_width=integer(theirs, "d_ff", FILE),
        buckets=integer(theirs, "relative_attention_num_buckets", FILE),
        max_distance=integer({**OLD, **theirs}, "relative_attention_max_distance", FILE),
        epsilon=number(theirs, "layer_norm_epsilon", FILE),
    )


def their_config(ours: T5Config) -> dict:
    """Return the `config.json` of `transformers.T5EncoderModel`."""
    return {
        **REQUIRED,
        **BUILT_IN,
        "architectures": ["T5EncoderModel"],
        "d_ff": ours.mlp_width,
        "d_kv": ours.head_dim,
        "d_model": ours.width,
        "eos_token_id": END,
        "is_encoder_decoder": False,
        "layer_norm_epsilon": ours.epsilon,
        "num_heads": ours.heads,
        "num_layers": ours.depth,
        "pad_token_id": 0,
        "relative_attention_max_distance": ours.max_distance,
        "relative_attention_num_buckets": ours.buckets,
        "tie_word_embeddings": False,
        "vocab_size": ours.vocab,
    }


WORDS, COPY = "shared.weight", "encoder.embed_tokens.weight"
_SELF = "encoder.block.*.layer.0."
_FEED = "encoder.block.*.layer.1."

TABLE = Table(
    (
        Row(WORDS, "embed.embedding"),
        Tied(COPY, WORDS),
        Row(
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            "position_bias",
        ),
        Row(f"{_SELF}layer_norm.weight", "blocks.*.attn_norm.scale"),
        *(
            Row(f"{_SELF}SelfAttention.{n}.weight", f"blocks.*.attn.{n}.kernel", DENSE)
            for n in "qkvo"
        ),
        Row(f"{_FEED}layer_norm.weight", "blocks.*.mlp_norm.scale"),
        Row(f"{_FEED}DenseReluDense.wi_0.weight", "blocks.*.gate.kernel", DENSE),
        Row(f"{_FEED}DenseReluDense.wi_1.weight", "blocks.*.up.kernel", DENSE),
        Row(f"{_FEED}DenseReluDense.wo.weight", "blocks.*.down.kernel", DENSE),
        Row("encoder.final_layer_norm.weight", "norm.scale"),
    ),
    ignore=(
        Ignore("decoder.*", "T5's decoder", foreign=True),
        Ignore("lm_head.weight", "the head of T5's decoder", foreign=True),
    ),
)
END = 1
"""The end-of-text token."""
TOKENIZER = "tokenizer"
TOKENIZER_FILES = (
    "spiece.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


def incoming(folder: Path, tokenizer: Path, request: Request, licence: str) -> Incoming:
    """Read the encoder from a folder, with its tokenizer."""
    ours = config(read_json(folder, CONFIG))
    weights = request.open(folder, TABLE.knows)
    tensors = {_stored_once(key, weights.tensors): t for key, t in weights.tensors.items()}
    files = (folder / CONFIG, *weights.files)
    copy = partial(copy_tokenizer, tokenizer)
    return Incoming("t5", ours, TABLE, tensors, files, licence, copy)


def _stored_once(key: str, keys: Container[str]) -> str:
    """Return the name of the word embeddings if only their tied copy is in the file."""
    return WORDS if key == COPY and WORDS not in keys else key


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy the tokenizer's files from `source` into the component's `folder`.

    Raises:
        SourceError: there are none.
    """
    found = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not {"spiece.model", "tokenizer.json"} & set(found):
        raise SourceError(f"{source} has no tokenizer (spiece.model or tokenizer.json)")
    (folder / TOKENIZER).mkdir()
    for name in found:
        shutil.copyfile(contained(source, name), folder / TOKENIZER / name)


def no_text(theirs: Mapping[str, np.ndarray], ours: T5Config) -> Float[np.ndarray, "1 D"]:
    """Return the states of the empty text, whose only token is the end-of-text token.

    They are computed block by block, with the weights of one block in memory.
    """
    units = {name: unit for unit in TABLE.units(theirs, "theirs") for name in unit.ours}

    def weights(module: nnx.Module, name: str) -> Any:
        """Return `module` with its weights, whose names in the network start with `name`."""
        read = {}
        for inner in named_weights(module):
            unit = units[f"{name}.{inner}"]
            (array,) = unit.rule.read([theirs[key] for key in unit.theirs], {})
            read[inner] = jnp.asarray(array, jnp.float32)
        return with_weights(module, read)

    (embed,) = units["embed.embedding"].theirs
    (table,) = units["position_bias"].theirs
    x = jnp.asarray(theirs[embed][END], jnp.float32)[None, None]
    buckets = relative_buckets(1, ours.buckets, ours.max_distance)
    bias = jnp.transpose(jnp.asarray(theirs[table], jnp.float32)[buckets], (2, 0, 1))[None]
    mask = jnp.ones((1, 1, 1, 1), bool)
    block = abstract(partial(Block, ours))
    run = jax.jit(lambda block, x: block(x, mask=mask, bias=bias))
    for i in range(ours.depth):
        x = run(weights(block, f"blocks.{i}"), x)
    norm = weights(abstract(partial(rms_norm, ours.width, ours.epsilon)), "norm")
    return np.asarray(norm(x))[0]


def outgoing(bundle: Bundle, folder: str = "", tokenizer: str = ".") -> Outgoing:
    """Return the files that `transformers.T5EncoderModel` and its tokenizer load."""
    described = {f"{folder}{CONFIG}": their_config(bundle.config("t5"))}
    return Outgoing("t5", TABLE, described, {"": f"{folder}{WEIGHTS}"}, {TOKENIZER: tokenizer})


def _read(request: Request) -> Read:
    folder = request.folder()
    return Read([incoming(folder, folder, request, request.licence or licences.FLAN_T5)])


MODEL = Model(
    _read,
    lambda bundle: [outgoing(bundle)],
)

"""Text for the UNet's text branch; its tokenizer needs transformers, and nothing else does."""

from jax import numpy as jnp
from jax.typing import DTypeLike

from mfm_jax.bundle import Bundle
from mfm_jax.errors import UsageError
from mfm_jax.inference.pipeline import Text

LONGEST = 128  # tokens of a prompt, as AudioLDM2's tokenizer


def encode_prompt(bundle: Bundle, text: str, dtype: DTypeLike) -> Text:
    """T5 states of `text`, one row.

    Raises:
        UsageError: transformers is not installed, or the bundle has no tokenizer.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UsageError("a prompt needs a tokenizer: pip install transformers") from None
    folder = bundle.store("t5").folder / "tokenizer"
    if not folder.is_dir():
        raise UsageError(f"t5 in bundle {bundle.path} has no tokenizer: leave the prompts out")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    ids = tokenizer(text, truncation=True, max_length=LONGEST, return_tensors="np").input_ids
    mask = jnp.ones(ids.shape, bool)
    return Text(bundle.load("t5", dtype)(jnp.asarray(ids, jnp.int32), mask), mask)

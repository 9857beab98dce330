"""Prompts as T5 states. The tokenizer needs transformers, which nothing else here does."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.typing import DTypeLike

from mfm_jax.bundle import Bundle
from mfm_jax.errors import UsageError, first_line
from mfm_jax.inference.pipeline import Text
from mfm_jax.inference.requests import Request
from mfm_jax.models.t5 import T5Encoder
from mfm_jax.runtime.compiled import NO_PROGRAMS, Programs
from mfm_jax.typing import Array, Bool, Float, Int

LENGTH = 128
"""Tokens that AudioLDM2 reads of a prompt; shorter ones are padded, so all have one shape."""


@jax.jit
def encode_tokens(
    t5: T5Encoder, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]
) -> Float[Array, "B L D"]:
    """Return the states of all tokens."""
    return t5(ids, mask)


@dataclass(frozen=True)
class PromptEncoder:
    """T5 and its tokenizer, opened once for all prompts."""

    t5: T5Encoder
    tokenizer: Any
    programs: Programs = NO_PROGRAMS  # those that are compiled already

    @classmethod
    def open(
        cls, bundle: Bundle, precision: DTypeLike = "float32", programs: Programs = NO_PROGRAMS
    ) -> "PromptEncoder":
        """Load T5 with its weights in `precision`.

        Raises:
            UsageError: the bundle has no text encoder or no tokenizer, or transformers is missing.
        """
        if "t5" not in bundle.entries or len(bundle.config("unet").contexts) < 2:
            raise UsageError(f"bundle {bundle.path} has no text encoder: leave the prompts out")
        folder = bundle.files("t5", "tokenizer")
        if folder is None:
            raise UsageError(f"t5 in bundle {bundle.path} has no tokenizer: leave the prompts out")
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise UsageError("a prompt needs a tokenizer: pip install transformers") from None
        try:
            # Otherwise transformers asks the user whether to run what a file names.
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            # Damaged files, and those that need code, raise many types.
            raise UsageError(
                f"the tokenizer of t5 in bundle {bundle.path} cannot be opened "
                f"({first_line(error)}): convert t5 again, or leave the prompts out"
            ) from None
        return cls(bundle.load("t5", jnp.dtype(precision)), tokenizer, programs)

    def __call__(self, text: str, say: Callable[[str], object] = warnings.warn) -> Text:
        """Return the states of `text`, in one row of `LENGTH` tokens.

        A longer text is cut, which `say` is told.
        """
        whole = len(self.tokenizer(text, verbose=False).input_ids)
        ids = self.tokenizer(text, truncation=True, max_length=LENGTH).input_ids
        if whole > len(ids):
            say(
                f"a prompt of {whole} tokens is cut: its last {whole - len(ids)} are left out, as "
                f"{LENGTH} are read"
            )
        padding = (0, LENGTH - len(ids))
        mask = jnp.asarray(np.pad(np.ones(len(ids), bool), padding)[None])
        padded = jnp.asarray(np.pad(ids, padding)[None], jnp.int32)
        states = self.programs(encode_tokens, self.t5, padded, mask)
        return Text(states, mask)


@dataclass(frozen=True)
class Prompts:
    """The prompts of a run, each encoded once; on the host, without padding."""

    known: Mapping[str, Text]

    @classmethod
    def encoded(
        cls,
        requests: Iterable[Request],
        bundle: Bundle,
        precision: DTypeLike = "float32",
        say: Callable[[str], object] = warnings.warn,
        programs: Programs = NO_PROGRAMS,
    ) -> "Prompts":
        """Encode every prompt with one T5, which is not loaded if there are none.

        Raises:
            UsageError: as `PromptEncoder.open`.
        """
        wanted = {
            text: None
            for request in requests
            for text in (request.prompt, request.negative_prompt)
            if text is not None
        }
        for text in wanted:
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise UsageError(f"the prompt {text!r:.200} is not UTF-8 text: type it again")
        if not wanted:
            return cls({})
        encode = PromptEncoder.open(bundle, precision, programs)
        return cls({text: _unpadded(encode(text, say)) for text in wanted})

    def texts(self, prompts: Sequence[str | None]) -> list[Text | None]:
        """Return each prompt in one row of `LENGTH` tokens, or None where there is none."""
        return [None if prompt is None else _padded(self.known[prompt]) for prompt in prompts]


def _unpadded(text: Text) -> Text:
    length = int(np.sum(text.mask))
    return Text(np.asarray(text.states)[:, :length], np.ones((1, length), bool))


def _padded(text: Text) -> Text:
    rest = (0, LENGTH - text.mask.shape[1])
    return Text(np.pad(text.states, ((0, 0), rest, (0, 0))), np.pad(text.mask, ((0, 0), rest)))

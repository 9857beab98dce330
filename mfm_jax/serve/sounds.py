"""The networks of a server: windows of several visitors in, their sounds out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.errors import UsageError
from mfm_jax.inference.candidates import Choice, Judge
from mfm_jax.inference.pipeline import Made, Text, VideoToAudio
from mfm_jax.inference.prompts import PromptEncoder
from mfm_jax.inference.stream import in_full
from mfm_jax.serve.programs import KeptPrograms
from mfm_jax.serve.queue import Item

TEXTS = 256
"""Prompts whose states are kept."""


class Encoded(NamedTuple):
    """A prompt as the networks read it, and what is other than one might expect."""

    text: Text
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Sounds:
    """Makes sounds of windows, which have one key, and chooses among candidates."""

    model: VideoToAudio
    kept: KeptPrograms
    encode: Callable[[str], Encoded] | None  # prompts, if the bundle reads text
    judge: Judge | None

    @classmethod
    def open(
        cls, bundle: Bundle, kept: KeptPrograms, precision: str, say: Callable[[str], object]
    ) -> "Sounds":
        """Load every network that the bundle has; `say` is told why prompts cannot be read.

        Raises:
            BundleError: a network is missing or damaged.
        """
        model = VideoToAudio.open(
            bundle.path, precision, kept.layout, verify=bundle.verify, programs=kept.programs
        )
        how: dict[str, Any] = {"dtype": jnp.dtype(precision)}
        judge = Judge.open(bundle, model, **how) if "audiomae" in bundle.entries else None
        return cls(model, kept, _prompt_encoder(bundle, precision, kept, say), judge)

    def start(self, items: Sequence[Item]) -> Made:
        """Start to make the sounds of windows of one key."""
        key = items[0][0].key
        filled = in_full(list(items), self.kept.size(key, len(items)))
        texts = [job.texts for job, _ in filled]
        return self.model.start(
            [window for _, window in filled],
            [job.settings.seed for job, _ in filled],
            key.sampling,
            [prompt for prompt, _ in texts] if key.reads_text else (),
            [negative for _, negative in texts] if key.reads_text else (),
            candidates=key.candidates,
        )

    def choose(self, made: Sequence[Made]) -> Choice:
        """Return which candidate fits the video best."""
        if self.judge is None or made[0].waves.shape[0] == 1:
            return Choice()
        return self.judge.choose(made)


def _prompt_encoder(
    bundle: Bundle, precision: str, kept: KeptPrograms, say: Callable[[str], object]
) -> Callable[[str], Encoded] | None:
    """Return a function that encodes a prompt and remembers some, if the bundle reads text."""
    if "t5" not in bundle.entries or len(bundle.config("unet").contexts) < 2:
        return None
    try:
        prompts = PromptEncoder.open(bundle, precision, kept.programs)
    except UsageError as error:
        say(f"prompts are refused: {error}")
        return None

    @lru_cache(TEXTS)
    def encode(text: str) -> Encoded:
        notes: list[str] = []
        return Encoded(prompts(text, notes.append), tuple(notes))

    return encode

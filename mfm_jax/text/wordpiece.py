"""BERT's WordPiece tokenizer for plain sentences, such as the timestamp of a frame.

It replaces the tokenizer's library and its 30 thousand word pieces at run time.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mfm_jax.typing import Bool, Int

Vocabulary = tuple[tuple[str, int], ...]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
TIMESTAMP_WORDS = ("this", "frame", "is", "sampled", "at", "second", ".")
LONGEST_WORD = 100  # characters; BERT reads a longer word as unknown


def timestamp_vocabulary(vocabulary: Iterable[str]) -> Vocabulary:
    """Select the lines of BERT's `vocab.txt` that spell `This frame is sampled at 1.5 second.`

    These are the special tokens, the words, and every piece made of digits. A sentence of this form
    gets the same ids as from the full vocabulary.

    Raises:
        ValueError: the vocabulary lacks a special token or a word.
    """
    ids = {line.rstrip("\r\n"): number for number, line in enumerate(vocabulary)}
    missing = [piece for piece in SPECIAL + TIMESTAMP_WORDS if piece not in ids]
    if missing:
        raise ValueError(f"not a BERT vocabulary in lower case, it lacks: {' '.join(missing)}")
    numbers = [piece for piece in ids if re.fullmatch(r"(##)?[0-9]+", piece)]
    return tuple((piece, ids[piece]) for piece in (*SPECIAL, *TIMESTAMP_WORDS, *numbers))


def tiny_timestamp_vocabulary() -> Vocabulary:
    """Return the smallest vocabulary for timestamps: single digits, first in a word and later."""
    digits = "0123456789"
    return timestamp_vocabulary((*SPECIAL, *TIMESTAMP_WORDS, *digits, *(f"##{d}" for d in digits)))


def encode(
    sentences: Sequence[str],
    vocabulary: Vocabulary,
    *,
    length: int | None = None,
    longest: int = 32,
) -> tuple[Int[np.ndarray, "B L"], Bool[np.ndarray, "B L"]]:
    """Return the ids of `[CLS] ... [SEP]` and a mask that is False at padding.

    Sentences are padded to `length`, or to the longest of them; those of more than `longest` tokens
    (TimeChat's limit) are cut.

    Raises:
        ValueError: a sentence is not printable ASCII, or does not fit `length`.
    """
    ids = dict(vocabulary)
    if missing := [piece for piece in SPECIAL if piece not in ids]:
        raise ValueError(f"the vocabulary lacks {' '.join(missing)}; take timestamp_vocabulary's")
    rows = []
    for sentence in sentences:
        pieces = [i for word in _words(sentence) for i in _pieces(word, ids)]
        rows.append([ids["[CLS]"], *pieces[: longest - 2], ids["[SEP]"]])
    needed = max(map(len, rows), default=0)
    length = needed if length is None else length
    if needed > length:
        raise ValueError(f"a sentence has {needed} tokens, more than the {length} to pad to")
    padded = np.full((len(rows), length), ids["[PAD]"], np.int32)
    mask = np.arange(length)[None, :] < np.array([len(row) for row in rows], int)[:, None]
    for row, target in zip(rows, padded, strict=True):
        target[: len(row)] = row
    return padded, mask


def _words(sentence: str) -> list[str]:
    """Split a sentence into lower-case words and single punctuation marks.

    For other text BERT has more rules (accents, scripts, control characters). A timestamp never
    needs them, so other text is refused.

    Raises:
        ValueError: the sentence is not printable ASCII.
    """
    if not (sentence.isascii() and sentence.isprintable()):
        raise ValueError(f"not plain printable ASCII: {sentence!r}")
    return re.findall(r"[a-z0-9]+|[^a-z0-9 ]", sentence.lower())


def _pieces(word: str, ids: Mapping[str, int]) -> list[int]:
    """Spell a word by greedy longest match; one that cannot be spelled is the unknown token."""
    found: list[int] = []
    start = 0
    while start < len(word) <= LONGEST_WORD:
        prefix = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((e for e in ends if prefix + word[start:e] in ids), None)
        if end is None:
            break
        found.append(ids[prefix + word[start:end]])
        start = end
    return found if start == len(word) else [ids["[UNK]"]]

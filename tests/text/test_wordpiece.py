import json

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from mfm_jax.text.wordpiece import (
    SPECIAL,
    TIMESTAMP_WORDS,
    encode,
    timestamp_vocabulary,
    tiny_timestamp_vocabulary,
)

# Pieces at the ids of bert-base-uncased, as reference/timechat/SPEC.md (section 4) has them.
BERT_IDS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, ".": 1012, "10": 2184, "11": 2340}
BERT_IDS |= {"this": 2023, "frame": 4853, "is": 2003, "sampled": 18925, "at": 2012, "second": 2117}
BERT_IDS |= {str(digit): 1014 + digit for digit in range(10)}


def sentences(*seconds: float) -> list[str]:
    return [f"This frame is sampled at {x} second." for x in seconds]


def lines_of(ids: dict[str, int]) -> list[str]:
    """Return the lines of a vocabulary with these pieces at their ids and fillers between them."""
    lines = [f"[unused{i}]\n" for i in range(max(ids.values()) + 1)]
    for piece, i in ids.items():
        lines[i] = f"{piece}\n"
    return lines


@pytest.fixture(scope="module")
def pieces() -> list[str]:
    """Words, parts of words, and some but not all numbers, as in BERT's vocabulary."""
    numbers = [str(n) for n in (*range(342), 400, 512, 1000, 1999)]
    parts = [f"##{n}" for n in (*range(14), 27, 500)]
    letters = ["a", "b", "ab", "##b", "##a", "##ba", "##0a", ",", "!", "-", "##."]
    return [*SPECIAL, "[MASK]", *TIMESTAMP_WORDS, "##d", "fr", "##ame", *numbers, *parts, *letters]


@pytest.fixture(scope="module")
def peer(pieces, tmp_path_factory):
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("\n".join(pieces) + "\n")
    tokenizer = transformers.BertTokenizer(str(path))
    assert len(tokenizer) == len(pieces)
    return tokenizer


def peer_encode(peer, texts):
    tokens = peer(texts, padding="longest", max_length=32, truncation=True)
    return np.array(tokens["input_ids"]), np.array(tokens["attention_mask"], bool)


def test_ids_of_the_published_example():
    ids, mask = encode(sentences(0.0, 10.2, 11.9), timestamp_vocabulary(lines_of(BERT_IDS)))
    before, after = [101, 2023, 4853, 2003, 18925, 2012], [2117, 1012, 102]
    assert ids.tolist() == [
        [*before, 1014, 1012, 1014, *after],
        [*before, 2184, 1012, 1016, *after],
        [*before, 2340, 1012, 1023, *after],
    ]
    assert ids.dtype == np.int32
    assert mask.all()


def test_agrees_with_transformers_on_timestamps(pieces, peer):
    """The extracted pieces encode as the full vocabulary does, in rows of unequal length."""
    texts = sentences(*(i / 10 for i in range(20_000)))
    ids, mask = encode(texts, timestamp_vocabulary(pieces))
    theirs, their_mask = peer_encode(peer, texts)
    assert {12, 13} <= set(mask.sum(axis=1).tolist())
    np.testing.assert_array_equal(ids, theirs)
    np.testing.assert_array_equal(mask, their_mask)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("aAbB019.,!- ", max_size=60), min_size=1, max_size=3))
def test_agrees_with_transformers_on_any_text(pieces, peer, texts):
    """Full vocabulary, words in parts, unknown words, punctuation, and cuts at 32 tokens."""
    ids, mask = encode(texts, tuple((piece, i) for i, piece in enumerate(pieces)))
    theirs, their_mask = peer_encode(peer, texts)
    np.testing.assert_array_equal(ids, theirs)
    np.testing.assert_array_equal(mask, their_mask)


def test_words_beyond_a_hundred_letters_are_unknown(pieces, peer):
    vocabulary = tuple((piece, i) for i, piece in enumerate(pieces))
    for word in ("ab" * 50, "ab" * 50 + "a"):
        np.testing.assert_array_equal(encode([word], vocabulary)[0], peer_encode(peer, [word])[0])


def test_tiny_vocabulary_spells_every_published_timestamp(reference):
    cases = json.loads((reference / "timechat/golden/frame_sampling.json").read_text())["cases"]
    texts = [sentence for case in cases for sentence in case["sentences"]]
    vocabulary = tiny_timestamp_vocabulary()
    ids, mask = encode(texts, vocabulary)
    assert sorted(i for _, i in vocabulary) == list(range(len(vocabulary)))
    assert dict(vocabulary)["[UNK]"] not in ids
    words = {i: piece for piece, i in vocabulary}
    for text, row, seen in zip(texts, ids, mask, strict=True):
        spelled = "".join(words[i].removeprefix("##") for i in row[seen][1:-1])
        assert spelled == text.lower().replace(" ", "")


def test_padding_to_a_given_length():
    ids, mask = encode(sentences(1.5, 12.5), tiny_timestamp_vocabulary(), length=15)
    assert ids.shape == (2, 15)
    assert mask.sum(axis=1).tolist() == [12, 13]
    assert not ids[~mask].any()
    assert encode([], tiny_timestamp_vocabulary())[0].shape == (0, 0)


def test_bad_input_says_what_is_wrong(pieces):
    tiny = tiny_timestamp_vocabulary()
    with pytest.raises(ValueError, match="lacks: sampled"):
        timestamp_vocabulary(piece for piece in pieces if piece != "sampled")
    with pytest.raises(ValueError, match="timestamp_vocabulary"):
        encode(["a"], ())
    with pytest.raises(ValueError, match="more than the 11"):
        encode(sentences(1.5), tiny, length=11)
    for text in ("naïve", "two\nlines"):
        with pytest.raises(ValueError, match="ASCII"):
            encode([text], tiny)

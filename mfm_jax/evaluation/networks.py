"""Let the networks of a bundle hear every clip on every side: embeddings, logits and LOA.

Clips are decoded ahead, cut into windows of one shape and computed in batches that are sharded over
the devices, as in generation. The reference and the systems go through the same program.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.evaluation.clips import Sound
from mfm_jax.evaluation.measure import Wave
from mfm_jax.inference.sound_encoders import encode_audiomae, encode_cnn14
from mfm_jax.inference.stream import Device, batches, in_full, read_ahead
from mfm_jax.media.audio import RATE, audiomae_input
from mfm_jax.metrics.spectra import cnn14_log_mel, prepare_for_cnn14
from mfm_jax.models.audiomae import FRAME_SECONDS, LOA, AudioMAE
from mfm_jax.runtime.sharding import Layout
from mfm_jax.typing import Array, Float

COLUMNS = 32
"""Mel columns that Cnn14 pools into one: clips are cut to a multiple, so that few shapes occur."""
HALF = 0.5
"""Share of a window that a clip's last piece must fill to count, if there are others."""

Key = tuple[str, str]
"""A side and the name of a clip."""


@dataclass
class Heard:
    """Rows for each clip of one side, in the order of its names; empty without the network."""

    embeddings: dict[str, Float[np.ndarray, "N D"]] = field(default_factory=dict)
    logits: Float[np.ndarray, "N V"] | None = None
    loa: list[Float[np.ndarray, "L D"]] = field(default_factory=list)  # all windows of a clip


@dataclass(frozen=True)
class Piece:
    """One input of a network, and the clip that it is of."""

    key: Key
    array: Float[np.ndarray, "T M"]
    filled: float = 1.0  # share of the window that is no padding


@dataclass(frozen=True)
class Ear:
    """A network, how its inputs are made, and how its outputs are read."""

    name: str
    network: Any
    pieces: Callable[[Key, Wave, float], Iterator[Piece]]
    hear: Callable[[Any, Array], Any]


def open_ears(bundle: Bundle, layout: Layout, dtype: str, *, exact: bool = False) -> list[Ear]:
    """Load the networks that a bundle has for scores.

    Args:
        exact: give Cnn14 whole clips, as published, and not multiples of `COLUMNS`.
    """
    load = partial(bundle.load, dtype=jnp.dtype(dtype), sharding=lambda *_: layout.replicated)
    ears = []
    if "cnn14" in bundle.entries:
        cnn14 = load("cnn14")
        ears.append(Ear("cnn14", cnn14, partial(_cnn14_pieces, exact=exact), encode_cnn14))
    if "audiomae" in bundle.entries:
        config = bundle.config("audiomae")
        if "mapper" in bundle.entries:
            loa = bundle.config("mapper").loa
        else:
            loa = config.loa((1, config.grid[1]))
        pieces = partial(_audiomae_pieces, frames=config.frames)
        ears.append(Ear("audiomae", load("audiomae"), pieces, partial(_listen, loa=loa)))
    return ears


def hear(
    ear: Ear,
    sides: Mapping[str, Mapping[str, Sound]],
    names: Sequence[str],
    lengths: Mapping[str, float],
    *,
    layout: Layout,
    batch: int,
) -> dict[str, Heard]:
    """Return what a network hears of the clips, by side.

    Args:
        lengths: seconds of each clip that all sides have; what is longer is cut.
        batch: pieces computed at once.
    """
    found: dict[Key, list[tuple[float, Any]]] = defaultdict(list)
    keys = [(side, name) for name in names for side in sides]

    def read(key: Key) -> Iterator[Piece]:
        with sides[key[0]][key[1]].here() as sound:
            wave = Wave.read(sound)
        return ear.pieces(key, wave, lengths[key[1]])

    def start(group: list[tuple[Key, Piece]]) -> Any:
        arrays = np.stack([piece.array for _, piece in in_full(group, batch)])
        return ear.hear(ear.network, jax.device_put(arrays, layout.batch(batch)))

    device = Device[tuple[Key, Piece], Any](start, jax.device_get)
    with closing(read_ahead(keys, read, ahead=2 * batch)) as items:
        for group, result in device.results(batches(items, batch, lambda it: it[1].array.shape)):
            if isinstance(result, Exception):
                raise result
            for row, (key, piece) in enumerate(group):
                mine = jax.tree.map(lambda leaf, row=row: leaf[row], result)
                found[key].append((piece.filled, mine))
    return {side: _collected(ear, [found[side, name] for name in names]) for side in sides}


def _collected(ear: Ear, clips: Sequence[list[tuple[float, Any]]]) -> Heard:
    """Average the pieces of every clip, weighted by what is no padding in them."""
    heard, embeddings, logits = Heard(), [], []
    for pieces in clips:
        weights = np.array([filled for filled, _ in pieces])
        weights /= weights.sum()
        embedding = np.stack([np.asarray(its[0], np.float64) for _, its in pieces])
        embeddings.append(weights @ embedding)
        if ear.name == "cnn14":
            logits.append(weights @ np.stack([np.asarray(its[1], np.float64) for _, its in pieces]))
        else:
            heard.loa.append(np.concatenate([its[1] for _, its in pieces]))
    heard.embeddings[ear.name] = np.stack(embeddings)
    heard.logits = np.stack(logits) if logits else None
    return heard


def _cnn14_pieces(key: Key, wave: Wave, seconds: float, *, exact: bool) -> Iterator[Piece]:
    """Yield the log-mel of the whole clip, as Cnn14 is read in all published scores."""
    samples = wave.at_16k if exact else wave.at_16k[: round(seconds * RATE)]
    mel = cnn14_log_mel(prepare_for_cnn14(samples)).astype(np.float32)
    yield Piece(key, mel if exact else mel[: len(mel) // COLUMNS * COLUMNS])


def _audiomae_pieces(key: Key, wave: Wave, seconds: float, *, frames: int) -> Iterator[Piece]:
    """Yield the filter banks of consecutive windows; the last one may be padded."""
    size = round(frames * FRAME_SECONDS * RATE)
    samples = wave.at_16k[: round(seconds * RATE)]
    for at in range(0, max(len(samples), 1), size):
        part = samples[at : at + size]
        if at and len(part) < HALF * size:
            return
        yield Piece(key, audiomae_input(part, size, frames), max(len(part) / size, 1e-3))


@partial(jax.jit, static_argnames="loa")
def _listen(
    audiomae: AudioMAE, fbank: Float[Array, "B T M"], *, loa: LOA
) -> tuple[Float[Array, "B D"], Float[Array, "B L D"]]:
    """Return the mean of the patches, and LOA."""
    tokens = encode_audiomae(audiomae, fbank).astype(jnp.float32)
    return tokens[:, 1:].mean(axis=1), jnp.asarray(loa.pooled(tokens))

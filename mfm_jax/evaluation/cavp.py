"""CAVP's scores of every clip on every side, where the bundle has both towers, the clip a video.

A clip is cut into pieces of the length that CAVP pools, 4 s in the release. All sides are heard
with the same picture.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import numpy as np
from einops import rearrange
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.errors import MediaError
from mfm_jax.evaluation.clips import Pairing, Sound
from mfm_jax.evaluation.desync import video_of
from mfm_jax.evaluation.measure import Measured, Wave
from mfm_jax.evaluation.report import REFERENCE
from mfm_jax.inference.stream import Device, batches, in_full, read_ahead
from mfm_jax.media.audio import RATE, cavp_mel
from mfm_jax.media.frames import windows
from mfm_jax.media.windows import WindowSpec, cavp_view
from mfm_jax.metrics.alignment import Agreement, agreement
from mfm_jax.metrics.retrieval import retrieval_hits
from mfm_jax.models.cavp import CAVPAudio, CAVPConfig, CAVPVideo
from mfm_jax.runtime.sharding import Layout, constrain
from mfm_jax.typing import Array, Float, Int, UInt8

COMPONENTS = {"cavp": "video", "cavp_audio": "audio"}
HALF = 0.5
"""Share of a piece that a clip's last one must fill to count, if there are others."""


def why_not(bundle: Bundle | None) -> str | None:
    """Return why a bundle gives no scores of CAVP, or None if it does."""
    if bundle is None:
        return "no bundle is given: name one with --bundle"
    for name, tower in COMPONENTS.items():
        if name not in bundle.entries:
            return f"the bundle has no {tower} tower of CAVP ({name}): convert or train CAVP again"
    if not bundle.made_together(*COMPONENTS):
        return "the towers of CAVP in the bundle come from different files: convert CAVP again"
    return None


@dataclass(frozen=True)
class Towers:
    """CAVP's towers, of one training."""

    config: CAVPConfig
    video: CAVPVideo
    audio: CAVPAudio


@dataclass(frozen=True)
class Piece:
    """A part of a clip as both towers read it."""

    frames: UInt8[np.ndarray, "T H W 3"]
    mels: Float[np.ndarray, "S M C"]  # of each side
    steps: int  # moments that lie in the clip


def add_cavp(
    towers: Towers,
    pairing: Pairing,
    clips: Sequence[Measured],
    *,
    layout: Layout,
    batch: int,
) -> None:
    """Add `cavp_cosine`, `cavp_moments` and `cavp_recall` to the scores; nan without a video.

    Nothing is added if no clip has one.

    Args:
        batch: pieces computed at once.
    """
    sides = {REFERENCE: pairing.reference, **pairing.systems}
    videos = {clip.name: video_of(sides, clip.name) for clip in clips}
    lengths = {clip.name: min(clip.seconds.values()) for clip in clips}
    if not any(videos.values()):
        return

    def read(name: str) -> Iterator[Piece]:
        shown = videos[name]
        if shown is None:
            return
        try:
            with ExitStack() as held:
                heard = [held.enter_context(its[name].here()) for its in sides.values()]
                picture = held.enter_context(shown.here())
                waves = [Wave.read(sound).at_16k for sound in heard]
                yield from pieces(towers.config, picture, waves, lengths[name])
        except MediaError:
            return  # the picture is over, or damaged

    def start(group: list[tuple[str, Piece]]) -> Any:
        its = [piece for _, piece in in_full(group, batch)]
        arrays = (
            np.stack([piece.frames for piece in its]),
            np.stack([piece.mels for piece in its]),
            np.array([piece.steps for piece in its], np.int32),
        )
        return compare(towers.video, towers.audio, *jax.device_put(arrays, layout.batch(batch)))

    found: dict[str, list[tuple[int, Agreement]]] = defaultdict(list)
    names = [clip.name for clip in clips]
    device = Device[tuple[str, Piece], Any](start, jax.device_get)
    with closing(read_ahead(names, read, ahead=2 * batch)) as items:
        for group, result in device.results(batches(items, batch)):
            if isinstance(result, Exception):
                raise result
            for row, (name, piece) in enumerate(group):
                mine = jax.tree.map(lambda leaf, row=row: leaf[row], result)
                found[name].append((piece.steps, mine))
    for number, side in enumerate(sides):
        for clip in clips:
            clip.scores[side] |= _scores(found[clip.name], number)
        seen = [clip for clip in clips if found[clip.name]]
        shown, heard = (
            [np.stack([row(its) for _, its in found[clip.name]]) for clip in seen]
            for row in (lambda its: its.video, lambda its, number=number: its.audio[number])
        )
        for clip, hit in zip(seen, retrieval_hits(heard, shown), strict=True):
            clip.scores[side]["cavp_recall"] = float(hit)


def _scores(pieces: Sequence[tuple[int, Agreement]], side: int) -> dict[str, float]:
    """Return the scores of a clip, whose pieces weigh as much as they are long."""
    nothing = dict.fromkeys(("cavp_cosine", "cavp_moments", "cavp_recall"), float("nan"))
    if not pieces:
        return nothing
    steps = np.array([steps for steps, _ in pieces], np.float64)
    cosines = [float(its.video @ its.audio[side]) for _, its in pieces]
    moments = [float(its.moments[side]) for _, its in pieces]
    values = (float(np.average(its, weights=steps)) for its in (cosines, moments))
    return nothing | dict(zip(("cavp_cosine", "cavp_moments"), values, strict=True))


def pieces(
    config: CAVPConfig,
    picture: Sound,
    waves: Sequence[np.ndarray],
    seconds: float,
) -> Iterator[Piece]:
    """Yield the pieces of a clip.

    Args:
        waves: the sounds of all sides at 16 kHz.
        seconds: length of the clip; what is longer is cut.

    Raises:
        MediaError: the video cannot be read.
    """
    length = config.pool / config.fps
    size = round(length * RATE)
    columns = config.pool * prod(time for time, _ in config.audio.pools)
    spec = WindowSpec(length, 0, {"cavp": cavp_view(config.fps, config.size)})
    for window in windows(picture.path, spec, picture.start, end=picture.start + seconds):
        steps = min(config.pool, int(window.seconds * config.fps + 0.5))
        if window.index and steps < HALF * config.pool:
            return
        at = window.index * size
        mels = [_mel(wave[at : at + size], size, config.hop, columns) for wave in waves]
        yield Piece(window.seen["cavp"].pixels, np.stack(mels), max(steps, 1))


def _mel(
    wave: Float[np.ndarray, " A"], size: int, hop: int, columns: int
) -> Float[np.ndarray, "M {columns}"]:
    """Return CAVP's log-mel of a wave that is padded to `size` samples."""
    mel = cavp_mel(np.pad(wave, (0, size - len(wave))), hop)[:, :columns]
    return np.pad(mel, ((0, 0), (0, columns - mel.shape[1])))


@jax.jit
def compare(
    video: CAVPVideo,
    audio: CAVPAudio,
    frames: UInt8[Array, "B T H W 3"],
    mels: Float[Array, "B S M C"],
    steps: Int[Array, " B"],
) -> Agreement:
    """Return how the sounds of pieces agree with their pictures."""
    shown = video(frames.astype(jnp.float32) / 255.0, normalize=False)
    heard = audio(rearrange(mels, "b s m c -> (b s) m c"), normalize=False)
    found = agreement(shown, rearrange(heard, "(b s) t d -> b s t d", b=len(mels)), steps)
    return Agreement(*(constrain(leaf, "batch") for leaf in found))

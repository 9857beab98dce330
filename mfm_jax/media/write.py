"""Write video files: a new soundtrack for an existing picture, or new frames."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from mfm_jax.errors import MediaError, WriteError, full_disk
from mfm_jax.media.audio import RATE
from mfm_jax.media.containers import check_is_file, opened
from mfm_jax.media.encode import (
    CRF,
    mux,
    picture_packets,
    picture_track,
    sound_packets,
    sound_track,
)
from mfm_jax.media.formats import Format, format_of
from mfm_jax.media.frames import decoded_frames
from mfm_jax.media.remux import (
    carry_over,
    copied_picture,
    kept_metadata,
    left_out_of_metadata,
    left_out_of_picture,
    obstacle,
)
from mfm_jax.media.sandbox import sandboxed
from mfm_jax.media.scaling import as_rgb, reformatted
from mfm_jax.media.soundtrack import fitted
from mfm_jax.media.timeline import Timeline, read_timeline
from mfm_jax.storage.files import atomic_write, check_target
from mfm_jax.typing import Float, UInt8


def check_video_target(source: Path, target: Path) -> None:
    """Check that the picture of `source` can be written to `target`, before sound is made for it.

    Raises:
        MediaError: `source` is no file that can be read.
        WriteError: the suffix of `target` names no format, `target` is `source` or cannot be
            written, or there is no room for it.
    """
    check_is_file(source)
    format_of(target)
    _check_is_other(source, target)
    check_target(target)
    needed, free = source.stat().st_size, shutil.disk_usage(target.parent).free
    if needed > free:
        raise WriteError(
            f"cannot write {target} (it takes about {needed >> 10} KiB and {free >> 10} are free): "
            "make room there or choose another folder"
        )


def _check_is_other(source: Path, target: Path) -> None:
    if target.exists() and target.samefile(source):
        raise WriteError(f"{target} is the source itself: choose another output path")


@sandboxed
def write_video(
    source: Path, target: Path, wave: Float[np.ndarray, " A"], rate: int = RATE
) -> list[str]:
    """Write the picture of `source` with `wave` as its only sound; return what else differs.

    The picture is copied packet by packet: orientation, colours and timestamps (counted from the
    first frame) stay. Where a copy would not be shown as the original is, the picture is encoded
    anew. The sound starts with the first frame and is cut, or padded with silence, to the length of
    the video. Metadata, chapters and subtitles come along if the format holds them. `target`
    appears when it is complete.

    Raises:
        MediaError: `source` cannot be read.
        WriteError: `target` cannot be written, or is `source`.
    """
    source, target = Path(source), Path(target)
    form, line = format_of(target), read_timeline(source)
    _check_is_other(source, target)
    notes = []
    with opened(source) as (container, stream):
        with _writing(target, form) as out:
            if reason := obstacle(container, stream, line, form):
                notes.append(f"the picture is encoded anew, because {reason}")
                picture = _encoded_picture(source, container, stream, out, line, form)
            else:
                picture = copied_picture(source, container, stream, out, line, form)
            sound = fitted(wave, round(line.seconds * rate))
            track = sound_packets(sound_track(out, form, rate), sound, rate)
            others, left_out = carry_over(source, container, stream, out, line, form)
            mux(out, [picture, track, *others])
            left_out += left_out_of_picture(stream, form, encoded=reason is not None)
        with opened(target) as (made, _):
            left_out += left_out_of_metadata(container, made)
    if left_out:
        notes.append(f"left out: {', '.join(left_out)}")
    return notes


@sandboxed
def write_excerpt(
    source: Path,
    target: Path,
    wave: Float[np.ndarray, " A"],
    start: float,
    end: float,
    rate: int = RATE,
) -> None:
    """Write the picture of `source` from `start` to `end` (s), encoded anew, with `wave` as sound.

    It begins with the frame that is shown at `start`. Title and the like come along; chapters and
    subtitles do not.

    Raises:
        MediaError: `source` cannot be read, or ends before `start`.
        WriteError: `target` cannot be written, or is `source`.
    """
    source, target = Path(source), Path(target)
    form, line = format_of(target), read_timeline(source, start, end)
    if start >= line.seconds:
        raise MediaError(f"{source} ends at {line.seconds:.2f} s: nothing is left from {start:g} s")
    _check_is_other(source, target)
    with opened(source) as (container, stream), _writing(target, form) as out:
        picture = _encoded_picture(source, container, stream, out, line, form, start, end)
        sound = fitted(wave, round((min(end, line.seconds) - start) * rate))
        out.metadata.update(kept_metadata(container))
        mux(out, [picture, sound_packets(sound_track(out, form, rate), sound, rate)])


def _encoded_picture(
    path: Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    out: av.container.OutputContainer,
    line: Timeline,
    form: Format,
    start: float = 0.0,
    end: float = np.inf,
) -> Iterator[av.Packet]:
    """Add an encoder to `out`; yield the packets of every frame, upright, with the first at 0.

    Args:
        start: seconds since the first frame, from which the picture is shown.
        end: the same, to which it is.
    """
    width, height = line.width, line.height
    if line.orientation.transpose:
        width, height = height, width
    size = max(2, width - width % 2), max(2, height - height % 2)
    track = picture_track(out, form, size, Fraction(1) / (line.gap * line.time_base))
    theirs, ours = stream.codec_context, track.codec_context
    ours.color_range, ours.colorspace = theirs.color_range, theirs.colorspace
    ours.color_primaries, ours.color_trc = theirs.color_primaries, theirs.color_trc
    if aspect := stream.sample_aspect_ratio:
        ours.sample_aspect_ratio = 1 / aspect if line.orientation.transpose else aspect
    over = min(round(min(end, line.seconds) / line.time_base), line.duration)
    begin = round(start / line.time_base)
    shown = line.pts - line.origin
    first = max(0, int(np.searchsorted(shown, begin, side="right")) - 1)
    ticks = (np.clip(shown, begin, over) - begin).tolist()
    following = [*ticks[1:], over - begin]
    ends = dict(zip(ticks[first:], following[first:], strict=True))

    def frames() -> Iterator[tuple[int, av.VideoFrame]]:
        for number, frame in decoded_frames(path, line, first):
            if number > first and shown[number] >= over:
                return
            if following[number] == ticks[number]:
                continue  # the next one takes its place at once
            if line.orientation.rotation or line.orientation.mirrored:
                upright = line.orientation.apply(as_rgb(frame))
                frame = av.VideoFrame.from_ndarray(upright, "rgb24")
            yield ticks[number], reformatted(frame, *size, "yuv420p")

    return picture_packets(track, frames(), line.time_base, ends)


def write_frames(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]],
    target: Path,
    *,
    fps: float | int | Fraction,
    wave: Float[np.ndarray, " A"] | None = None,
    rate: int = RATE,
    crf: int = CRF,
) -> None:
    """Write RGB frames, and `wave` if given, as H.264/AAC; the same input gives the same bytes.

    Args:
        fps: frames per second.
        rate: samples of `wave` per second.
        crf: x264's quality, 0 (lossless) to 51.

    Raises:
        ValueError: there are no frames, or their height or width is odd (4:2:0 needs even ones).
        WriteError: `target` cannot be written.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"no frames to write to {target}")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"frames of {width}x{height}: H.264 needs even sizes")
    fps = Fraction(fps).limit_denominator(65_535)
    form = format_of(target)
    with _writing(target, form) as out:
        track = picture_track(out, form, (width, height), fps, crf)
        numbered = (
            (index, av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24"))
            for index, pixels in enumerate(chain([first], frames))
        )
        packets = [picture_packets(track, numbered, 1 / fps)]
        if wave is not None:
            packets.append(sound_packets(sound_track(out, form, rate), wave, rate))
        mux(out, packets)


@contextmanager
def _writing(target: Path, form: Format) -> Iterator[av.container.OutputContainer]:
    """Open a file for writing that appears when it is complete."""
    with atomic_write(target) as part:
        try:
            with av.open(
                f"file:{part.absolute()}", "w", format=form.muxer, options=form.options
            ) as out:
                yield out
        except FFmpegError as error:
            if full_disk(error):
                raise
            reason = (error.strerror or "unknown error").lower()
            raise WriteError(
                f"cannot write {target} ({reason}): name it .mkv or choose another folder"
            ) from None

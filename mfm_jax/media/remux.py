"""Carry the streams of a video over to another file, packet by packet."""

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition

from mfm_jax.errors import one_line
from mfm_jax.media.containers import PICTURES, opened, reading
from mfm_jax.media.formats import Format
from mfm_jax.media.packets import UNKNOWN, demuxed, numbered_packets
from mfm_jax.media.timeline import Timeline

OF_THE_CONTAINER = {
    *("major_brand", "minor_version", "compatible_brands"),
    *("encoder", "software", "duration"),
}
"""Metadata that describes the old file, in lower case."""

NAMED = 5
"""Names that a note gives of metadata that is left out."""

KEPT = Disposition.default | Disposition.forced | Disposition.hearing_impaired


def obstacle(
    container: av.container.InputContainer, stream: av.VideoStream, line: Timeline, form: Format
) -> str | None:
    """Return why the picture cannot be copied into a container, or None if it can."""
    if not _holds(form, stream):
        codec = stream.codec_context.codec.canonical_name
        return f"{codec} cannot be copied into {form.muxer}"
    if line.decoder_order and stream.codec_context.has_b_frames:
        return f"{container.format.name} does not store when all of its frames are shown"
    if line.shift.any():
        return "the clock of the file starts again"
    if (line.presented == UNKNOWN).any():
        return "the second fields of its frames have no times"
    if form.isom and not np.diff(line.pts).all():
        return "several of its frames have the same time"
    (_, end), begin = _ends(line), _begin(line)
    cut_off = line.discarded[begin:end]
    if (cut_off & (line.presented[begin:end] >= line.origin)).any():
        return "the file consists of several pieces"
    if cut_off.any() and not form.isom:
        return f"{form.muxer} cannot hide what was trimmed off"
    return None


def _holds(form: Format, stream: av.stream.Stream) -> bool:
    """Return whether a container can hold the packets of a stream."""
    try:
        with av.open(io.BytesIO(), "w", format=form.muxer) as out:
            _tag(out.add_stream_from_template(stream, opaque=True), stream, form)
            out.start_encoding()
    except (FFmpegError, ValueError):
        return False
    return True


def _tag(copy: av.stream.Stream, stream: av.stream.Stream, form: Format) -> None:
    """Set the codec tag that players of the container need."""
    if form.isom and stream.codec_context.codec.canonical_name == "hevc":
        copy.codec_context.codec_tag = "hvc1"  # Apple's players read no other


def _ends(line: Timeline) -> tuple[int, int]:
    """Return the first packet that is not discarded, and one more than the last."""
    shown = np.flatnonzero(~line.discarded)
    return int(shown[0]), int(shown[-1]) + 1


def _begin(line: Timeline) -> int:
    """Return the packet at which a decoder begins to show the first one."""
    keys = np.flatnonzero(line.keys[: _ends(line)[0] + 1])
    return int(keys[-1]) if len(keys) else 0


def copied_picture(
    path: Path,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    out: av.container.OutputContainer,
    line: Timeline,
    form: Format,
) -> Iterator[av.Packet]:
    """Add a copy of a video stream to `out`; yield its packets, with the first frame at 0."""
    copy = out.add_stream_from_template(stream, opaque=True)
    _tag(copy, stream, form)
    _describe(copy, stream)
    if stream.sample_aspect_ratio:  # of the container, which overrules the codec
        copy.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio
    return _picture_packets(path, container, stream, copy, line)


def _picture_packets(path, container, stream, copy, line: Timeline) -> Iterator[av.Packet]:
    begin, (_, end) = _begin(line), _ends(line)
    waiting: list[av.Packet] = []  # Matroska does not say when the first ones are decoded
    with reading(path):
        for number, packet in numbered_packets(container, stream, None, stream):
            if not packet.size or not begin <= number < end:
                continue
            packet.opaque, packet.stream = None, copy
            packet.pts = int(line.presented[number]) - line.origin
            packet.duration = packet.duration or line.gap
            if line.decoder_order:  # without B-frames, or there would be an obstacle
                packet.dts = packet.pts
            elif packet.dts is None:
                waiting.append(packet)
                continue
            else:
                packet.dts -= line.origin
            for ahead, early in enumerate(reversed(waiting), start=1):
                early.dts = packet.dts - ahead * line.gap
            yield from waiting
            waiting.clear()
            yield packet
    for packet in waiting:
        packet.dts = packet.pts
        yield packet


def left_out_of_picture(stream: av.VideoStream, form: Format, *, encoded: bool) -> list[str]:
    """Return what the new file does not tell a player of a picture that was copied or `encoded`."""
    aspect = stream.sample_aspect_ratio or 1
    # PyAV cannot set what Matroska has for it, so only what the codec itself stores is kept there.
    own = stream.codec_context.sample_aspect_ratio == aspect
    kept = form.isom or (form.picture == "libx264" if encoded else own)
    return [] if kept or aspect == 1 else [f"the aspect ratio of pixels ({aspect})"]


def left_out_of_metadata(
    container: av.container.InputContainer, made: av.container.InputContainer
) -> list[str]:
    """Return which metadata of a file, if any, is missing in the one made of it."""
    kept = {key.lower() for key in made.metadata}
    lost = [one_line(k) for k in container.metadata if k.lower() not in kept | OF_THE_CONTAINER]
    more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    return [f"metadata ({', '.join(lost[:NAMED])}{more})"] if lost else []


def _describe(copy: av.stream.Stream, stream: av.stream.Stream) -> None:
    copy.metadata.update(
        {k: v for k, v in stream.metadata.items() if k.lower() not in OF_THE_CONTAINER}
    )
    copy.disposition = stream.disposition & KEPT


def carry_over(
    path: Path,
    container: av.container.InputContainer,
    picture: av.VideoStream,
    out: av.container.OutputContainer,
    line: Timeline,
    form: Format,
) -> tuple[list[Iterator[av.Packet]], list[str]]:
    """Add everything but picture and sound: metadata, chapters, subtitles.

    Returns:
        The packets of the streams added, and what the container cannot hold.
    """
    out.metadata.update(kept_metadata(container))
    _carry_chapters(container, out, line)
    streams, left_out = [], []
    for stream in container.streams:
        if stream.type in ("video", "audio") and not stream.disposition & PICTURES:
            if stream.type == "video" and stream is not picture:
                left_out.append("another picture")
            continue
        if stream.type == "data" and _is_expressed_otherwise(stream):
            continue
        name = {"subtitle": "subtitles", "video": "a cover picture"}.get(stream.type, stream.type)
        if stream.type == "subtitle" and not line.shift.any() and _holds(form, stream):
            copy = out.add_stream_from_template(stream, opaque=True)
            _describe(copy, stream)
            streams.append(_subtitle_packets(path, stream.index, copy, line))
        else:
            codec = stream.codec_context.name if stream.codec_context else "of unknown kind"
            left_out.append(f"{name} ({codec})")
    return streams, left_out


def kept_metadata(container: av.container.InputContainer) -> dict[str, str]:
    """Return the metadata that does not describe the old file itself."""
    return {k: v for k, v in container.metadata.items() if k.lower() not in OF_THE_CONTAINER}


def _is_expressed_otherwise(stream: av.stream.Stream) -> bool:
    """Return whether a data stream is the text of chapters or the timecode of the picture."""
    return "timecode" in stream.metadata or stream.metadata.get("handler_name") == "SubtitleHandler"


def _carry_chapters(container, out, line: Timeline) -> None:
    chapters = []
    for number, chapter in enumerate(container.chapters()):
        base = chapter["time_base"]
        first = round(line.begin / base)
        end = min(chapter["end"] - first, round(line.seconds / base))
        start = max(chapter["start"] - first, 0)
        if start < end:
            chapters.append(chapter | {"id": number, "start": start, "end": end})
    if chapters:
        out.set_chapters(chapters)


def _subtitle_packets(path: Path, index: int, copy, line: Timeline) -> Iterator[av.Packet]:
    with opened(path) as (container, _), reading(path):
        stream = container.streams[index]
        base = Fraction(stream.time_base or 1)
        origin, end = round(line.begin / base), round(line.seconds / base)
        for packet in demuxed(container, [stream]):
            if not packet.size or packet.pts is None:
                continue
            start = packet.pts - origin
            stop = start + (packet.duration or 0)
            if stop < 0 or start >= end:
                continue
            packet.stream = copy
            packet.pts = packet.dts = max(start, 0)
            packet.duration = min(stop, end) - packet.pts
            yield packet

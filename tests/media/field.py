"""Files as people have them, each made from numbered frames and clicks."""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from struct import pack, unpack_from

import av
import numpy as np

from tests.windows import pair_spec

FPS = 25
STEP = 6
"""Levels of brightness from one frame to the next."""
SMALL = pair_spec(1.0, 0.0, cavp_fps=FPS, cavp_size=16, timechat_frames=4, timechat_size=16)


def write_clip(
    path: Path,
    frames: Iterable[int],
    clicks: Sequence[float] | None = (),
    *,
    codec: str = "libx264",
    b_frames: int = 0,
    gop: int = 250,
    shift: Callable[[float], float] = lambda seconds: seconds,
    options: dict[str, str] | None = None,
    last: int | None = None,
    prepare: Callable[[av.VideoStream], None] | None = None,
    sound: str = "aac",
    size: tuple[int, int] = (64, 48),
    rate: int = 48_000,
) -> Path:
    """Write frames whose brightness is their number, and clicks (s) as sound unless None.

    Args:
        shift: what a recorder makes of the true times.
        last: the ticks (1/25 s) that the last frame declares to last.
        options: of the muxer.
        size: width and height.
        rate: samples of the sound per second.
    """
    frames = list(frames)
    with av.open(str(path), "w", options=options or {}) as out:
        x264 = {"crf": "4", "bf": str(b_frames), "g": str(gop), "x264-params": "scenecut=0"}
        track = out.add_stream(codec, rate=FPS, options=x264 if codec == "libx264" else {})
        (track.width, track.height), track.pix_fmt = size, "yuv420p"
        if codec == "mpeg4":
            track.bit_rate = 4_000_000
        if prepare is not None:
            prepare(track)
        audio = None
        if clicks is not None:
            audio = out.add_stream(sound, rate=rate)
            audio.layout = "mono"
        made: list[av.Packet] = []
        for i, number in enumerate(frames):
            pixels = np.full((size[1], size[0], 3), 20 + STEP * number, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FPS)
            made += track.encode(frame)
        made += track.encode()
        if last is not None:
            next(p for p in made if p.pts == len(frames) - 1).duration = last
        if audio is not None:
            wave = np.zeros((1, len(frames) * rate // FPS), np.float32)
            for click in clicks or ():
                wave[0, round(click * rate) : round(click * rate) + rate // 200] = 0.9
            for at in range(0, wave.shape[1], 960):
                piece = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(wave[:, at : at + 960]), "fltp", "mono"
                )
                piece.sample_rate, piece.pts, piece.time_base = rate, at, Fraction(1, rate)
                resampler = av.AudioResampler(audio.codec_context.format, "mono", rate)
                for ready in resampler.resample(piece):
                    made += audio.encode(ready)
            made += audio.encode()
        made.sort(key=lambda p: p.dts * p.time_base)
        for stream in (track, audio):
            mine = [p for p in made if p.stream is stream]
            shown = sorted(p.pts for p in mine)
            later = [round(shift(float(t * mine[0].time_base)) / mine[0].time_base) for t in shown]
            moved = dict(zip(shown, later, strict=True))
            delay = max(p.pts - p.dts for p in mine) if mine else 0
            for number, packet in enumerate(mine):
                # Encoders hand times on in the order shown, as times of decoding.
                before = number - round(delay / max(1, packet.duration))
                packet.dts = later[before] if before >= 0 else later[0] - delay + number
                packet.pts = moved[packet.pts]
        for packet in made:
            out.mux(packet)
    return path


def numbers(frames: Iterable[np.ndarray]) -> list[int]:
    """Return the numbers of decoded frames."""
    return [round((float(frame.mean()) - 20) / STEP) for frame in frames]


def remuxed(source: Path, target: Path) -> Path:
    """Copy the picture of a file into a container that stores no presentation times."""
    with av.open(str(source)) as container, av.open(str(target), "w") as out:
        stream = container.streams.video[0]
        copy = out.add_stream_from_template(stream, opaque=True)
        plain = stream.codec_context.name == "h264"
        convert = av.BitStreamFilterContext("h264_mp4toannexb" if plain else "null", stream, copy)
        packets = [p for packet in container.demux(stream) for p in convert.filter(packet)]
        for number, packet in enumerate(p for p in packets if p.size):
            packet.stream, packet.time_base = copy, Fraction(1, FPS)
            packet.pts = packet.dts = number
            packet.duration = 1
            out.mux(packet)
    return target


# --- H.264 in fields ------------------------------------------------------------------------------


def write_fields(path: Path, frames: Sequence[int], gop: int = 10) -> Path:
    """Write frames of two fields, each a packet in a file whose packets' headers time only one.

    No encoder at hand makes them, so these are I_PCM macroblocks: 64 x 32 of one brightness.
    """
    fields = [[_field(n, i, bottom, gop) for bottom in (0, 1)] for i, n in enumerate(frames)]
    raw = path.with_suffix(".h264")
    raw.write_bytes(b"".join(field for pair in fields for field in pair))
    with av.open(str(raw)) as container, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(container.streams.video[0], opaque=True)
        for number, pair in enumerate(fields):
            packet = av.Packet(b"".join(pair))
            packet.stream, packet.time_base = copy, Fraction(1, FPS)
            packet.pts = packet.dts = number
            packet.is_keyframe = number % gop == 0
            out.mux(packet)
    return path


def _field(brightness: int, number: int, bottom: int, gop: int) -> bytes:
    """Return the NAL units of one field of a frame."""
    first = number % gop == 0 and not bottom
    in_gop = number % gop
    # first_mb, slice_type I, pps; frame_num, field_pic_flag, bottom_field_flag
    bits = _ue(0) + _ue(7) + _ue(0) + f"{in_gop:04b}1{bottom}"
    bits += _ue(number // gop % 2) if first else ""  # idr_pic_id
    bits += f"{2 * in_gop + bottom:08b}" + ("00" if first else "0")  # picture order, marking
    bits += _ue(0) + _ue(1)  # slice_qp_delta, no deblocking
    level = round(16 + (20 + STEP * brightness) * 219 / 255)
    pixels = "".join(f"{value:08b}" for value in [level] * 256 + [128] * 128)
    for _ in range(4):
        bits += _ue(25)
        bits += "0" * (-len(bits) % 8) + pixels
    sps = f"{77:08b}{0:08b}{30:08b}" + _ue(0) + _ue(0) + _ue(0) + _ue(4) + _ue(1) + "0"
    sps += _ue(3) + _ue(0) + "00101" + f"00001{1:032b}{2 * FPS:032b}10000"  # size, fields, times
    pps = _ue(0) + _ue(0) + "00" + 3 * _ue(0) + "000" + 3 * _ue(0) + "100"
    head = _nal(0x67, sps) + _nal(0x68, pps) if first else b""
    return _nal(9, "0001") + head + _nal(0x25 if first else 0x21, bits)


def _ue(value: int) -> str:
    digits = f"{value + 1:b}"
    return "0" * (len(digits) - 1) + digits


def _nal(kind: int, bits: str) -> bytes:
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big")
    for byte in (b"\0", b"\1", b"\2", b"\3"):
        data = data.replace(b"\0\0" + byte, b"\0\0\3" + byte)
    return b"\0\0\0\1" + bytes([kind]) + data


# --- boxes of mp4 ---------------------------------------------------------------------------------


def box(name: bytes, body: bytes) -> bytes:
    return pack(">I4s", len(body) + 8, name) + body


def boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 0
    while at + 8 <= len(data):
        size, name = unpack_from(">I4s", data, at)
        found.append((name, data[at + 8 : at + size]))
        at += size
    return found


def with_edits(path: Path, edits: Sequence[tuple[float, float]]) -> Path:
    """Give every track of an mp4 whose index comes last an edit list.

    Args:
        edits: the length and the beginning in the media of each piece in seconds; a beginning
            below 0 is a pause.
    """
    data = path.read_bytes()
    top = boxes(data)
    assert top[-1][0] == b"moov"
    inside = boxes(top[-1][1])
    (movie_scale,) = unpack_from(">I", dict(inside)[b"mvhd"], 12)

    def edited(track: bytes) -> bytes:
        parts = boxes(track)
        (scale,) = unpack_from(">I", dict(boxes(dict(parts)[b"mdia"]))[b"mdhd"], 12)
        entries = b"".join(
            pack(
                ">IiHH",
                round(length * movie_scale),
                -1 if begin < 0 else round(begin * scale) + _first_time(parts),
                1,
                0,
            )
            for length, begin in edits
        )
        elst = box(b"elst", pack(">II", 0, len(edits)) + entries)
        rest = [(name, body) for name, body in parts if name != b"edts"]
        return b"".join(box(n, b) for n, b in [*rest[:1], (b"edts", elst), *rest[1:]])

    moov = b"".join(box(n, edited(b) if n == b"trak" else b) for n, b in inside)
    path.write_bytes(b"".join(box(n, b) for n, b in top[:-1]) + box(b"moov", moov))
    return path


def _first_time(parts: list[tuple[bytes, bytes]]) -> int:
    """Return the media time of the first frame, which B-frames and encoders' delays put off."""
    edts = dict(parts).get(b"edts")
    if edts is None:
        return 0
    elst = dict(boxes(edts))[b"elst"]
    return max(0, unpack_from(">i", elst, 12)[0])

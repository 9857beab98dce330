"""Damaged and forged videos: what is read of them is consistent, or refused in one line."""

import random
import shutil
from pathlib import Path
from struct import pack, unpack

import numpy as np

from mfm_jax.errors import UserError
from mfm_jax.media.frames import windows
from mfm_jax.media.probe import probe
from mfm_jax.media.soundtrack import read_audio
from mfm_jax.media.write import write_video
from tests.media.field import FPS, write_clip, write_fields
from tests.windows import pair_spec

SPEC = pair_spec(1.0, 0.25, cavp_fps=FPS, cavp_size=16, timechat_frames=8, timechat_size=16)
NAMED = (b"stts", b"ctts", b"stss", b"stsz", b"stsc", b"stco", b"elst", b"mvhd", b"mdhd", b"tkhd")
"""Boxes of an mp4 with times, sizes and places."""
MOST_WINDOWS = 200


def make_sources(folder: Path) -> list[Path]:
    """Write a small clip in each container, whole."""
    clicks = [0.3, 0.9]
    fragments = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    transport = write_clip(folder / "a.ts", range(30), clicks, b_frames=2, gop=12)
    joined = folder / "joined.ts"
    joined.write_bytes(2 * transport.read_bytes())
    return [
        transport,
        joined,
        write_fields(folder / "fields.ts", range(30)),
        write_clip(folder / "a.mpg", range(30), clicks, codec="mpeg2video", sound="mp2"),
        write_clip(folder / "faststart.mp4", range(30), clicks, b_frames=2, gop=12),
        write_clip(folder / "fragments.mp4", range(30), clicks, gop=10, options=fragments),
        write_clip(folder / "a.mov", range(30), clicks, b_frames=2),
        write_clip(folder / "a.mkv", range(30), clicks, b_frames=2, gop=12),
        write_clip(folder / "a.webm", range(30), clicks, codec="libvpx-vp9", sound="libopus"),
        write_clip(folder / "a.avi", range(30), clicks, codec="mpeg4", sound="libmp3lame"),
        write_clip(folder / "a.flv", range(30), clicks, gop=12),
    ]


def mutate(rng: random.Random, sources: list[Path], target: Path) -> str:
    """Write a damaged copy of one of `sources` to `target`; return what was done."""
    source = rng.choice(sources)
    data = bytearray(source.read_bytes())
    kind = rng.choice(["flips", "cut", "numbers", "boxes", "times", "spliced", "zeros", "doubled"])
    at = rng.randrange(len(data))
    if kind == "flips":
        for _ in range(rng.choice([1, 5, 50])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "numbers":
        for _ in range(rng.choice([1, 3])):
            at = rng.randrange(len(data) - 4)
            data[at : at + 4] = pack(">I", _number(rng))
    elif kind == "boxes":
        _forge_box(rng, data, sizes=True)
    elif kind == "times":
        _forge_box(rng, data, sizes=False)
    elif kind == "spliced":
        other = rng.choice(sources).read_bytes()
        begin = rng.randrange(len(other))
        data[at : at + rng.randrange(2000)] = other[begin : begin + rng.randrange(4000)]
    elif kind == "zeros":
        length = rng.randrange(1, 3000)
        data[at : at + length] = bytes(len(data[at : at + length]))
    else:
        data[at:at] = data[at : at + rng.randrange(1, 3000)]
    target.write_bytes(data)
    return f"{source.name}, {kind} at {at}"


def _number(rng: random.Random) -> int:
    return rng.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, rng.randrange(1 << 32)])


def _forge_box(rng: random.Random, data: bytearray, *, sizes: bool) -> None:
    """Change the size of a box of an mp4, or a number in it; some number elsewhere."""
    places = [i for name in NAMED if (i := data.find(name)) > 4]
    at = rng.choice(places) if places else rng.randrange(8, len(data) - 80)
    at = at - 4 if sizes else at + 4 + 4 * rng.randrange(16)
    if at + 4 <= len(data):
        old = unpack(">I", data[at : at + 4])[0]
        new = rng.choice([_number(rng), old + 1, old * 2, max(0, old - 1)])
        data[at : at + 4] = pack(">I", new % (1 << 32))


def check(target: Path) -> str:
    """Read and write a video; return the line that refuses it, or what was found.

    Raises:
        AssertionError: what is read does not fit together.
    """
    written = target.with_name("written.mkv")
    try:
        info = probe(target)
        seen = 0
        for window in windows(target, SPEC):
            assert window.index == seen
            assert np.isfinite(window.seen["cavp"].seconds).all()
            seen += 1
            if seen == MOST_WINDOWS:
                break
        expected = len(SPEC.starts(info.seconds))
        assert seen == min(expected, MOST_WINDOWS), f"{seen} windows instead of {expected}"
        wave = read_audio(target)
        if wave is not None:
            assert len(wave) == round(info.seconds * 16_000)
            assert np.isfinite(wave).all()
        write_video(target, written, np.zeros(round(info.seconds * 16_000), np.float32))
        made = probe(written)
        longest = 1.5 / min(info.fps, FPS)
        assert abs(made.seconds - info.seconds) < longest, f"{made} written from {info}"
        return f"{info.frames} frames, {info.seconds:.2f} s"
    except UserError as error:
        line = str(error).replace(str(target), "it")
        if "\n" in line:
            raise AssertionError(f"more than a line: {line}") from None
        return f"refused: {line}"
    finally:
        written.unlink(missing_ok=True)
        leftovers = [p.name for p in target.parent.iterdir() if p.name.startswith(".")]
        assert not leftovers, leftovers


def clean(target: Path) -> None:
    """Remove a case."""
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)

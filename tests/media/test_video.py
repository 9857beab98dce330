"""Frames and sound of files that the tests write, against ffmpeg's filters and goldens."""

import gc
import itertools
import os
import weakref
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mfm_jax.errors import MediaError, WriteError
from mfm_jax.media.encode import mux, picture_packets, sound_packets, sound_track
from mfm_jax.media.formats import FORMATS
from mfm_jax.media.frames import _Plan, windows
from mfm_jax.media.probe import probe
from mfm_jax.media.scaling import resize_cavp
from mfm_jax.media.soundtrack import read_audio
from mfm_jax.media.timeline import read_timeline
from mfm_jax.media.windows import cavp_frame_indices
from mfm_jax.media.write import write_frames, write_video
from tests.silent import write_silent
from tests.windows import pair_spec

RATES = [Fraction(374, 25), 24, 25, Fraction(30_000, 1001), 30]
IRREGULAR = np.cumsum([0, *np.random.default_rng(3).integers(1, 400, 70)]).tolist()
SMALL = pair_spec(1.0, 0.25, cavp_fps=4, cavp_size=24, timechat_frames=6, timechat_size=28)


def numbered(count: int, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Return flat frames whose brightness is their number."""
    return [np.full((height, width, 3), 3 * i, np.uint8) for i in range(count)]


def numbers(frames: Iterable[np.ndarray]) -> list[int]:
    """Return the numbers of frames made by `numbered`."""
    return [round(float(frame.mean()) / 3) for frame in frames]


def sine(seconds: float, hz: float = 440, rate: int = 16_000) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(
        np.float32
    )


def clicks(seconds: float, at: Iterable[float], rate: int = 16_000) -> np.ndarray:
    wave = np.zeros(round(seconds * rate), np.float32)
    for second in at:
        begin = round(second * rate)
        wave[begin : begin + 40] = 0.9
    return wave


def onsets(wave: np.ndarray, rate: int = 16_000) -> list[float]:
    """Return the seconds at which the wave becomes loud after at least 0.1 s of quiet."""
    loud = np.flatnonzero(np.abs(wave) > 0.35)
    return [float(i) / rate for k, i in enumerate(loud) if k == 0 or i - loud[k - 1] > rate / 10]


def write_ticks(
    path: Path,
    ticks: Iterable[int],
    *,
    frames: list[np.ndarray] | None = None,
    degrees: int = 0,
    codec: str = "libx264",
) -> Path:
    """Write frames shown at `ticks` milliseconds: variable rates, late starts, other codecs."""
    ticks = list(ticks)
    with av.open(str(path), "w") as out:
        track = out.add_stream(codec, rate=25, options={"crf": "4"} if codec == "libx264" else {})
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        track.codec_context.time_base = Fraction(1, 1000)
        if degrees:
            track.set_display_rotation(-degrees)
        for tick, pixels in zip(ticks, frames or numbered(len(ticks)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, 1000)
            out.mux(track.encode(frame))
        out.mux(track.encode())
    return path


def packets(path: Path) -> list[tuple[bytes, float, float | None]]:
    """Return the bytes of each video packet, and when it is shown and decoded (seconds)."""
    with av.open(str(path)) as container:
        return [
            (bytes(packet), *(None if t is None else float(t * packet.time_base) for t in ticks))
            for packet in container.demux(video=0)
            if packet.size and (ticks := (packet.pts, packet.dts))
        ]


def through_fps_filter(path: Path, fps: str) -> list[int]:
    """Return the numbers of the frames that ffmpeg's filter selects."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        source = graph.add_buffer(template=stream)
        rate = graph.add("fps", f"fps={fps}:round=near")
        sink = graph.add("buffersink")
        source.link_to(rate)
        rate.link_to(sink)
        graph.configure()
        found = []
        for frame in itertools.chain(container.decode(stream), [None]):
            graph.push(frame)
            while True:
                try:
                    found.append(graph.pull().to_ndarray(format="rgb24"))
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
        return numbers(found)


# --- frame sampling -------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", ["4", "12.5"])
@pytest.mark.parametrize("fps", [*RATES, "irregular"], ids=str)
def test_cavp_frames_are_those_of_the_fps_filter(tmp_path, fps, slots):
    path = tmp_path / "a.mp4"
    if fps == "irregular":
        write_ticks(path, IRREGULAR)
    else:
        write_frames(numbered(70), path, fps=fps)
    theirs = through_fps_filter(path, slots)
    times = read_timeline(path).times
    assert len(theirs) >= 9
    assert cavp_frame_indices(times, float(slots), len(theirs)).tolist() == theirs


@pytest.mark.parity
@pytest.mark.parametrize("frame", [0, 1, 2])
def test_resize_cavp(reference, parity, frame):
    golden = np.load(reference / "cavp" / "golden" / "preprocess.npz")
    ours = resize_cavp(golden[f"frame{frame}_uint8"])
    theirs = golden[f"frame{frame}_resized_uint8_chw"].transpose(1, 2, 0)
    parity("CAVP resize", f"golden frame{frame}_resized_uint8_chw", ours, theirs, 0)


# --- windows --------------------------------------------------------------------------------------


def test_windows_of_a_longer_video(tmp_path):
    write_frames(numbered(60), tmp_path / "a.mp4", fps=25)  # 2.4 s
    first, second, third = windows(tmp_path / "a.mp4", SMALL)
    assert [(w.index, w.start) for w in (first, second, third)] == [(0, 0), (1, 0.75), (2, 1.5)]
    assert [w.seconds for w in (first, second, third)] == pytest.approx([1, 1, 0.9])
    for window in (first, second, third):
        assert window.seen["cavp"].pixels.shape == (4, 24, 24, 3)
        assert window.seen["timechat"].pixels.shape == (6, 28, 28, 3)
        assert window.seen["cavp"].pixels.dtype == window.seen["timechat"].pixels.dtype == np.uint8
    # At 25 fps a slot of 1/4 s takes frames up to half a slot, 3 frames, later.
    assert numbers(first.seen["cavp"].pixels) == [3, 9, 15, 21]
    assert numbers(first.seen["timechat"].pixels) == [0, 4, 8, 12, 16, 20]
    np.testing.assert_allclose(first.seen["timechat"].seconds, np.arange(0, 24, 4) / 25)
    # Frame 19 (0.76 s) is the first one after 0.75 s.
    assert numbers(second.seen["timechat"].pixels) == [19, 23, 27, 31, 35, 39]
    np.testing.assert_allclose(second.seen["timechat"].seconds, np.arange(1, 25, 4) * 0.04 - 0.03)
    assert numbers(second.seen["cavp"].pixels) == [21, 28, 34, 40]


def test_windows_agree_with_the_sampling_functions(tmp_path):
    write_ticks(tmp_path / "a.mp4", IRREGULAR)
    times = read_timeline(tmp_path / "a.mp4").times
    for window in windows(tmp_path / "a.mp4", SMALL):
        slots = cavp_frame_indices(times - window.start, 4, 4)
        assert numbers(window.seen["cavp"].pixels) == slots.tolist()
        chosen = numbers(window.seen["timechat"].pixels)
        np.testing.assert_allclose(
            window.seen["timechat"].seconds, times[chosen] - window.start, atol=1e-9
        )
        inside = np.flatnonzero((times >= window.start) & (times < window.start + 1))
        assert set(chosen) <= set(inside.tolist())
        assert len(set(chosen)) == min(6, len(inside))
        assert len(chosen) == 6


def test_a_short_video_gives_one_window_that_holds_its_end(tmp_path):
    write_frames(numbered(4), tmp_path / "a.mp4", fps=8)
    (window,) = windows(tmp_path / "a.mp4", SMALL)
    assert window.seconds == 0.5
    assert numbers(window.seen["cavp"].pixels) == [0, 2, 3, 3]
    assert numbers(window.seen["timechat"].pixels) == [0, 0, 1, 2, 2, 3]
    np.testing.assert_allclose(window.seen["timechat"].seconds, [0, 0, 0.125, 0.25, 0.25, 0.375])


def test_a_video_of_one_window_and_a_frame_gives_one(tmp_path):
    for frames in (25, 26):
        write_frames(numbered(frames), tmp_path / "a.mp4", fps=25)
        assert len(list(windows(tmp_path / "a.mp4", SMALL))) == 1
    write_frames(numbered(27), tmp_path / "a.mp4", fps=25)
    assert len(list(windows(tmp_path / "a.mp4", SMALL))) == 2


def test_a_window_without_a_frame_of_its_own_shows_the_one_before(tmp_path):
    write_ticks(tmp_path / "a.mp4", [0, 40, 4000, 4040])
    shown = [numbers(w.seen["timechat"].pixels) for w in windows(tmp_path / "a.mp4", SMALL)]
    assert shown[1:5] == [[1] * 6] * 4
    assert shown[5] == [2, 2, 2, 3, 3, 3]


def test_windows_from_a_later_start(tmp_path):
    write_frames(numbered(60), tmp_path / "a.mp4", fps=25)  # 2.4 s
    first, second = windows(tmp_path / "a.mp4", SMALL, start=1.0)
    assert [(w.index, w.start) for w in (first, second)] == [(0, 1.0), (1, 1.75)]
    assert [w.seconds for w in (first, second)] == pytest.approx([1, 0.65])
    assert numbers(first.seen["timechat"].pixels) == [25, 29, 33, 37, 41, 45]
    np.testing.assert_allclose(first.seen["timechat"].seconds, np.arange(0, 24, 4) / 25, atol=1e-9)
    with pytest.raises(MediaError, match=r"ends at 2\.40 s: nothing is left from 2\.4 s on"):
        list(windows(tmp_path / "a.mp4", SMALL, start=2.4))


def test_no_more_than_two_windows_are_held(tmp_path, monkeypatch):
    write_frames(numbered(80), tmp_path / "a.mp4", fps=8)  # 10 s: 13 windows
    alive, most = weakref.WeakSet(), 0
    blank = _Plan.blank

    def counted(plan, spec):
        nonlocal most
        window = blank(plan, spec)
        alive.add(window)
        gc.collect()
        most = max(most, len(alive))
        return window

    monkeypatch.setattr(_Plan, "blank", counted)
    gc.freeze()  # what other tests have left takes seconds to go through
    seen = sum(1 for _ in windows(tmp_path / "a.mp4", SMALL))
    gc.unfreeze()
    assert seen == 13
    assert most <= 3  # two in the making, and the one in the caller's hands


def test_pixels_do_not_depend_on_how_many_threads_decode_and_scale(tmp_path, monkeypatch):
    rng = np.random.default_rng(5)
    wide = rng.integers(0, 256, (12, 40, 3), np.uint8).repeat(9, 0).repeat(9, 1)[:106]
    frames = [np.ascontiguousarray(wide[:, 7 * i : 7 * i + 150]) for i in range(30)]
    write_frames(frames, tmp_path / "a.mp4", fps=25)
    alone = list(windows(tmp_path / "a.mp4", SMALL))
    monkeypatch.setattr("mfm_jax.media.frames.SMALL", 0)
    monkeypatch.setattr("mfm_jax.media.scaling.ALONE", 0)
    for one, other in zip(alone, windows(tmp_path / "a.mp4", SMALL), strict=True):
        for name in one.seen:
            np.testing.assert_array_equal(one.seen[name].pixels, other.seen[name].pixels)


def test_timechat_frames_are_close_to_an_antialiased_bicubic(tmp_path):
    texture = np.random.default_rng(0).integers(0, 255, (12, 16, 3)).astype(np.uint8)
    picture = Image.fromarray(texture).resize((320, 240), Image.Resampling.BICUBIC)
    write_frames([np.asarray(picture)] * 4, tmp_path / "a.mp4", fps=4, crf=4)
    spec = pair_spec(1.0, 0.0, timechat_frames=4, timechat_size=56)
    (window,) = windows(tmp_path / "a.mp4", spec)
    theirs = np.asarray(picture.resize((56, 56), Image.Resampling.BICUBIC), np.int32)
    assert np.abs(window.seen["timechat"].pixels[0] - theirs).mean() < 3
    cavp = resize_cavp(np.asarray(picture)).astype(np.int32)
    assert np.abs(window.seen["cavp"].pixels[0] - cavp).mean() < 3


def corners(frame: np.ndarray) -> list[int]:
    """Return each quarter's colour (0 red, 1 green, 2 blue, 3 none), clockwise from top left."""
    h, w = frame.shape[0] // 2, frame.shape[1] // 2
    quarters = frame[:h, :w], frame[:h, w:], frame[h:, w:], frame[h:, :w]
    means = [quarter.reshape(-1, 3).mean(axis=0) for quarter in quarters]
    return [int(m.argmax()) if m.max() > 90 else 3 for m in means]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_is_applied(tmp_path, degrees):
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:24, :32, 0] = frame[:24, 32:, 1] = frame[24:, 32:, 2] = 255
    path = write_ticks(tmp_path / "a.mp4", range(0, 200, 40), degrees=degrees, frames=[frame] * 5)
    info = probe(path)
    assert info.rotation == degrees
    assert (info.width, info.height) == ((64, 48) if degrees in (0, 180) else (48, 64))
    (window,) = windows(path, SMALL)
    # Turned clockwise by a quarter, the bottom left corner comes to the top left.
    upright = np.roll([0, 1, 2, 3], degrees // 90).tolist()
    assert corners(window.seen["cavp"].pixels[0]) == upright
    assert corners(window.seen["timechat"].pixels[0]) == upright


# --- probing and bad files ------------------------------------------------------------------------


@pytest.mark.parametrize("fps", RATES, ids=str)
def test_probe(tmp_path, fps):
    write_frames(numbered(33), tmp_path / "a.mp4", fps=fps)
    info = probe(tmp_path / "a.mp4")
    assert info.fps == pytest.approx(float(fps), rel=1e-6)
    assert info.seconds == pytest.approx(33 / float(fps), rel=1e-6)
    assert (info.frames, info.width, info.height) == (33, 64, 48)
    assert (info.rotation, info.has_audio) == (0, False)


def test_probe_of_a_variable_rate_and_a_late_start(tmp_path):
    path = write_ticks(tmp_path / "a.mkv", [500 + t for t in IRREGULAR])
    info = probe(path)
    assert info.frames == len(IRREGULAR)
    assert info.seconds == pytest.approx((IRREGULAR[-1] + 40) / 1000)
    np.testing.assert_allclose(read_timeline(path).times, np.array(IRREGULAR) / 1000)


def test_frames_outside_the_edit_list_are_not_shown(tmp_path):
    path = write_ticks(tmp_path / "a.mp4", range(-520, 1000, 40))
    assert probe(path).frames == 25
    assert probe(path).seconds == 1
    (window,) = windows(path, SMALL)
    assert numbers(window.seen["timechat"].pixels)[0] == 13
    assert numbers(window.seen["cavp"].pixels) == [16, 22, 28, 34]


def sound_only(path: Path) -> None:
    with av.open(str(path), "w") as out:
        track = sound_track(out, FORMATS[".mp4"], 16_000)
        mux(out, [sound_packets(track, sine(1), 16_000)])


def cut_to(path: Path, share: float, clip: Path) -> None:
    data = clip.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def without_index(path: Path, clip: Path) -> None:
    """Write an mp4 whose index comes last, cut before it."""
    with av.open(str(clip)) as source, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = copy
                out.mux(packet)
    cut_to(path, 0.9, path)


def renamed(path: Path, clip: Path, *names: bytes) -> None:
    """Write the mp4 with unknown names of boxes."""
    data = clip.read_bytes()
    for name in names:
        assert name in data
        data = data.replace(name, b"zzzz")
    path.write_bytes(data)


def scrambled(path: Path, clip: Path) -> None:
    """Write an mp4 with an intact index, and packets that are not video."""
    data = bytearray(clip.read_bytes())
    begin = data.index(b"mdat") + 4
    data[begin:] = np.random.default_rng(0).bytes(len(data) - begin)
    path.write_bytes(data)


@pytest.fixture
def clip(tmp_path) -> Path:
    """Two seconds of noise with a click track."""
    noise = np.random.default_rng(0).integers(0, 255, (50, 48, 64, 3)).astype(np.uint8)
    path = tmp_path / "clip.mp4"
    write_frames(noise, path, fps=25, wave=clicks(2, [0.5, 1.25]))
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path, clip: None, "does not exist: check the path"),
        (lambda path, clip: path.mkdir(), "is a folder: name a video file"),
        (lambda path, clip: path.touch(), "is empty: copy or download it again"),
        (lambda path, clip: path.write_text("hello " * 99), "is not a readable video"),
        (lambda path, clip: sound_only(path), "has no video stream"),
        (lambda path, clip: without_index(path, clip), "is not a readable video"),
        (lambda path, clip: cut_to(path, 0.5, clip), r"is cut short \(\d\.\d\d s of 2\.00 s\)"),
        (lambda path, clip: cut_to(path, 0.8, clip), r"is cut short \(\d\.\d\d s of 2\.00 s\)"),
        (lambda path, clip: scrambled(path, clip), "is damaged|no frame that can be decoded"),
        (lambda path, clip: renamed(path, clip, b"avc1"), "has an unknown video codec"),
    ],
    ids=[
        "missing",
        "folder",
        "empty",
        "text",
        "sound",
        "no index",
        "half",
        "most",
        "scrambled",
        "unknown",
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path, clip, make, message):
    path = tmp_path / "bad.mp4"
    make(path, clip)
    for read in (
        probe,
        lambda path: list(windows(path, SMALL)),
        read_audio,
        lambda path: write_video(path, tmp_path / "out.mp4", sine(1)),
    ):
        with pytest.raises(MediaError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)
    assert not (tmp_path / "out.mp4").exists()


def test_sound_of_an_unknown_codec_matters_only_where_it_is_read(tmp_path, clip):
    path = tmp_path / "bad.mp4"
    renamed(path, clip, b"mp4a", b"esds")
    with pytest.raises(MediaError, match="has an unknown audio codec"):
        read_audio(path)
    write_video(path, tmp_path / "out.mp4", sine(2))
    assert read_audio(tmp_path / "out.mp4").shape == (32_000,)


def test_a_truncated_matroska_file_is_noticed(tmp_path, clip):
    whole = tmp_path / "whole.mkv"
    write_silent(clip, whole)
    assert probe(whole).frames == 50
    cut_to(tmp_path / "cut.mkv", 0.6, whole)
    with pytest.raises(MediaError, match="is cut short"):
        probe(tmp_path / "cut.mkv")


def test_a_damaged_frame_further_on_is_noticed(tmp_path, clip):
    data = bytearray(clip.read_bytes())
    size = packets(clip)[20][0]
    at = data.index(size)
    data[at : at + len(size)] = bytes(len(size))
    (tmp_path / "bad.mp4").write_bytes(data)
    with pytest.raises(MediaError, match="is damaged"):
        list(windows(tmp_path / "bad.mp4", SMALL))


# --- sound ----------------------------------------------------------------------------------------


def write_with_sound(
    path: Path, wave: np.ndarray, *, rate: int, start: float = 0, codec: str = "aac"
) -> Path:
    """Write 1 s of video from 0 s on, and `wave` (channels first) from `start` on."""
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(wave)]
    with av.open(str(path), "w") as out:
        picture = out.add_stream("libx264", rate=25)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        track = out.add_stream(codec, rate=rate, bit_rate=192_000)
        track.layout = layout
        form = track.codec_context.format.name
        ready = av.AudioResampler(form, layout, rate)

        def sound():
            for at in range(0, wave.shape[1], 1024):
                piece = np.ascontiguousarray(wave[:, at : at + 1024])
                frame = av.AudioFrame.from_ndarray(piece, "fltp", layout)
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = round(start * rate) + at
                for converted in ready.resample(frame):
                    yield from track.encode(converted)
            yield from track.encode()

        frames = [av.VideoFrame.from_ndarray(pixels, "rgb24") for pixels in numbered(25)]
        shown = picture_packets(picture, enumerate(frames), Fraction(1, 25))
        mux(out, [shown, sound()])
    return path


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_read_audio_keeps_the_level(tmp_path, rate, channels):
    wave = np.stack([sine(1, rate=rate)] * channels)
    path = write_with_sound(tmp_path / "a.mov", wave, rate=rate, codec="pcm_s16le")
    ours = read_audio(path)
    assert ours.shape == (16_000,)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours[500:-500], sine(1)[500:-500], atol=2e-3)

    compressed = write_with_sound(tmp_path / "a.mp4", wave, rate=rate)
    loud = read_audio(compressed)[2000:-2000]
    assert np.std(loud) * 2**0.5 == pytest.approx(0.5, rel=0.01)
    np.testing.assert_allclose(loud, sine(1)[2000:-2000], atol=0.05)


def test_read_audio_is_the_mean_of_the_channels(tmp_path):
    tones = [sine(1, hz, 48_000) for hz in (300, 440, 600, 800, 1000, 1300)]
    for channels in (2, 6):
        wave = np.stack(tones[:channels])
        path = write_with_sound(tmp_path / "a.mov", wave, rate=48_000, codec="pcm_s16le")
        expected = np.mean([sine(1, hz) for hz in (300, 440, 600, 800, 1000, 1300)[:channels]], 0)
        np.testing.assert_allclose(read_audio(path)[500:-500], expected[500:-500], atol=2e-3)


def test_read_audio_of_sixteen_channels(tmp_path):
    """PyAV crashes at the ninth plane, which a damaged header may declare as well."""
    tone = sine(1, rate=48_000)
    with av.open(str(tmp_path / "a.mp4"), "w") as out:
        picture = out.add_stream("libx264", rate=25)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        track = out.add_stream("aac", rate=48_000, layout="hexadecagonal", bit_rate=1_500_000)
        packed = np.repeat(tone, 16)[None]
        frame = av.AudioFrame.from_ndarray(packed, "flt", "hexadecagonal")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        planar = av.AudioResampler("fltp", "hexadecagonal", 48_000, frame_size=1024)
        pieces = [*planar.resample(frame), *planar.resample(None), None]
        frames = [av.VideoFrame.from_ndarray(pixels, "rgb24") for pixels in numbered(25)]
        sound = (packet for piece in pieces for packet in track.encode(piece))
        mux(out, [picture_packets(picture, enumerate(frames), Fraction(1, 25)), sound])
    difference = (read_audio(tmp_path / "a.mp4") - sine(1))[2000:-2000]
    assert np.std(difference) < 0.02  # the encoder has few bits for each channel


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_f64le"])
def test_read_audio_of_every_sample_format(tmp_path, codec):
    wave = np.stack([sine(1), sine(1, 700)])
    path = write_with_sound(tmp_path / "a.mkv", wave, rate=16_000, codec=codec)
    expected = wave.mean(axis=0)
    ours = read_audio(path)[16:-16]  # Matroska's times are whole milliseconds
    np.testing.assert_allclose(ours, expected[16:-16], atol=0.01 if codec == "pcm_u8" else 1e-4)


SOUNDS = [
    ("aac", "mp4"),
    ("libmp3lame", "mp4"),
    ("pcm_s16le", "mov"),
    ("aac", "mkv"),
    ("libopus", "mkv"),
]


@pytest.mark.parametrize(("codec", "ending"), SOUNDS)
@pytest.mark.parametrize("start", [0.0, 0.3, -0.2])
def test_read_audio_is_on_the_clock_of_the_video(tmp_path, codec, ending, start):
    wave = np.stack([clicks(1.2, [0.25, 0.6], 48_000)] * 2)
    path = write_with_sound(tmp_path / f"a.{ending}", wave, rate=48_000, start=start, codec=codec)
    ours = read_audio(path)
    assert ours.shape == (16_000,)
    assert onsets(ours) == pytest.approx([0.25 + start, 0.6 + start], abs=0.003)


def test_read_audio_of_a_silent_video_is_none(tmp_path):
    write_frames(numbered(5), tmp_path / "a.mp4", fps=25)
    assert read_audio(tmp_path / "a.mp4") is None


def test_read_audio_at_another_rate(clip):
    wave = read_audio(clip, 22_050)
    assert wave.shape == (44_100,)
    assert onsets(wave, 22_050) == pytest.approx([0.5, 1.25], abs=0.003)


# --- writing --------------------------------------------------------------------------------------


def test_write_frames_is_deterministic_and_keeps_colours(tmp_path):
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    frames = np.zeros((12, 48, 64, 3), np.uint8)
    frames[..., 0], frames[..., 1], frames[..., 2] = ramp, ramp[::-1], ramp[:48, None]
    for name in ("a.mp4", "b.mp4"):
        write_frames(iter(frames), tmp_path / name, fps=12.5, wave=sine(0.96))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with av.open(str(tmp_path / "a.mp4")) as container:
        back = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert len(back) == 12
    assert np.abs(np.stack(back).astype(int) - frames).mean() < 3


def test_write_frames_refuses_what_h264_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="no frames"):
        write_frames([], tmp_path / "a.mp4", fps=25)
    with pytest.raises(ValueError, match="even sizes"):
        write_frames(numbered(2, 47, 64), tmp_path / "a.mp4", fps=25)
    assert not list(tmp_path.iterdir())


def check_new_sound(source: Path, target: Path, rate: int) -> None:
    """Check that `target` has the same picture at the same times, and a track of its length."""
    theirs, ours = packets(source), packets(target)
    first = min(shown for _, shown, _ in theirs if shown >= 0)
    if source.suffix != ".ts":  # which separates the parts of a packet in another way
        assert [data for data, _, _ in ours] == [data for data, _, _ in theirs]
    for column in (1, 2):
        pairs = [(o[column], t[column]) for o, t in zip(ours, theirs, strict=True)]
        known = np.array([pair for pair in pairs if None not in pair])
        assert len(known) > 0.8 * len(pairs)
        np.testing.assert_allclose(known[:, 0], known[:, 1] - first, atol=1e-6)
    seconds = probe(source).seconds
    assert probe(target).seconds == pytest.approx(seconds, abs=1e-3)
    with av.open(str(target)) as container:
        assert len(container.streams.video) == len(container.streams.audio) == 1
        codec = container.streams.audio[0].codec_context
        assert (codec.name, codec.sample_rate, codec.layout.name) == ("aac", rate, "mono")
        frames = list(container.decode(audio=0))
        begin, end = frames[0].time, frames[-1].time + frames[-1].samples / rate
    assert abs(begin) < 0.001
    assert abs(end - seconds) <= 0.064
    assert onsets(read_audio(target)) == pytest.approx([0.5, 0.91], abs=0.005)


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("seconds", [1.0, 1.6, 2.5])
def test_write_video(tmp_path, seconds, rate):
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    write_frames(numbered(40), source, fps=25, wave=sine(1.6))
    wave = clicks(seconds, [0.5, 0.91], rate)
    write_video(source, target, wave, rate)
    check_new_sound(source, target, rate)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


OTHERS = {
    "a.mkv": (range(0, 1600, 40), "libx264"),
    "a.mov": (IRREGULAR[:20], "libx264"),
    "late.mp4": (range(360, 1960, 40), "libx264"),
    "edit.mp4": (range(-520, 1600, 40), "libx264"),
    "a.ts": (range(36_000_000, 36_001_600, 40), "libx264"),
    "a.webm": (range(0, 1600, 40), "libvpx-vp9"),
    "a.avi": (range(0, 1600, 40), "mpeg4"),
}
# Matroska has no edit lists.
PAIRS = [(n, e) for n in OTHERS for e in ("mp4", "mkv") if (n, e) != ("edit.mp4", "mkv")]


@pytest.mark.parametrize(("name", "ending"), PAIRS)
def test_write_video_from_other_files(tmp_path, name, ending):
    ticks, codec = OTHERS[name]
    source = write_ticks(tmp_path / name, ticks, codec=codec)
    write_video(source, tmp_path / f"out.{ending}", clicks(1.6, [0.5, 0.91]))
    check_new_sound(source, tmp_path / f"out.{ending}", 16_000)


def test_write_video_keeps_the_rotation(tmp_path):
    source = write_ticks(tmp_path / "a.mp4", range(0, 1000, 40), degrees=90)
    write_video(source, tmp_path / "b.mp4", sine(1))
    assert probe(tmp_path / "b.mp4").rotation == 90
    assert probe(tmp_path / "b.mp4").width == 48


def test_the_source_is_never_the_target(tmp_path, clip, monkeypatch):
    before = clip.read_bytes()
    (tmp_path / "link.mp4").symlink_to(clip)
    monkeypatch.chdir(tmp_path)
    for target in (
        clip,
        tmp_path / "link.mp4",
        Path("clip.mp4"),
        tmp_path / ".." / tmp_path.name / "clip.mp4",
    ):
        with pytest.raises(WriteError, match="is the source itself"):
            write_video(clip, target, sine(2))
    with pytest.raises(WriteError, match="is the source itself"):
        write_video(tmp_path / "link.mp4", clip, sine(2))
    assert clip.read_bytes() == before


@pytest.mark.parametrize("target", ["missing/a.mp4", "clip.mp4/a.mp4", "folder.mp4", "a.wav", "a"])
def test_an_unwritable_target_is_one_clear_line(tmp_path, clip, target):
    (tmp_path / "folder.mp4").mkdir()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(WriteError, match=rf"^cannot write .*{target}[ :]"):
        write_video(clip, tmp_path / target, sine(2))
    with pytest.raises(WriteError, match=rf"^cannot write .*{target}[ :]"):
        write_frames(numbered(3), tmp_path / target, fps=25)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_picture_that_the_target_cannot_hold_is_encoded_anew(tmp_path):
    source = write_ticks(tmp_path / "a.webm", range(0, 400, 40), codec="libvpx")
    (note,) = write_video(source, tmp_path / "b.mp4", sine(0.4))
    assert note == "the picture is encoded anew, because vp8 cannot be copied into mp4"
    for target in ("b.mp4", "b.mkv", "b.webm"):
        if target != "b.mp4":
            assert write_video(source, tmp_path / target, sine(0.4)) == []
            assert [d for d, *_ in packets(tmp_path / target)] == [d for d, *_ in packets(source)]
        (theirs,), (ours,) = windows(source, SMALL), windows(tmp_path / target, SMALL)
        assert (
            np.abs(ours.seen["timechat"].pixels.astype(int) - theirs.seen["timechat"].pixels).max()
            <= 3
        )


@pytest.mark.parametrize("when", [0, 5])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind_by_a_failure(tmp_path, error, when):
    (tmp_path / "a.mp4").write_bytes(b"old")

    def frames():
        yield from numbered(when + 1)
        raise error

    with pytest.raises(error):
        write_frames(frames(), tmp_path / "a.mp4", fps=25, wave=sine(2))
    assert (tmp_path / "a.mp4").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_title_in_another_encoding_does_no_harm(tmp_path, suffix):
    """Old cameras and broken files have such titles; picture and sound are intact."""
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w") as out:
        out.metadata["title"] = "caf\u00e9s"
        stream = out.add_stream("libx264", rate=25, width=64, height=48, pix_fmt="yuv420p")
        for frame in numbered(5):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        out.mux(stream.encode())
    latin = path.read_bytes().replace("caf\u00e9s".encode(), "caf\u00e9!s".encode("latin-1"))
    path.write_bytes(latin)
    assert b"caf\xe9!s" in latin
    assert probe(path).frames == 5
    write_video(path, tmp_path / f"b{suffix}", sine(0.2))
    assert probe(tmp_path / f"b{suffix}").frames == 5


# --- real clips -----------------------------------------------------------------------------------

CLIPS = {
    "avsync_0": (4.144, 14.96, 480, 360, True),
    "avsync_1": (5.005, 29.97, 640, 360, True),
    "avsync_2": (4.004, 29.97, 640, 360, True),
    "car": (10.093, 21.5, 640, 360, True),
    "drum": (10.047, 21.5, 640, 360, True),
    "generated_no_audio": (10.667, 24.0, 1200, 720, False),
    "gun": (10.093, 21.5, 480, 360, True),
    "vggsound_0": (10.041, 24.6, 640, 360, True),
    "vggsound_1": (10.0, 30.0, 640, 360, True),
    "vggsound_3": (10.0, 30.0, 640, 360, True),
    "vta_0": (10.0, 30.0, 480, 360, True),
}


@pytest.mark.parametrize("name", CLIPS)
def test_real_clips(videos, tmp_path, name):
    source, target = videos / f"{name}.mp4", tmp_path / "a.mp4"
    seconds, fps, width, height, has_audio = CLIPS[name]
    info = probe(source)
    assert info.seconds == pytest.approx(seconds, abs=1e-3)
    assert info.fps == pytest.approx(fps, abs=1e-3)
    assert (info.width, info.height, info.has_audio) == (width, height, has_audio)

    made = list(windows(source, pair_spec(cavp_size=32, timechat_size=32)))
    assert len(made) == (2 if seconds > 10.24 else 1)
    assert made[0].seen["cavp"].pixels.shape == (40, 32, 32, 3)
    assert made[0].seen["timechat"].pixels.shape == (96, 32, 32, 3)
    assert made[0].seen["timechat"].pixels[-1].any()
    assert len(np.unique(made[0].seen["timechat"].seconds)) == min(96, info.frames)

    wave = read_audio(source)
    assert (wave is not None) == has_audio
    if wave is not None:
        assert len(wave) == round(info.seconds * 16_000)
        assert 0.001 < np.abs(wave).max() < 1.5

    new = sine(info.seconds)
    write_video(source, target, new)
    assert packets(target) == packets(source)
    after = probe(target)
    assert (after.seconds, after.fps, after.frames) == (info.seconds, info.fps, info.frames)
    back = read_audio(target)
    np.testing.assert_allclose(back[2000:-2000], new[2000:-2000], atol=0.02)

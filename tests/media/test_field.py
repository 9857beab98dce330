"""Files as people have them are read and written as players show them."""

import time
from fractions import Fraction
from itertools import islice
from pathlib import Path
from struct import pack

import av
import numpy as np
import pytest
from av.stream import Disposition

from mfm_jax.errors import MediaError, UsageError
from mfm_jax.media import packets as media_packets
from mfm_jax.media.clock import Stamps, shifts
from mfm_jax.media.frames import windows
from mfm_jax.media.probe import probe
from mfm_jax.media.scaling import resize_cavp
from mfm_jax.media.soundtrack import read_audio
from mfm_jax.media.write import check_video_target, write_video
from tests.media.field import (
    FPS,
    SMALL,
    box,
    boxes,
    numbers,
    remuxed,
    with_edits,
    write_clip,
    write_fields,
)


def shown(path: Path) -> list[int]:
    """Return the numbers of the frames that CAVP sees at the clip's own rate."""
    count = round(probe(path).seconds * FPS)
    return numbers(np.concatenate([w.seen["cavp"].pixels for w in windows(path, SMALL)])[:count])


def heard(path: Path) -> list[float]:
    wave = read_audio(path)
    assert wave is not None
    loud = np.flatnonzero(np.abs(wave) > 0.3)
    return [float(i) / 16_000 for k, i in enumerate(loud) if k == 0 or i - loud[k - 1] > 800]


def near(seconds):
    return pytest.approx(seconds, abs=0.004)


def check(
    path: Path, frames, clicks=None, *, into=".mp4", note: str | None = "", precise=True
) -> None:
    """Check what is seen and heard of a file, and of what is written from it.

    Args:
        note: a part of the only note on writing; no note if empty; any if None.
    """
    frames = list(frames)
    assert shown(path) == frames
    assert probe(path).frames == len(frames)
    if clicks is not None:  # an edit list is followed packet by packet, of 21 ms
        assert heard(path) == pytest.approx(clicks, abs=0.004 if precise else 0.011)
    sound = np.zeros(len(frames) * 640, np.float32)
    sound[3200:3400] = 0.8
    target = path.with_name(f"written{into}")
    notes = write_video(path, target, sound)
    assert shown(target) == frames
    assert probe(target).frames == len(frames)
    assert heard(target) == near([0.2])
    if note is not None:
        assert len(notes) == bool(note)
        assert note in "".join(notes)


# --- clocks ---------------------------------------------------------------------------------------

MPEG = {"codec": "mpeg2video", "sound": "mp2"}
KINDS = {"ts": {"b_frames": 2}, "flv": {}, "mpg": MPEG, "mkv": {"b_frames": 2}}


@pytest.mark.parametrize("kind", ["ts", "flv", "mpg"])
def test_recordings_joined_byte_by_byte_are_one_after_the_other(tmp_path, kind):
    made = [
        write_clip(tmp_path / f"{i}.{kind}", range(12 * i, 12 * i + 12), [click], **KINDS[kind])
        for i, click in enumerate([0.1, 0.3, 0.2])
    ]
    path = tmp_path / f"joined.{kind}"
    path.write_bytes(b"".join(part.read_bytes() for part in made))
    check(path, range(36), [0.1, 0.78, 1.16], note="encoded anew")


@pytest.mark.parametrize("kind", ["mkv", "webm"])
def test_joined_live_recordings_of_matroska(tmp_path, kind):
    """Their length is not stored, so that FFmpeg reads on behind the first one."""
    webm = {"codec": "libvpx", "sound": "libopus"} if kind == "webm" else {"b_frames": 2}
    made = [
        write_clip(
            tmp_path / f"{i}.{kind}",
            range(12 * i, 12 * i + 12),
            [click],
            options={"live": "1"},
            **webm,
        )
        for i, click in enumerate([0.1, 0.3])
    ]
    path = tmp_path / f"joined.{kind}"
    path.write_bytes(b"".join(part.read_bytes() for part in made))
    check(path, range(24), [0.1, 0.78], note="encoded anew")


@pytest.mark.parametrize("kind", ["ts", "flv"])
@pytest.mark.parametrize("which", ["-+", "+-+", "+--+", "-+-"])
def test_joined_recordings_of_which_some_are_silent(tmp_path, kind, which):
    made = {
        sign: write_clip(
            tmp_path / f"{sign}.{kind}",
            range(20),
            [0.2, 0.5] if sign == "+" else None,
            **KINDS[kind],
        )
        for sign in "+-"
    }
    path = tmp_path / f"joined.{kind}"
    path.write_bytes(b"".join(made[sign].read_bytes() for sign in which))
    assert shown(path) == [*range(20)] * len(which)
    begins = [0.8 * number for number, sign in enumerate(which) if sign == "+"]
    assert heard(path) == near([begin + click for begin in begins for click in (0.2, 0.5)])


def test_recordings_of_other_sizes_and_rates_can_be_joined(tmp_path):
    path = tmp_path / "joined.ts"
    others = [((64, 48), 48_000), ((96, 64), 44_100), ((48, 64), 32_000)]
    made = [
        write_clip(
            tmp_path / f"{i}.ts", range(12 * i, 12 * i + 12), [0.1, 0.3], size=size, rate=rate
        )
        for i, (size, rate) in enumerate(others)
    ]
    path.write_bytes(b"".join(part.read_bytes() for part in made))
    check(path, range(36), [0.1, 0.3, 0.58, 0.78, 1.06, 1.26], note="encoded anew")


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi"])
def test_joined_files_of_which_players_show_the_first_are_refused(tmp_path, kind):
    path = write_clip(tmp_path / f"a.{kind}", range(12), None)
    assert probe(path).frames == 12
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(MediaError, match="several files joined byte by byte"):
        probe(path)


@pytest.mark.parametrize("kind", [*KINDS, "mp4"])
def test_a_clock_that_leaps_ahead_makes_no_pause(tmp_path, kind):
    path = write_clip(
        tmp_path / f"a.{kind}",
        range(30),
        [0.2, 0.9],
        shift=lambda seconds: seconds + (600 if seconds >= 0.52 else 0),
        **KINDS.get(kind, {}),
    )
    assert len(list(windows(path, SMALL))) == 2
    check(path, range(30), [0.2, 0.9], note=None)


@pytest.mark.parametrize("kind", ["mkv", "mp4"])
def test_a_later_start_lies_in_the_recording_without_the_leap(tmp_path, kind):
    """An index has the times with the leap, and would lead to another place."""
    frames = [i // 10 for i in range(360)]
    path = write_clip(
        tmp_path / f"a.{kind}",
        frames,
        [11.5, 13.7],
        gop=50,
        shift=lambda seconds: seconds + (600 if seconds >= 12 else 0),
    )
    for start in (11.0, 13.0):
        (window,) = windows(path, SMALL, start=start, count=1)
        assert numbers(window.seen["cavp"].pixels) == frames[round(start * FPS) :][:FPS]
    wave = read_audio(path, start=13.0, seconds=1.0)
    assert np.flatnonzero(np.abs(wave) > 0.3)[0] / 16_000 == near(0.7)


def test_a_long_still_that_nothing_contradicts_stays(tmp_path):
    path = write_clip(tmp_path / "a.mp4", range(4), None, shift=lambda s: s if s < 0.12 else s + 20)
    assert probe(path).seconds == pytest.approx(20.16, abs=0.1)


def stamps(times, audio, every=0.04, place=0):
    times = np.array(times, float)
    return Stamps(
        place + 2 * np.arange(len(times)), times, times, np.full(len(times), every), audio
    )


def test_the_clock_of_one_stream_alone():
    picture = np.arange(100) * 0.04
    sound = np.where(picture < 2, picture, picture + 1000)
    video, audio = shifts([stamps(picture, False), stamps(sound, True, place=1)], restarts=False)
    assert not video.any()
    np.testing.assert_allclose(sound + audio, picture, atol=0.05)
    # One that was wrong for a while returns to where the picture is.
    sound = np.where((picture >= 2) & (picture < 3), picture + 1000, picture)
    video, audio = shifts([stamps(picture, False), stamps(sound, True, place=1)], restarts=False)
    assert not video.any()
    assert not audio[picture >= 3].any()
    np.testing.assert_allclose(sound + audio, picture, atol=0.05)


def test_sound_that_ends_before_a_joint_keeps_to_its_picture():
    """The first recording of 60 s has sound for 20 s; the second one has it from the beginning."""
    picture = np.concatenate([np.arange(1500), np.arange(250)]) * 0.04
    sound = np.concatenate([np.arange(500), np.arange(250)]) * 0.04
    place = np.concatenate([2 * np.arange(500), 3000 + 2 * np.arange(250)]) + 1
    video, audio = shifts(
        [
            stamps(picture, False),
            Stamps(place, sound, sound, np.full(len(sound), 0.04), True),
        ],
        restarts=True,
    )
    np.testing.assert_allclose(video[1500:], 60, atol=1e-6)
    np.testing.assert_allclose(audio[500:], 60, atol=1e-6)


def test_a_part_of_a_video_that_an_edit_list_joins(tmp_path):
    """What is cut off between the pieces reaches further than what is read for the part."""
    path = write_clip(tmp_path / "a.mp4", [i // 10 for i in range(250)], None)
    with_edits(path, [(1.0, 0.4), (1.0, 8.8)])
    (window,) = windows(path, SMALL, start=0.6, count=1)
    frames = [*range(25, 35), *range(220, 235)]
    assert numbers(window.seen["cavp"].pixels) == [i // 10 for i in frames]


def test_the_work_grows_with_the_packets_and_not_with_their_square():
    """A small file can let its clock break at each of many packets."""
    rng, began = np.random.default_rng(0), time.monotonic()
    picture, sound = (np.arange(20_000) * 0.04 + rng.integers(0, 1000, 20_000) for _ in range(2))
    found = shifts([stamps(picture, False), stamps(sound, True, place=1)], restarts=True)
    assert np.isfinite(np.concatenate(found)).all()
    assert time.monotonic() - began < 8


# --- order ----------------------------------------------------------------------------------------


def test_b_frames_in_avi_are_shown_in_the_order_of_the_decoder(tmp_path):
    source = write_clip(tmp_path / "a.mp4", range(30), None, b_frames=3, gop=12)
    check(remuxed(source, tmp_path / "a.avi"), range(30), note="does not store when")


@pytest.mark.parametrize("b_frames", [0, 2])
def test_sound_in_avi_is_in_step(tmp_path, b_frames):
    """FFmpeg guesses presentation times a frame or two late."""
    path = write_clip(
        tmp_path / "a.avi", range(30), [0.3, 0.9], b_frames=b_frames, sound="pcm_s16le"
    )
    check(path, range(30), [0.3, 0.9], note=None)


def test_a_packed_bitstream_of_divx(tmp_path):
    """A P frame and the B frame before it lie in one packet, and an empty one follows."""
    plain = tmp_path / "plain.avi"
    with av.open(str(plain), "w") as out:
        track = out.add_stream("mpeg4", rate=FPS, options={"bf": "1"})
        track.bit_rate = 4_000_000
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        track.codec_context.max_b_frames = 1
        made = []
        for number in range(21):
            pixels = np.full((48, 64, 3), 20 + 6 * number, np.uint8)
            made += track.encode(av.VideoFrame.from_ndarray(pixels, "rgb24"))
        made += track.encode()
        data = [bytes(packet) for packet in made]
        out.mux(made)
    by_kind = [(d, (d[d.index(b"\x00\x00\x01\xb6") + 4] >> 6)) for d in data]  # 0 I, 1 P, 2 B
    assert [kind for _, kind in by_kind].count(2) > 5
    nothing = b"\x00\x00\x01\xb6\x50\x00\x00\x00"  # a P frame that is not coded
    userdata = b"\x00\x00\x01\xb2DivX503b1393p"
    packed: list[bytes] = []
    for number, (d, kind) in enumerate(by_kind):
        if kind == 2:
            packed[-1] += d
            packed.append(nothing)
        else:
            packed.append((userdata if number == 0 else b"") + d)
    with av.open(str(plain)) as template, av.open(str(tmp_path / "a.avi"), "w") as out:
        copy = out.add_stream_from_template(template.streams.video[0], opaque=True)
        for number, d in enumerate(packed):
            packet = av.Packet(d)
            packet.stream, packet.time_base = copy, Fraction(1, FPS)
            packet.pts = packet.dts = number
            packet.is_keyframe = number == 0
            out.mux(packet)
    assert shown(tmp_path / "a.avi") == list(range(21))


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("codec", ["h264", "m4v"])
def test_elementary_streams_have_the_rate_of_their_header(tmp_path, codec, b_frames):
    if codec == "m4v" and b_frames:
        pytest.skip("the encoder makes none here")
    source = write_clip(
        tmp_path / "a.mp4",
        range(20),
        None,
        codec="libx264" if codec == "h264" else "mpeg4",
        b_frames=b_frames,
    )
    check(remuxed(source, tmp_path / f"a.{codec}"), range(20), note=None)


@pytest.mark.parametrize("into", [".mp4", ".mkv"])
def test_two_fields_of_which_only_the_first_has_a_time_are_one_frame(tmp_path, into):
    """Broadcasters and camcorders write H.264 in fields, each of which FFmpeg makes a packet."""
    check(write_fields(tmp_path / "a.ts", range(25)), range(25), into=into, note="second fields")


@pytest.mark.parametrize("kind", ["mp4", "ts"])
def test_a_stream_without_whole_keyframes(tmp_path, kind):
    """Behind a keyframe of periodic intra refresh a decoder shows nothing for a second."""
    noise = np.random.default_rng(0).integers(0, 255, (48, 448, 3)).astype(np.uint8)
    path = tmp_path / f"a.{kind}"
    x264 = {"x264-params": "intra-refresh=1:keyint=50:bframes=0", "preset": "ultrafast"}
    with av.open(str(path), "w") as out:
        track = out.add_stream("libx264", rate=FPS, options=x264)
        track.width, track.height, track.pix_fmt = 448, 48, "yuv420p"
        for number in range(12 * FPS):
            rolled = np.ascontiguousarray(np.roll(noise, 3 * number, axis=1))
            out.mux(track.encode(av.VideoFrame.from_ndarray(rolled, "rgb24")))
        out.mux(track.encode())
    with av.open(str(path)) as container:
        every = [
            resize_cavp(f.to_ndarray(format="rgb24"), (16, 16)) for f in container.decode(video=0)
        ]
    for start in (8.2, 10.2):
        (window,) = windows(path, SMALL, start=start, count=1)
        first = round(start * FPS)
        np.testing.assert_array_equal(window.seen["cavp"].pixels, every[first : first + FPS])


@pytest.mark.parametrize(
    ("kind", "codec", "every"),
    [("mpg", "mpeg2video", 1), ("ts", "mpeg2video", 12), ("ts", "libx264", 4)],
)
def test_times_that_only_some_frames_have(tmp_path, kind, codec, every):
    """Of several frames in one packet of MPEG only the first has a time; FFmpeg guesses others."""

    def b_frames(track):
        if codec == "mpeg2video":
            track.codec_context.max_b_frames, track.codec_context.gop_size = 2, 12
            track.bit_rate = 4_000_000

    path = write_clip(
        tmp_path / f"a.{kind}",
        range(36),
        [0.3, 1.1],
        codec=codec,
        b_frames=2,
        gop=12,
        sound="mp2",
        prepare=b_frames,
    )
    data = bytearray(path.read_bytes())
    begins = [i for i in range(len(data)) if data[i : i + 4] == b"\x00\x00\x01\xe0"]
    timed = [i for i in begins if data[i + 7] & 0xC0]
    for number, i in enumerate(timed):
        if number % every:
            data[i + 7] &= 0x3F  # no time is stored: stuffing instead
            data[i + 9 : i + 9 + data[i + 8]] = b"\xff" * data[i + 8]
    path.write_bytes(data)
    check(path, range(36), [0.3, 1.1], note="does not store when")


def test_hidden_frames_are_not_counted(tmp_path):
    """A reference that is never shown has a packet of its own in WebM."""
    plain = write_clip(tmp_path / "plain.webm", range(20), None, codec="libvpx")
    path = tmp_path / "a.webm"
    show = 0x10  # bit of the first byte of VP8
    with av.open(str(plain)) as source, av.open(str(path), "w") as out:
        copy = out.add_stream_from_template(source.streams.video[0], opaque=True)
        for number, packet in enumerate(p for p in source.demux(video=0) if p.size):
            if number % 5 == 4:
                data = bytearray(bytes(packet))
                assert data[0] & show
                data[0] &= ~show
                hidden = av.Packet(bytes(data))
                hidden.stream, hidden.time_base = copy, packet.time_base
                hidden.pts = hidden.dts = packet.pts - 1
                out.mux(hidden)
            packet.stream = copy
            out.mux(packet)
    with av.open(str(path)) as container:
        assert sum(bool(packet.size) for packet in container.demux(video=0)) == 24
    assert probe(path).frames == 20
    assert probe(path).seconds == pytest.approx(0.8, abs=0.002)
    write_video(path, tmp_path / "b.mkv", np.zeros(12_800, np.float32))
    assert probe(tmp_path / "b.mkv").frames == 20


def test_times_that_are_unknown_at_the_beginning_lead_up_to_the_first_one(tmp_path):
    """Matroska cannot store the negative times of these packets."""
    path = write_clip(
        tmp_path / "a.mkv",
        range(20),
        [0.5],
        shift=lambda seconds: seconds - 0.2,
        options={"avoid_negative_ts": "disabled"},
    )
    with av.open(str(path)) as container:
        assert next(container.demux(video=0)).pts is None
    check(path, range(20), [0.5])


@pytest.mark.parametrize(
    ("first", "last", "hidden"),
    [
        (0b10_00_0_0_1_0, 0, False),  # profile 0: a keyframe
        (0b10_00_0_1_0_0, 0, True),
        (0b10_00_0_1_0_1, 0, True),
        (0b10_00_1_0_0_0, 0, False),  # an old frame again
        (0b10_00_0_1_0_0, 0b110_00001, False),  # a superframe
        (0b10_11_0_0_0_1, 0, False),  # profile 3
        (0b10_11_0_0_1_0, 0, True),
    ],
)
def test_hidden_frames_of_vp9(first, last, hidden):
    assert media_packets.hides("vp9", memoryview(bytes([first, 0, last]))) == hidden


# --- orientation and choice of the stream ---------------------------------------------------------

MATRICES = {  # a, b, c, d of x' = a x + c y, y' = b x + d y
    "upright": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "half a turn": (-1, 0, 0, -1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "a turn right": (0, 1, -1, 0),
    "transposed the other way": (0, -1, -1, 0),
    "a turn left": (0, -1, 1, 0),
}


@pytest.mark.parametrize("kind", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("name", MATRICES)
def test_all_eight_orientations(tmp_path, name, kind):
    a, b, c, d = MATRICES[name]
    if kind == "mkv" and name in ("transposed", "transposed the other way"):
        pytest.skip("Matroska stores a turn and a mirroring left-right, which FFmpeg does not read")
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :24] = 240, 0, 0  # top left
    stored[:16, 24:] = 0, 240, 0  # top right
    with av.open(str(tmp_path / f"a.{kind}"), "w") as out:
        track = out.add_stream("libx264", rate=FPS, options={"crf": "4"})
        track.width, track.height, track.pix_fmt = 48, 32, "yuv420p"
        track.set_display_matrix([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30])
        for _ in range(5):
            out.mux(track.encode(av.VideoFrame.from_ndarray(stored, "rgb24")))
        out.mux(track.encode())
    # Where a corner comes to, by the matrix itself.
    quarters = {}
    for colour, (x, y) in enumerate([(-1, -1), (1, -1)]):
        quarters[colour] = (a * x + c * y, b * x + d * y)
    for path in (tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"):
        if path.stem == "b":
            assert write_video(tmp_path / f"a.{kind}", path, np.zeros(3200, np.float32)) == []
        (window,) = windows(path, SMALL)
        for frame in (window.seen["cavp"].pixels[0], window.seen["timechat"].pixels[0]):
            for colour, (x, y) in quarters.items():
                rows = slice(0, 8) if y < 0 else slice(8, 16)
                columns = slice(0, 8) if x < 0 else slice(8, 16)
                means = frame[rows, columns].reshape(-1, 3).mean(axis=0)
                assert means.argmax() == colour
                assert means.max() > 100
        turned = bool(a == 0)
        assert (probe(path).width, probe(path).height) == ((32, 48) if turned else (48, 32))


def test_the_video_is_the_stream_that_players_choose(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", range(20), [0.3])
    path = tmp_path / "a.mp4"
    with av.open(str(clip)) as source, av.open(str(path), "w") as out:
        preview = out.add_stream("mjpeg", rate=1)
        preview.width, preview.height, preview.pix_fmt = 320, 240, "yuvj420p"
        preview.disposition = Disposition(0)
        copies = {s.index: out.add_stream_from_template(s, opaque=True) for s in source.streams}
        for copy in copies.values():
            copy.disposition = Disposition.default
        for frame in (av.VideoFrame(320, 240, "yuvj420p"), None):
            out.mux(preview.encode(frame))
        for packet in source.demux():
            if packet.size:
                packet.stream = copies[packet.stream_index]
                out.mux(packet)
    check(path, range(20), [0.3], note="left out: another picture")


# --- edit lists -----------------------------------------------------------------------------------

EDITS = {
    "the end": [(0.8, 0.0)],
    "both ends": [(0.8, 0.4)],
    "the middle": [(0.4, 0.0), (0.4, 1.2)],
    "a pause, then a piece": [(0.48, -1), (0.8, 0.4)],
    "pieces in another order": [(0.4, 1.2), (0.4, 0.0)],
}


@pytest.mark.parametrize("into", [".mp4", ".mkv"])
@pytest.mark.parametrize("name", EDITS)
def test_what_an_edit_list_trims_off_is_neither_seen_nor_heard_nor_written(tmp_path, name, into):
    clicks = [0.1, 0.5, 1.0, 1.3]
    path = write_clip(tmp_path / "a.mp4", range(40), clicks, b_frames=2, gop=20)
    with_edits(path, EDITS[name])
    frames, sounds, at = [], [], 0.0
    for length, begin in EDITS[name]:
        if begin < 0:
            continue
        frames += range(round(begin * FPS), round((begin + length) * FPS))
        sounds += [c - begin + at for c in clicks if begin <= c < begin + length]
        at += length
    check(path, frames, sounds, into=into, note=None, precise=False)
    with av.open(str(tmp_path / f"written{into}")) as container:
        assert sum(1 for _ in container.decode(video=0)) == len(frames)


# --- cut short ------------------------------------------------------------------------------------

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


def test_fragments_that_begin_late_are_not_cut_short(tmp_path):
    path = write_clip(tmp_path / "a.mp4", range(40), [1.2], gop=10, options=FRAGMENTED)
    top = boxes(path.read_bytes())
    fragments = [i for i, (name, _) in enumerate(top) if name == b"moof"]
    assert len(fragments) == 4
    del top[fragments[0] : fragments[2]]
    path.write_bytes(b"".join(box(name, body) for name, body in top))
    check(path, range(20, 40), [0.4])


def test_a_delayed_track_is_not_cut_short(tmp_path):
    path = with_edits(write_clip(tmp_path / "a.mp4", range(20), None), [(3.0, -1), (0.8, 0.0)])
    check(path, range(20))


def test_a_header_that_declares_too_much_is_not_believed(tmp_path):
    path = write_clip(tmp_path / "a.mp4", range(20), [0.3])
    data = bytearray(path.read_bytes())
    for name, at in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24)):
        begin = -1
        while (begin := data.find(name, begin + 1)) > 0:
            data[begin + at : begin + at + 4] = pack(">I", 1 << 20)
    path.write_bytes(data)
    check(path, range(20), [0.3])
    path = write_clip(tmp_path / "a.mkv", range(20), [0.3])
    data = path.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3  # Duration, a double in milliseconds
    path.write_bytes(data[:at] + pack(">d", 60_000.0) + data[at + 8 :])
    check(path, range(20), [0.3])


@pytest.mark.parametrize("share", [0.4, 0.83])
@pytest.mark.parametrize("kind", ["faststart.mp4", "fragments.mp4", "a.mkv", "a.avi", "a.flv"])
def test_a_file_that_is_truly_cut_is_told(tmp_path, kind, share):
    options = {"faststart.mp4": {"movflags": "faststart"}, "fragments.mp4": FRAGMENTED}.get(kind)
    path = write_clip(
        tmp_path / kind, range(40), None if "avi" in kind else [0.3], gop=10, options=options
    )
    assert probe(path).frames == 40
    data = path.read_bytes()
    path.write_bytes(data[: round(len(data) * share)])
    with pytest.raises(MediaError, match=r"(is|damaged,) cut short|is damaged"):
        probe(path)


@pytest.mark.parametrize("kind", ["mp4", "mkv"])
def test_a_file_that_is_cut_behind_a_later_start_is_told(tmp_path, kind):
    options = {"movflags": "faststart"} if kind == "mp4" else {}
    frames = [i % 35 for i in range(350)]
    path = write_clip(tmp_path / f"a.{kind}", frames, None, gop=50, options=options)
    data = path.read_bytes()
    path.write_bytes(data[: round(len(data) * 0.97)])
    assert len(list(windows(path, SMALL, start=10.1, count=1))) == 1
    with pytest.raises(MediaError, match="is cut short"):
        list(windows(path, SMALL, start=12.0, count=3))


@pytest.mark.parametrize(("last", "seconds"), [(90_000, 0.8), (250, 10.76), (1, 0.8)])
def test_the_declared_length_of_the_last_frame(tmp_path, last, seconds):
    """An hour is a mistake; ten seconds may be meant."""
    path = write_clip(tmp_path / "a.mp4", range(20), None, last=last)
    assert probe(path).seconds == pytest.approx(seconds)


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "kind", "into", "tag"),
    [
        ("libsvtav1", "mkv", ".mp4", "av01"),
        ("libsvtav1", "mkv", ".webm", None),
        ("libx265", "mkv", ".mp4", "hvc1"),
        ("libx265", "mp4", ".MOV", "hvc1"),
        ("ffv1", "mkv", ".MKV", None),
        ("mpeg2video", "ts", ".mp4", None),
        ("libvpx-vp9", "webm", ".Mp4", "vp09"),
        ("mjpeg", "avi", ".mov", None),
    ],
)
def test_every_codec_that_the_container_holds_is_copied(tmp_path, codec, kind, into, tag, capfd):
    def pixels(track):
        track.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"

    source = write_clip(tmp_path / f"a.{kind}", range(10), None, codec=codec, prepare=pixels)
    target = tmp_path / f"b{into}"
    assert write_video(source, target, np.zeros(6400, np.float32)) == []
    with av.open(str(target)) as ours, av.open(str(source)) as theirs:
        copy, original = ours.streams.video[0], theirs.streams.video[0]
        assert copy.codec_context.codec.canonical_name == (
            original.codec_context.codec.canonical_name
        )
        if tag is not None:
            assert copy.codec_context.codec_tag == tag
        if kind != "ts":
            assert [bytes(p) for p in ours.demux(copy)] == [
                bytes(p) for p in theirs.demux(original)
            ]
    assert probe(target).frames == 10


def test_a_codec_that_cannot_be_copied_is_encoded_anew(tmp_path):
    source = write_clip(tmp_path / "a.asf", range(10), None, codec="wmv2")
    (note,) = write_video(source, tmp_path / "b.mp4", np.zeros(6400, np.float32))
    assert note == "the picture is encoded anew, because wmv2 cannot be copied into mp4"
    assert shown(tmp_path / "b.mp4") == shown(source)


@pytest.mark.parametrize("kind", [".mp4", ".mov", ".mkv"])
def test_what_belongs_to_a_film_comes_along_or_is_named(tmp_path, reference, kind):
    """The film has a title, two chapters, a timecode, a language and subtitles."""
    film, target = reference / "media" / "rich.mov", tmp_path / f"a{kind}"
    notes = write_video(film, target, np.zeros(120_000, np.float32))
    assert notes == (["left out: subtitles (mov_text)"] if kind == ".mkv" else [])
    with av.open(str(target)) as made, av.open(str(film)) as original:
        metadata = {k.lower(): v for k, v in made.metadata.items()}
        assert (metadata["title"], metadata["comment"]) == ("My holiday", "a note")
        ours, theirs = (
            [(c["start"] * c["time_base"], c["metadata"]["title"]) for c in f.chapters()]
            for f in (made, original)
        )
        assert ours == theirs
        picture = {k.lower(): v for k, v in made.streams.video[0].metadata.items()}
        assert (picture["timecode"], picture["language"]) == ("01:00:00:00", "jpn")
        if not notes:
            ours, theirs = (
                [
                    (bytes(p), p.pts * p.time_base)
                    for p in f.demux(f.streams.subtitles[0])
                    if p.size > 2
                ]
                for f in (made, original)
            )
            assert len(ours) == 2
            assert ours == theirs


def test_chapters_begin_with_the_picture_and_lost_metadata_is_named(tmp_path):
    plain, path = write_clip(tmp_path / "plain.mp4", range(40), [0.5]), tmp_path / "a.mkv"
    with av.open(str(plain)) as source, av.open(str(path), "w") as out:
        out.metadata.update({"title": "A title", "mood": "calm"})
        copies = {s.index: out.add_stream_from_template(s, opaque=True) for s in source.streams}
        chapter = {"time_base": Fraction(1, 1000), "metadata": {}}
        out.set_chapters(
            [
                chapter | {"id": n, "start": 1000 * n, "end": 1000 * n + 1000, "metadata": {}}
                for n in range(2)
            ]
        )
        for packet in source.demux():
            if packet.size:
                late = 0.4 if packet.stream.type == "video" else 0  # s
                packet.pts += round(late / packet.time_base)
                packet.dts += round(late / packet.time_base)
                packet.stream = copies[packet.stream_index]
                out.mux(packet)
    check(path, range(40), [0.1], note="left out: metadata (MOOD)")
    with av.open(str(tmp_path / "written.mp4")) as made:
        assert made.metadata["title"] == "A title"
        starts = [float(c["start"] * c["time_base"]) for c in made.chapters()]
    assert starts == pytest.approx([0.0, 0.6], abs=0.03)


@pytest.mark.parametrize(
    ("name", "into"), [("a.mkv", ".mp4"), ("joined.ts", ".mkv"), ("a.mp4", ".webm")]
)
def test_the_aspect_ratio_of_pixels_is_kept_or_named(tmp_path, name, into):
    def anamorphic(track):
        track.codec_context.sample_aspect_ratio = Fraction(16, 11)

    path = write_clip(tmp_path / name, range(12), None, prepare=anamorphic)
    if name == "joined.ts":
        path.write_bytes(2 * path.read_bytes())
    notes = write_video(path, tmp_path / f"b{into}", np.zeros(6400, np.float32))
    with av.open(str(tmp_path / f"b{into}")) as made:
        kept = made.streams.video[0].sample_aspect_ratio == Fraction(16, 11)
    assert kept == (into != ".webm")
    assert ("left out: the aspect ratio of pixels (16/11)" in notes) == (not kept)


def test_two_frames_at_one_time(tmp_path):
    """Matroska holds them; mp4 does not, and players show the second one."""
    path = write_clip(
        tmp_path / "a.mkv", range(20), None, shift=lambda s: 0.36 if 0.39 < s < 0.41 else s
    )
    expected = [*range(9), 10, 10, *range(11, 20)]
    assert shown(path) == expected
    (note,) = write_video(path, tmp_path / "b.mp4", np.zeros(12_800, np.float32))
    assert note.endswith("because several of its frames have the same time")
    assert shown(tmp_path / "b.mp4") == expected


def test_a_missing_source_is_told_before_the_target_is_tried(tmp_path):
    with pytest.raises(MediaError, match=r"x\.mp4 does not exist: check the path"):
        check_video_target(tmp_path / "x.mp4", tmp_path / "y.mp4")


# --- names, limits, strangers ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["12:30:05.mp4", "pipe:x.mp4", "http:a.mp4", "-i.mp4", "%03d.mp4"])
def test_a_name_is_never_an_address_or_a_pattern(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "a.mp4", range(10), [0.2]).rename(tmp_path / name)
    assert shown(Path(name)) == list(range(10))
    write_video(Path(name), Path(f"new {name}"), np.zeros(6400, np.float32))
    assert shown(tmp_path / f"new {name}") == list(range(10))


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile secret.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\n",
    ],
)
def test_only_containers_of_media_are_opened(tmp_path, text):
    write_clip(tmp_path / "secret.mp4", range(5), None)
    (tmp_path / "a.mp4").write_text(text)
    with pytest.raises(MediaError, match="is not a readable video"):
        probe(tmp_path / "a.mp4")


def test_what_a_file_claims_is_held_against_limits(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", range(10), None)
    for name, limit, message in (
        ("SECONDS", "1", None),
        ("PIXELS", "1000", "has 3072 pixels, more than the 1000"),
        ("STREAMS", "0", None),
        ("SECONDS", "many", "give a whole number above 0"),
    ):
        monkeypatch.setenv(f"MFM_MAX_{name}", limit)
        if message is None and limit != "0":
            assert probe(path).frames == 10
        else:
            with pytest.raises((MediaError, UsageError), match=message):
                probe(path)
        monkeypatch.delenv(f"MFM_MAX_{name}")
    long = write_clip(tmp_path / "b.mp4", range(3), None, shift=lambda s: s * 300_000)
    with pytest.raises(MediaError, match=r"more than the 14400 that are allowed.*MFM_MAX_SECONDS"):
        probe(long)


def test_a_frame_that_stays_for_hours_takes_no_memory(tmp_path):
    """34 KB that last three hours are thousands of windows, of which one at a time is made."""
    path = write_clip(tmp_path / "a.mp4", range(4), None, shift=lambda s: s * 67_500)
    later = next(islice(windows(path, SMALL), 3000, None))
    assert later.index == 3000
    assert numbers(later.seen["cavp"].pixels)[0] == 1


@pytest.mark.parametrize("kind", ["mp4", "mkv", "ts"])
def test_a_clip_late_in_a_long_file_costs_what_one_at_its_beginning_does(
    tmp_path, kind, monkeypatch
):
    clicks = [0.5 + 5 * k for k in range(12)]
    path = write_clip(
        tmp_path / f"a.{kind}", [i // 75 for i in range(1500)], clicks, gop=50, b_frames=2
    )
    (early,) = windows(path, SMALL, start=2.0, count=1)
    (late,) = windows(path, SMALL, start=50.12, count=1)
    assert numbers(late.seen["timechat"].pixels) == [16] * 4
    assert numbers(early.seen["timechat"].pixels)[0] == 0
    np.testing.assert_allclose(late.seen["cavp"].seconds[:3], [0, 0.04, 0.08], atol=0.021)
    wave = read_audio(path, start=50.12, seconds=1.0)
    assert len(wave) == 16_000
    assert np.flatnonzero(np.abs(wave) > 0.3)[0] / 16_000 == pytest.approx(0.38, abs=0.001)
    decoded, read = count_work(monkeypatch, lambda: next(windows(path, SMALL, 50.12, count=1)))
    assert decoded < 150
    if kind != "ts":  # which has no index
        assert read < 600


def test_sound_that_lies_far_before_its_picture_in_the_file(tmp_path):
    """Matroska is entered at a picture, where such sound is over already."""
    plain = write_clip(tmp_path / "a.mp4", [i // 75 for i in range(400)], [12.5, 13.4], gop=50)
    path = tmp_path / "a.mkv"
    with (
        av.open(str(plain)) as source,
        av.open(str(path), "w", container_options={"max_interleave_delta": "1"}) as out,
    ):
        copies = {s.index: out.add_stream_from_template(s, opaque=True) for s in source.streams}
        packets = [packet for packet in source.demux() if packet.size]
        ahead = {stream.index: 3.0 * (stream.type == "audio") for stream in source.streams}
        packets.sort(key=lambda p: p.dts * p.time_base - ahead[p.stream_index])
        for packet in packets:
            packet.stream = copies[packet.stream_index]
            out.mux(packet)
    wave = read_audio(path, start=12.04, seconds=2.0)
    loud = np.flatnonzero(np.abs(wave) > 0.3) / 16_000
    assert [loud[0], loud[-1]] == [near(0.46), near(1.364)]


def count_work(monkeypatch, call) -> tuple[int, int]:
    """Return how many frames a call decodes, and how many packets it remembers."""
    frames, packets = [], []
    packet_of, add = media_packets.packet_of, media_packets.Packets.add

    def counted(frame):
        frames.append(frame.pts)
        return packet_of(frame)

    def remembered(self, packet, place):
        packets.append(place)
        add(self, packet, place)

    monkeypatch.setattr("mfm_jax.media.frames.packet_of", counted)
    monkeypatch.setattr(media_packets.Packets, "add", remembered)
    call()
    return len(frames), len(packets)

from dataclasses import replace

import numpy as np
import pytest

from mfm_jax.data import records
from mfm_jax.data.clips import Clip, DataError, list_clips
from mfm_jax.data.decoded import (
    ClipSpec,
    DecodedSource,
    SynchformerSpec,
    decode_clip,
    to_float,
    write_decoded,
)
from mfm_jax.errors import MediaError
from mfm_jax.foley.labels import FoleyLabels
from mfm_jax.foley.world import World, write_world
from mfm_jax.media.frames import windows
from mfm_jax.media.soundtrack import read_audio
from tests.silent import write_silent

SPEC = ClipSpec(
    seconds=2.56, overlap=0.32, cavp_fps=12.5, cavp_size=32, timechat_frames=8, timechat_size=48
)
SHAPES = {
    "cavp": (32, 32, 32, 3),
    "timechat": (8, 48, 48, 3),
    "timechat_seconds": (8,),
    "wave": (40960,),
    "material": (),
    "kind": (),
    "materials": (8,),
    "kinds": (3,),
    "onsets": (32,),
    "onset_materials": (32,),
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Five clips, then one without sound and one that is no video."""
    folder = tmp_path_factory.mktemp("clips")
    made = list_clips(write_world(World(), range(5), folder))
    write_silent(made[0].path, folder / "silent.mp4")
    (folder / "text.mp4").write_text("not a video")
    return [*made, *(Clip(name, folder / f"{name}.mp4") for name in ("silent", "text"))]


@pytest.fixture(scope="module")
def media(clips, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "SHARD", 3)
        folder = tmp_path_factory.mktemp("media") / "of-clips"
        failed = write_decoded(clips, SPEC, folder, labels=FoleyLabels())
    assert [clip for clip, _ in failed] == ["silent", "text"]
    return folder


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        np.testing.assert_array_equal(value, theirs[name])


def test_a_clip_is_its_first_window(clips):
    decoded = decode_clip(clips[1], SPEC)
    window = next(windows(clips[1].path, SPEC.windows))
    np.testing.assert_array_equal(decoded["cavp"], window.seen["cavp"].pixels)
    np.testing.assert_array_equal(decoded["timechat"], window.seen["timechat"].pixels)
    np.testing.assert_allclose(
        decoded["timechat_seconds"], window.seen["timechat"].seconds, rtol=1e-6
    )
    wave = read_audio(clips[1].path)
    np.testing.assert_allclose(to_float(decoded["wave"]), wave, rtol=0, atol=0.51 / 32767)


def test_a_short_clip_is_padded_and_a_long_one_cut(clips):
    long = replace(SPEC, seconds=3.2)
    padded = decode_clip(clips[1], long)
    assert padded["cavp"].shape == (40, 32, 32, 3)
    np.testing.assert_array_equal(padded["cavp"][33:], padded["cavp"][32:33].repeat(7, axis=0))
    assert not padded["wave"][40960:].any()
    cut = decode_clip(clips[1], replace(SPEC, seconds=1.28))
    np.testing.assert_array_equal(cut["wave"], padded["wave"][:20480])
    np.testing.assert_array_equal(cut["cavp"], padded["cavp"][:16])


def test_a_clip_may_start_later_in_its_file(clips):
    half = replace(SPEC, seconds=1.28)
    whole, late = decode_clip(clips[1], SPEC), decode_clip(replace(clips[1], start=1.28), half)
    np.testing.assert_array_equal(late["cavp"], whole["cavp"][16:])
    np.testing.assert_array_equal(late["wave"], whole["wave"][20480:])
    assert 0 <= late["timechat_seconds"].min() < late["timechat_seconds"].max() < 1.28
    with pytest.raises(MediaError, match=r"ends at 2\.56 s"):
        decode_clip(replace(clips[1], start=2.56), SPEC)


def test_a_clip_that_shows_next_to_nothing_is_refused(clips):
    decode_clip(replace(clips[1], start=2.06), SPEC)
    with pytest.raises(MediaError, match=r"shows 0\.46 s from 2\.1 s on, and less than 0\.5 s is"):
        decode_clip(replace(clips[1], start=2.1), SPEC)


def test_the_folder_holds_every_clip_that_can_be_used(clips, media):
    source = DecodedSource(media)
    assert [source.id_of(i) for i in range(len(source))] == ["0", "1", "2", "3", "4"]
    for i, clip in enumerate(clips[:5]):
        element = source[i]
        same(element, {**decode_clip(clip, SPEC), **FoleyLabels().of(clip, SPEC.seconds)})
        assert {name: value.shape for name, value in element.items()} == SHAPES


def test_the_others_are_listed_with_the_reason(media):
    lines = (media / "failed.csv").read_text().splitlines()
    assert lines[0] == "clip,reason"
    assert lines[1].startswith("silent,")
    assert "has no sound" in lines[1]
    assert lines[2].startswith("text,")
    assert "not a readable video" in lines[2]


def test_processes_make_the_same_folder(clips, media, tmp_path, monkeypatch):
    monkeypatch.setattr(records, "SHARD", 3)
    again = tmp_path / "again"
    write_decoded(clips, SPEC, again, labels=FoleyLabels(), processes=2)
    files = [p.relative_to(media) for p in media.rglob("*") if p.is_file()]
    assert len(files) > 6
    for file in files:
        assert (again / file).read_bytes() == (media / file).read_bytes()


def test_a_finished_folder_is_left_alone_and_another_spec_refused(clips, media):
    before = {p: p.stat().st_mtime_ns for p in media.rglob("*")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "SHARD", 3)
        assert len(write_decoded(clips, SPEC, media, labels=FoleyLabels())) == 2
        with pytest.raises(DataError, match=r"spec\.cavp_size is 32, not 40"):
            write_decoded(clips, replace(SPEC, cavp_size=40), media, labels=FoleyLabels())
        with pytest.raises(DataError, match=r"fields\.material is"):
            write_decoded(clips, SPEC, media)
    assert {p: p.stat().st_mtime_ns for p in media.rglob("*")} == before


def test_clips_without_labels_are_pictures_and_sound(clips, tmp_path):
    write_decoded(clips[:1], SPEC, tmp_path / "plain")
    same(DecodedSource(tmp_path / "plain")[0], decode_clip(clips[0], SPEC))


def test_synchformer_learns_from_clips_that_fill_its_window(clips):
    """What it sees is what its encoder sees, and padding would tell the offset."""
    spec = SynchformerSpec(2.56, 25.0, 32, 48)
    decoded = decode_clip(clips[0], spec)
    (window,) = windows(clips[0].path, spec.windows)
    np.testing.assert_array_equal(decoded["synchformer"], window.seen["synchformer"].pixels)
    assert decoded["synchformer"].shape == (64, 32, 48, 3)
    assert (decoded["wave"].shape, len(decoded)) == ((40960,), 2)
    with pytest.raises(MediaError, match=r"shows 2\.36 s from 0\.2 s on, and less than 2\.51 s"):
        decode_clip(replace(clips[0], start=0.2), spec)

import json
from dataclasses import replace

import numpy as np
import pytest

from mfm_jax.data import records
from mfm_jax.data.clips import Clip, DataError, list_clips
from mfm_jax.data.decoded import MediaSource, decode_clip, labels, to_float, write_media
from mfm_jax.errors import MediaError
from mfm_jax.foley.world import KINDS, MATERIALS, World, read_events, write_world
from mfm_jax.media.frames import windows
from mfm_jax.media.soundtrack import read_audio
from mfm_jax.media.windows import WindowSpec
from mfm_jax.media.write import write_silent

SPEC = WindowSpec(
    seconds=2.56, overlap=0.32, cavp_fps=12.5, cavp_size=32, timechat_frames=8, timechat_size=48
)
NAMES = [material.name for material in MATERIALS]
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
def hard(tmp_path_factory):
    """A clip of two bodies that lasts for several windows."""
    return list_clips(write_world(World.hard(), [0], tmp_path_factory.mktemp("hard")))[0]


@pytest.fixture(scope="module")
def media(clips, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "SHARD", 3)
        return write_media(clips, SPEC, tmp_path_factory.mktemp("media") / "of-clips")


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        np.testing.assert_array_equal(value, theirs[name])


def test_a_clip_is_its_first_window(clips):
    decoded = decode_clip(clips[1], SPEC)
    window = next(windows(clips[1].path, SPEC))
    np.testing.assert_array_equal(decoded["cavp"], window.cavp_THWC)
    np.testing.assert_array_equal(decoded["timechat"], window.timechat_THWC)
    np.testing.assert_allclose(decoded["timechat_seconds"], window.timechat_seconds, rtol=1e-6)
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


def hot(names, present):
    return [name in present for name in names]


def test_labels_are_those_of_the_clip(clips):
    with_events = 0
    for clip in clips[:5]:
        told, record = labels(clip, 2.56), json.loads(clip.path.with_suffix(".json").read_text())
        events = read_events(clip.path)
        with_events += bool(events)
        assert NAMES[told["material"]] == record["material"]
        assert KINDS[told["kind"]] == record["kind"]
        assert told["materials"].tolist() == hot(NAMES, [record["material"]])
        assert told["kinds"].tolist() == hot(KINDS, [record["kind"]])
        times = told["onsets"][told["onsets"] >= 0]
        np.testing.assert_allclose(times, [event.time for event in events], rtol=1e-6)
    assert with_events


def test_each_window_of_a_long_clip_has_its_own_contacts(hard):
    events, record = read_events(hard.path), json.loads(hard.path.with_suffix(".json").read_text())
    starts, found = np.arange(0, record["seconds"], 2.56), []
    assert len(starts) > 2
    for start in starts:
        told = labels(replace(hard, start=float(start)), 2.56)
        count = int((told["onsets"] >= 0).sum())
        assert count < len(events)
        assert np.all((told["onsets"][:count] >= 0) & (told["onsets"][:count] < 2.56))
        assert np.all(told["onsets"][count:] == -1)
        assert np.all(told["onset_materials"][count:] == -1)
        found += [
            (start + time, NAMES[m])
            for time, m in zip(told["onsets"][:count], told["onset_materials"], strict=False)
        ]
        # The bodies are there in every window, whether they act in it or not.
        assert told["materials"].tolist() == hot(NAMES, record["materials"])
        assert told["kinds"].tolist() == hot(KINDS, record["kinds"])
        assert NAMES[told["material"]] == record["materials"][0]
        assert KINDS[told["kind"]] == record["kinds"][0]
    assert [name for _, name in found] == [event.material for event in events]
    np.testing.assert_allclose([t for t, _ in found], [event.time for event in events], atol=1e-5)
    assert len({name for _, name in found}) == 2


def test_the_sound_of_a_late_window_is_that_of_its_contacts(hard):
    late = replace(hard, start=2.56)
    wave = to_float(decode_clip(late, SPEC)["wave"])
    times = labels(late, SPEC.seconds)["onsets"]
    times = times[(times >= 0.02) & (times < 2.5)]
    assert len(times)
    levels = [[np.abs(wave[i : i + 160]).max() for i in (s - 240, s)] for s in samples(times)]
    # A contact may lie in the sound of another one, but hardly many.
    assert np.mean([after > before for before, after in levels]) > 0.7


def samples(times):
    return np.rint(times * 16_000).astype(int)


def test_a_record_without_lists_tells_the_only_body(clips, tmp_path):
    record = json.loads(clips[1].path.with_suffix(".json").read_text())
    older = {key: record[key] for key in record.keys() - {"materials", "kinds", "seconds"}}
    (tmp_path / "1.json").write_text(json.dumps(older))
    same(labels(Clip("1", tmp_path / "1.mp4"), 2.56), labels(clips[1], 2.56))


def test_without_labels_all_are_zero_or_minus_one(clips):
    told = labels(clips[-1], 2.56)
    assert (told["material"], told["kind"]) == (-1, -1)
    assert not told["materials"].any()
    assert not told["kinds"].any()
    np.testing.assert_array_equal(told["onsets"], np.full(32, -1, np.float32))
    np.testing.assert_array_equal(told["onset_materials"], np.full(32, -1, np.int32))


def test_more_contacts_than_places(tmp_path):
    events = [{"time": i / 20, "material": "drum"} for i in range(40)]
    (tmp_path / "a.json").write_text(json.dumps({"events": events}))
    told = labels(Clip("a", tmp_path / "a.mp4"), 2.56)
    np.testing.assert_allclose(told["onsets"], np.arange(32) / 20, rtol=1e-6)
    assert told["onset_materials"].tolist() == [1] * 32


def test_the_folder_holds_every_clip_that_can_be_used(clips, media):
    source = MediaSource(media)
    assert [source.id_of(i) for i in range(len(source))] == ["0", "1", "2", "3", "4"]
    for i, clip in enumerate(clips[:5]):
        element = source[i]
        same(element, {**decode_clip(clip, SPEC), **labels(clip, SPEC.seconds)})
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
    again = write_media(clips, SPEC, tmp_path / "again", processes=2)
    files = [p.relative_to(media) for p in media.rglob("*") if p.is_file()]
    assert len(files) > 6
    for file in files:
        assert (again / file).read_bytes() == (media / file).read_bytes()


def test_a_finished_folder_is_left_alone_and_another_spec_refused(clips, media):
    before = {p: p.stat().st_mtime_ns for p in media.rglob("*")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "SHARD", 3)
        assert write_media(clips, SPEC, media) == media
        with pytest.raises(DataError, match=r"spec\.cavp_size is 32, not 40"):
            write_media(clips, replace(SPEC, cavp_size=40), media)
    assert {p: p.stat().st_mtime_ns for p in media.rglob("*")} == before

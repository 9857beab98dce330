"""The labels of Foley clips, window by window."""

import json
from dataclasses import replace

import numpy as np
import pytest

from mfm_jax.data.clips import Clip, list_clips
from mfm_jax.data.decoded import ClipSpec, decode_clip, to_float
from mfm_jax.foley.labels import FoleyLabels
from mfm_jax.foley.world import KINDS, MATERIALS, World, read_events, write_world

SPEC = ClipSpec.tiny()
LABELS = FoleyLabels()
NAMES = [material.name for material in MATERIALS]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Five clips, then one without a record."""
    folder = tmp_path_factory.mktemp("clips")
    return [*list_clips(write_world(World(), range(5), folder)), Clip("text", folder / "text.mp4")]


@pytest.fixture(scope="module")
def hard(tmp_path_factory):
    """A clip of two bodies that lasts for several windows."""
    return list_clips(write_world(World.hard(), [0], tmp_path_factory.mktemp("hard")))[0]


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        np.testing.assert_array_equal(value, theirs[name])


def hot(names, present):
    return [name in present for name in names]


def test_labels_are_those_of_the_clip(clips):
    with_events = 0
    for clip in clips[:5]:
        told, record = LABELS.of(clip, 2.56), json.loads(clip.path.with_suffix(".json").read_text())
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
        told = LABELS.of(replace(hard, start=float(start)), 2.56)
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
    times = LABELS.of(late, SPEC.seconds)["onsets"]
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
    same(LABELS.of(Clip("1", tmp_path / "1.mp4"), 2.56), LABELS.of(clips[1], 2.56))


def test_without_labels_all_are_zero_or_minus_one(clips):
    told = LABELS.of(clips[-1], 2.56)
    assert (told["material"], told["kind"]) == (-1, -1)
    assert not told["materials"].any()
    assert not told["kinds"].any()
    np.testing.assert_array_equal(told["onsets"], np.full(32, -1, np.float32))
    np.testing.assert_array_equal(told["onset_materials"], np.full(32, -1, np.int32))


def test_more_contacts_than_places(tmp_path):
    events = [{"time": i / 20, "material": "drum"} for i in range(40)]
    (tmp_path / "a.json").write_text(json.dumps({"events": events}))
    told = LABELS.of(Clip("a", tmp_path / "a.mp4"), 2.56)
    np.testing.assert_allclose(told["onsets"], np.arange(32) / 20, rtol=1e-6)
    assert told["onset_materials"].tolist() == [1] * 32

import csv
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mfm_jax.data import records
from mfm_jax.data.clips import Clip, DataError
from mfm_jax.data.records import DatasetWriter, Failure, Field, RecordSource
from mfm_jax.runtime.failures import LOG
from mfm_jax.storage.parts import MACHINE

FIELDS = {"x": Field((2, 3), "float16"), "n": Field((), "int32")}
ABOUT = {"made": [1, 2]}
CLIPS = [Clip(f"clip{i:02d}", Path(f"{i}.mp4")) for i in range(11)]
BAD = {"clip02", "clip04", "clip05", "clip06", "clip07"}  # all of the second shard, and one more


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(records, "SHARD", 4)


def begin(folder, clips=CLIPS, about=ABOUT):
    return DatasetWriter.open(folder, "about.json", about, FIELDS, clips)


def example(clip, bad=BAD):
    number = int(clip.id[4:])
    if clip.id in bad:
        return Failure(clip.id, f"no, {number}")
    return {"x": np.full((2, 3), number / 8, np.float16), "n": np.array(number, np.int32)}


def write(writing, bad=BAD):
    for shard in writing.missing():
        writing.write(shard, (example(clip, bad) for clip in writing.shards[shard]))
    return writing.finish()


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_written_is_read(tmp_path):
    failed = write(begin(tmp_path, clips=CLIPS[::-1]))
    assert [f.id for f in failed] == sorted(BAD)
    source = RecordSource(tmp_path, "about.json")
    good = [clip for clip in CLIPS if clip.id not in BAD]
    assert [source.id_of(i) for i in range(len(source))] == [clip.id for clip in good]
    for i, clip in enumerate(good):
        expected = example(clip)
        assert source[i].keys() == expected.keys()
        for name, value in source[i].items():
            np.testing.assert_array_equal(value, expected[name])
            assert value.dtype == expected[name].dtype
    assert source.about["made"] == [1, 2]
    assert source.about["clips"] == 11


def test_failures_are_listed(tmp_path):
    write(begin(tmp_path))
    with (tmp_path / "failed.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[:3] == [["clip", "reason"], ["clip02", "no, 2"], ["clip04", "no, 4"]]


def test_tfds_reads_it_without_tensorflow_wherever_it_lies(tmp_path):
    write(begin(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    builder = tfds.builder_from_directory(tmp_path / "b" / "records")
    source = builder.as_data_source("train")
    assert builder.info.splits["train"].shard_lengths == [3, 0, 3]
    assert [example["id"] for example in source][-1] == b"clip10"
    assert "tensorflow" not in sys.modules


def test_a_source_goes_to_another_process(tmp_path):
    write(begin(tmp_path))
    source = RecordSource(tmp_path, "about.json")
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[3]["x"], source[3]["x"])
    assert repr(again) == repr(source)


def test_it_goes_on_where_it_stopped(tmp_path):
    write(begin(tmp_path / "straight"))
    stopped = tmp_path / "stopped"
    writing = begin(stopped)
    writing.write(1, (example(clip) for clip in writing.shards[1]))

    def interrupted():
        yield example(CLIPS[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        writing.write(0, interrupted())
    with pytest.raises(DataError, match="no finished dataset"):
        RecordSource(stopped, "about.json")

    writing = begin(stopped)
    assert writing.missing() == [0, 2]
    write(writing)
    assert contents(stopped) == contents(tmp_path / "straight")


def test_a_finished_dataset_stays_as_it_is(tmp_path):
    failed = write(begin(tmp_path))
    before = contents(tmp_path)
    writing = begin(tmp_path)
    assert writing.missing() == []
    assert writing.finish() == failed
    assert contents(tmp_path) == before


def test_two_at_once_agree(tmp_path):
    one, other = begin(tmp_path / "shared"), begin(tmp_path / "shared")
    for writing in (one, other):
        for shard in range(len(writing.shards)):
            writing.write(shard, (example(clip) for clip in writing.shards[shard]))
    assert one.finish() == other.finish()
    write(begin(tmp_path / "alone"))
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone")


def test_other_settings_or_clips_are_refused(tmp_path):
    writing = begin(tmp_path)
    for finished in (False, True):
        with pytest.raises(DataError, match=r"made is \[1, 2\], not \[1, 3\]"):
            begin(tmp_path, about={"made": [1, 3]})
        with pytest.raises(DataError, match="clips is 11, not 5"):
            begin(tmp_path, clips=CLIPS[:5])
        with pytest.raises(DataError, match="ids is"):
            begin(tmp_path, clips=[*CLIPS[:10], Clip("other", Path("10.mp4"))])
        if not finished:
            write(writing)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty and no dataset"):
        begin(tmp_path)
    with pytest.raises(DataError, match="cannot write"):
        begin(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="no clips"):
        begin(tmp_path / "new", clips=[])


def test_nothing_is_left_when_every_clip_fails(tmp_path):
    folder = tmp_path / "all-bad"
    with pytest.raises(DataError, match="none of 11 clips can be used: no, 0"):
        write(begin(folder), bad={clip.id for clip in CLIPS})
    assert not folder.exists()


def test_a_fault_of_the_program_stays_recorded_when_every_clip_fails(tmp_path):
    folder = tmp_path / "all-bad"
    for _ in range(2):
        writing = begin(folder)
        (folder / LOG).write_text("Traceback")
        with pytest.raises(DataError, match="none of 11 clips can be used"):
            write(writing, bad={clip.id for clip in CLIPS})
        assert [path.name for path in folder.iterdir()] == [LOG]


def test_names_of_clips_may_be_any_bytes(tmp_path):
    names = sorted(os.fsdecode(name) for name in (b"caf\xe9", b"\xff\xfe", "\u732b".encode()))
    writing = begin(tmp_path, clips=[Clip(name, Path(f"{name}.mp4")) for name in names])
    array = example(CLIPS[0])
    writing.write(0, [array, array, Failure(names[2], f"{names[2]} is empty")])
    assert writing.finish() == [Failure(names[2], f"{names[2]} is empty")]
    source = RecordSource(tmp_path, "about.json")
    assert [source.id_of(i) for i in range(len(source))] == names[:2]
    assert os.fsencode(names[2]) in (tmp_path / "failed.csv").read_bytes()


NOT_JSON = ('{"made": [1', "[" * 100_000, "[]", "{}", "\0")


@pytest.mark.parametrize("text", NOT_JSON, ids=range(len(NOT_JSON)))
def test_a_damaged_description(tmp_path, text):
    write(begin(tmp_path))
    (tmp_path / "about.json").write_text(text)
    with pytest.raises(DataError, match="is damaged"):
        RecordSource(tmp_path, "about.json")
    with pytest.raises(DataError, match="is damaged"):
        begin(tmp_path)


def test_a_damaged_note_is_made_again_once_it_is_removed(tmp_path):
    writing = begin(tmp_path)
    writing.write(1, (example(clip) for clip in writing.shards[1]))
    note = tmp_path / "shards" / "00001.json"
    note.write_text("")
    with pytest.raises(DataError, match=r"00001\.json is damaged: remove it and start again"):
        write(begin(tmp_path))
    note.unlink()
    write(begin(tmp_path))


def test_what_a_description_names_is_on_the_disk_before_it(tmp_path, monkeypatch):
    """A file, and its name in the folder, before the note; all of it before the description."""
    done, fsync, rename = [], os.fsync, os.rename

    def synced(handle):
        done.append(("on the disk", Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    def renamed(source, target, **where):
        done.append(("named", Path(target)))
        rename(source, target, **where)

    monkeypatch.setattr(os, "fsync", synced)
    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, renamed)
    write(begin(tmp_path))

    def between(first, last):
        return {os.path.relpath(path, tmp_path) for _, path in done[first:last]}

    named = {path.name: i for i, (what, path) in enumerate(done) if what == "named"}
    shard = named["clips-train.array_record-00001-of-00003"]
    what, part = done[shard - 1]
    assert (what, part.parent, part.name[0]) == ("on the disk", tmp_path / "records", ".")
    assert "records" in between(shard, named["00001.json"])
    before = between(named["00002.json"], named["about.json"])
    assert {"failed.csv", "records/dataset_info.json", "records/features.json"} <= before
    assert {"records", "shards", "."} <= before


def test_shards_of_another_size(tmp_path, monkeypatch):
    writing = DatasetWriter.open(tmp_path / "three", "about.json", ABOUT, FIELDS, CLIPS, shard=3)
    assert [len(shard) for shard in writing.shards] == [3, 3, 3, 2]
    for size, message in ((None, "shard is 3, not 4"), (5, "shard is 3, not 5")):
        with pytest.raises(DataError, match=message):
            DatasetWriter.open(tmp_path / "three", "about.json", ABOUT, FIELDS, CLIPS, shard=size)
    write(writing)
    source = RecordSource(tmp_path / "three", "about.json")
    assert [source.id_of(i) for i in (0, 5)] == ["clip00", "clip10"]
    begin(tmp_path / "four")
    with pytest.raises(DataError, match="shard is 4, not 3"):
        DatasetWriter.open(tmp_path / "four", "about.json", ABOUT, FIELDS, CLIPS, shard=3)


def test_what_a_killed_run_left_unfinished_is_removed(tmp_path):
    begin(tmp_path / "killed")
    left = [
        f".{MACHINE}01234567.json",
        f"records/.{MACHINE}01234567",
    ]
    for name in left:
        (tmp_path / "killed" / name).write_text("half")
    write(begin(tmp_path / "killed"))
    write(begin(tmp_path / "whole"))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mfm_jax.data.clips import Clip, DataError, list_clips
from mfm_jax.data.sources import hold_out

ROOT = Path(__file__).parents[2]


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write(folder, text, name="clips.csv"):
    (folder / name).write_text(text)
    return folder / name


def test_a_folder_gives_its_videos_by_name(tmp_path):
    touch(tmp_path, "b.mp4", "a.MKV", "clips.csv", "a.json", "below/c.mp4")
    assert list_clips(tmp_path) == [
        Clip("a", tmp_path / "a.MKV"),
        Clip("b", tmp_path / "b.mp4"),
    ]


def test_a_csv_names_files_beside_it(tmp_path):
    source = write(tmp_path, "file,seed\nb.mp4,1\nin/a.mp4,2\n/elsewhere/c.mp4,3\n")
    assert list_clips(source) == [
        Clip("/elsewhere/c", Path("/elsewhere/c.mp4")),
        Clip("b", tmp_path / "b.mp4"),
        Clip("in/a", tmp_path / "in/a.mp4"),
    ]


def test_a_csv_may_say_where_a_clip_starts_and_what_it_is_called(tmp_path):
    source = write(
        tmp_path, "\ufefffile,start,id\na.mp4,,\na.mp4,2.5,\na.mp4,30,third\nb.mp4, 0 ,\n"
    )
    assert list_clips(source) == [
        Clip("a", tmp_path / "a.mp4"),
        Clip("a@2.5", tmp_path / "a.mp4", 2.5),
        Clip("b", tmp_path / "b.mp4"),
        Clip("third", tmp_path / "a.mp4", 30.0),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'file'"),
        ("id,start,label,split\nx,1,dog,train\n", r"no column 'file' \(its first line has id"),
        ("file\n", "lists no clip"),
        ("file,start\na.mp4,soon\n", "line 2: start 'soon' is no number of seconds"),
        ("file,start\na.mp4,-1\n", "line 2: start '-1'"),
        ("file,start\na.mp4,nan\n", "line 2: start 'nan'"),
        ("file,start\na.mp4,0\n,1\n", "line 3: no file is named"),
        ("file\n.\n", "line 2: no file is named"),
        ("id,\u00b2,dog,train\n", "no column 'file'"),
        ("id," + "9" * 5000 + ",dog,train\n", "no column 'file'"),
        ("file\na.mp4\na.mkv\n", "a.mp4 and a.mkv are both called 'a'"),
        ("file,id\na.mp4,x\nb.mp4,x\n", "both called 'x'"),
        ("file,id\na.mp4,x\0\n", "not a CSV of UTF-8 text .line 2"),
    ],
)
def test_a_csv_that_cannot_be_used(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        list_clips(write(tmp_path, text))


VGGSOUND = (
    '---g-f_I2yQ,1,people marching,test\n--0PQM4-hqg,30,"waterfall, burbling",train\n'
    "-0abc_DEF12,115,mouse squeaking,train\nzzzzzzzzzzz,0,dog barking,train\n"
)


def test_vggsounds_own_csv_and_the_names_of_its_videos(tmp_path):
    """Three ways in which its videos are named, and one that is no longer to be had."""
    videos = tmp_path / "videos"
    touch(videos, "---g-f_I2yQ_000001.mp4", "--0PQM4-hqg_30.webm", "-0abc_DEF12_115000_125000.mkv")
    source = write(tmp_path, VGGSOUND, "vggsound.csv")
    assert list_clips(source, videos=videos) == [
        Clip("---g-f_I2yQ_000001", videos / "---g-f_I2yQ_000001.mp4"),
        Clip("--0PQM4-hqg_000030", videos / "--0PQM4-hqg_30.webm"),
        Clip("-0abc_DEF12_000115", videos / "-0abc_DEF12_115000_125000.mkv"),
        Clip("zzzzzzzzzzz_000000", videos / "zzzzzzzzzzz_000000.mp4"),
    ]
    (test,) = list_clips(source, videos=videos, split="test")
    assert test.id == "---g-f_I2yQ_000001"
    assert len(list_clips(source, videos=videos, split="train")) == 3


def test_a_split_of_a_csv(tmp_path):
    source = write(tmp_path, "file,split\na.mp4,train\nb.mp4,test\nc.mp4,train\n")
    elsewhere = tmp_path / "elsewhere"
    clips = list_clips(source, videos=elsewhere, split="train")
    assert [clip.path for clip in clips] == [elsewhere / "a.mp4", elsewhere / "c.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (VGGSOUND + "broken,line\n", "line 5 is not one of VGGSound: broken,line"),
        (VGGSOUND, "no clip of the split 'valid'; it has test, train"),
        ("file,split\na.mp4,train\n", "no clip of the split 'valid'; it has train"),
        ("file\na.mp4\n", "has no column 'split' to choose 'valid' by"),
    ],
)
def test_a_split_that_is_not_there(tmp_path, text, message):
    touch(tmp_path, "a.mp4")
    with pytest.raises(DataError, match=message):
        list_clips(write(tmp_path, text), split="valid")


def test_a_folder_has_no_splits(tmp_path):
    touch(tmp_path, "a.mp4")
    with pytest.raises(DataError, match="is a folder"):
        list_clips(tmp_path, split="train")


def test_not_a_csv_at_all(tmp_path):
    (tmp_path / "clips.csv").write_bytes(b"file\n\xff\xfe\x00\n")
    with pytest.raises(DataError, match="not a CSV of UTF-8 text"):
        list_clips(tmp_path / "clips.csv")


def test_hidden_files_are_no_videos(tmp_path):
    touch(tmp_path, "a.mp4", "._a.mp4", ".a-0123.mp4", ".mp4", "-b.mp4", "_c.mp4")
    assert [clip.id for clip in list_clips(tmp_path)] == ["-b", "_c", "a"]
    (videos := tmp_path / "videos").mkdir()
    touch(videos, "._---g-f_I2yQ_000001.mp4", "x.mp4")
    clips = list_clips(write(tmp_path, VGGSOUND, "vggsound.csv"), videos=videos)
    assert clips[0].path == videos / "---g-f_I2yQ_000001.mp4"


def test_names_that_are_not_utf_8(tmp_path):
    names = [os.fsdecode(name) for name in (b"caf\xe9", b"\xff\xfe")]
    touch(tmp_path, *(f"{name}.mp4" for name in names))
    assert [clip.id for clip in list_clips(tmp_path)] == names
    source = tmp_path / "clips.csv"
    source.write_bytes(b"file\n" + b"".join(os.fsencode(f"{name}.mp4\n") for name in names))
    assert list_clips(source) == list_clips(tmp_path)
    train, heldout = hold_out(list_clips(source), 0.5)
    assert len(train) + len(heldout) == 2


LIST = """
from pathlib import Path
from mfm_jax.data.clips import list_clips
for place in (".", "clips.csv"):
    print([(ascii(clip.id), clip.path.exists()) for clip in list_clips(Path(place))])
"""


def test_ids_do_not_depend_on_the_locale(tmp_path):
    names = (b"caf\xe9.mp4", "\u732b.mp4".encode())
    touch(tmp_path, *map(os.fsdecode, names))
    (tmp_path / "clips.csv").write_bytes(b"file\n" + b"\n".join(names))
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # names are ASCII
    for environment in ({}, {"LC_ALL": "C"}, plain):
        said = subprocess.run(
            [sys.executable, "-c", LIST], cwd=tmp_path, check=True, capture_output=True, text=True,
            env={"PYTHONPATH": str(ROOT), **environment},
        ).stdout  # fmt: skip
        ids = [(ascii(os.fsdecode(b"caf\xe9")), True), (ascii("\u732b"), True)]
        assert said == f"{ids}\n" * 2


def test_what_is_neither_a_folder_nor_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is a device or a pipe: give a folder of videos or a CSV"):
        list_clips(tmp_path / "pipe")


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        list_clips(tmp_path / "absent")
    with pytest.raises(DataError, match="no video in folder"):
        list_clips(tmp_path)


def test_two_videos_of_one_name_in_a_folder(tmp_path):
    touch(tmp_path, "a.mp4", "a.webm")
    with pytest.raises(DataError, match=r"a\.mp4 and a\.webm"):
        list_clips(tmp_path)

"""Files and folders are written atomically."""

import subprocess
import sys

import numpy as np
import pytest

from mfm_jax.errors import WriteError
from mfm_jax.media.audio import write_wav
from mfm_jax.storage import files
from tests.full_disk import full_disk


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_bytes(b"old")

    def fail(target):
        with files.atomic_write(target) as part:
            part.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail(target)
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_an_unwritable_target_is_one_clear_line(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.wav").mkdir()
    for target in ("missing/a.wav", "file/a.wav", "folder.wav"):
        pattern = rf"^cannot write .*{target} \(.*\): choose"
        with pytest.raises(WriteError, match=pattern), files.atomic_write(tmp_path / target):
            pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.wav"]


def test_text_is_replaced_in_one_step(tmp_path):
    files.write_text(tmp_path / "new" / "a.txt", "first")
    files.write_text(tmp_path / "new" / "a.txt", "second")
    assert (tmp_path / "new" / "a.txt").read_text() == "second"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_a_failed_folder_is_not_there(tmp_path):
    def fail():
        with files.new_folder(tmp_path / "a") as folder:
            (folder / "half").touch()
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert not list(tmp_path.iterdir())
    with files.new_folder(tmp_path / "a") as folder:
        (folder / "whole").touch()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["whole"]


HALF = """
import os, sys
from pathlib import Path
from mfm_jax.storage.files import atomic_write
with atomic_write(Path(sys.argv[1])) as part:
    part.write_text("half")
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    elsewhere = f".a-{'0000' if files.MACHINE != '0000' else '1111'}01234567.txt"
    others = ["a.txt", ".hidden", ".a-0123.txt", elsewhere]
    for name in others:
        (tmp_path / name).write_text("mine")
    (tmp_path / f".b-{files.MACHINE}01234567").mkdir()
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", HALF, str(tmp_path / name)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("killed.txt", "alive.txt")
    ]
    for writer in writers:
        assert writer.stdout.readline() == "begun\n"
    writers[0].kill()
    writers[0].communicate()
    assert len(list(tmp_path.iterdir())) == 7
    files.remove_parts(tmp_path)
    assert [p.name for p in tmp_path.glob(".killed*")] == []
    writers[1].communicate("")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*others, f".b-{files.MACHINE}01234567", "alive.txt"]
    )
    files.remove_parts(tmp_path / "absent")


def test_a_part_that_is_taken_for_a_killed_ones_is_made_again(tmp_path, monkeypatch):
    """Another process may look for abandoned files between the creation and the lock of one."""
    lock, looks = files.fcntl.flock, []

    def looked_at(handle, how):
        if not looks:
            looks.append(how)
            files.remove_parts(tmp_path)
        lock(handle, how)

    monkeypatch.setattr(files.fcntl, "flock", looked_at)
    with files.atomic_write(tmp_path / "a.txt") as part:
        part.write_text("whole")
        files.remove_parts(tmp_path)
    assert len(looks) == 1
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_no_room_is_one_line_that_names_the_file_and_leaves_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with full_disk():
        with pytest.raises(WriteError, match=r"write .*a\.txt \(.*\): make room there"):
            files.write_text(tmp_path / "a.txt", "x" * 99)
        with pytest.raises(WriteError, match=r"write .*a\.wav \(.*\): make room there"):
            write_wav(tmp_path / "a.wav", np.zeros(99, np.float32))
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]

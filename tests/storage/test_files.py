"""Files and folders are written atomically."""

import os
import subprocess
import sys
import traceback

import numpy as np
import pytest

from mfm_jax.errors import WriteError
from mfm_jax.media.audio import write_sound
from mfm_jax.storage import files, locks, parts
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
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    before = sorted(p.name for p in tmp_path.iterdir())
    long = "x" * 252 + ".wav"
    targets = ("missing/a.wav", "file/a.wav", "folder.wav", "loop.wav", "pipe.wav", long)
    for target in targets:
        pattern = rf"^cannot write .*{target} \(.*\): choose"
        with pytest.raises(WriteError, match=pattern):
            files.check_target(tmp_path / target)
        with pytest.raises(WriteError, match=pattern), files.atomic_write(tmp_path / target):
            pass
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_the_longest_name_of_a_file_can_be_written(tmp_path):
    for suffix in (".mp4", f".{'y' * 99}"):
        target = tmp_path / ("é" * ((255 - len(suffix)) // 2) + suffix)
        files.check_target(target)
        files.write_text(target, "whole")
        assert target.read_text() == "whole"
    with files.new_folder(tmp_path / ("x" * 255)) as folder:
        (folder / "a").touch()
    assert len(list(tmp_path.iterdir())) == 3


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
import sys
from pathlib import Path
from mfm_jax.storage.files import atomic_write, new_folder
target = Path(sys.argv[1])
with atomic_write(target) as part, new_folder(target.with_suffix("")) as folder:
    part.write_text("half")
    (folder / "half").touch()
    print("begun", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_by_the_next_write(tmp_path):
    other_machine = "0000" if parts.MACHINE != "0000" else "1111"
    others = [f".{other_machine}01234567.txt", ".hidden", ".0123.txt", "a.txt"]
    for name in others:
        (tmp_path / name).write_text("mine")
    of_version_0_1 = tmp_path / f".b-{parts.MACHINE}01234567.txt"
    of_version_0_1.touch()
    (tmp_path / f".b-{parts.MACHINE}01234567").mkdir()
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
    assert not of_version_0_1.exists()
    writers[0].kill()
    writers[0].communicate()
    assert len(list(tmp_path.iterdir())) == 9
    files.write_text(tmp_path / "next.txt", "")
    assert len(list(tmp_path.iterdir())) == 8
    writers[1].communicate("")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*others, f".b-{parts.MACHINE}01234567", "alive", "alive.txt", "next.txt"]
    )
    parts.remove_parts(tmp_path / "absent")


def test_a_part_that_is_taken_for_a_killed_ones_is_made_again(tmp_path, monkeypatch):
    """Another process may look for abandoned files between the creation and the lock of one."""
    lock, looks = parts.fcntl.flock, []

    def looked_at(handle, how):
        if not looks:
            looks.append(how)
            parts.remove_parts(tmp_path)
        lock(handle, how)

    monkeypatch.setattr(parts.fcntl, "flock", looked_at)
    with files.atomic_write(tmp_path / "a.txt") as part:
        part.write_text("whole")
        parts.remove_parts(tmp_path)
    assert len(looks) == 1
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_one_process_claims_a_folder(tmp_path, monkeypatch):
    """Also if the one that had it gives it up between the look of the next one and its lock."""
    lock, gives_up = parts.fcntl.flock, [True]

    def locking(handle, how):
        lock(handle, how)
        if gives_up and gives_up.pop():
            (tmp_path / "a" / "b").rmdir()

    monkeypatch.setattr(parts.fcntl, "flock", locking)
    with locks.claimed_folder(tmp_path / "a" / "b") as first:
        assert first
        assert (tmp_path / "a" / "b").is_dir()
        with locks.claimed_folder(tmp_path / "a" / "b") as second:
            assert not second
    with locks.claimed_folder(tmp_path / "a" / "b") as third:
        assert third
    assert locks.is_locked(tmp_path / "absent")


def test_a_new_folder_replaces_what_a_link_leads_to(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "absent"):
        (tmp_path / f"link to {name}").symlink_to(name)
        with files.new_folder(tmp_path / f"link to {name}") as folder:
            (folder / "a").touch()
        assert (tmp_path / f"link to {name}").is_symlink()
        assert [p.name for p in (tmp_path / name).iterdir()] == ["a"]
    assert len(list(tmp_path.iterdir())) == 4


def test_no_room_is_one_line_that_names_the_file_and_leaves_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with full_disk():
        with (
            pytest.raises(WriteError, match=r"write .*b \(.*\): make room there"),
            files.new_folder(tmp_path / "b") as folder,
        ):
            (folder / "c").write_text("x" * 99)
        with pytest.raises(WriteError, match=r"write .*a\.txt \(.*\): make room there"):
            files.write_text(tmp_path / "a.txt", "x" * 99)
        with pytest.raises(WriteError, match=r"write .*a\.wav \(.*\): make room there") as error:
            write_sound(tmp_path / "a.wav", np.zeros(99, np.float32))
    # Python 3.12 crashes when it collects a view of a BytesIO in a cycle, as tracebacks are.
    cause = error.value.__context__
    assert cause is not None
    held = [v for f, _ in traceback.walk_tb(cause.__traceback__) for v in f.f_locals.values()]
    assert {type(view.obj) for view in held if isinstance(view, memoryview)} == {bytes}
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]

"""An object store behaves like a disk where it can, and says so where it cannot."""

import io
import os
import pickle
import stat
from pathlib import Path

import pytest

from mfm_jax.errors import UserError, WriteError
from mfm_jax.storage import files, locks
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.paths import PathError, user_path
from mfm_jax.storage.retries import AddressError


def test_names_are_those_of_pathlib(bucket):
    path = StorePath("gs://b/run/clip.mp4")
    assert str(path) == os.fspath(path) == f"{path}" == "gs://b/run/clip.mp4"
    assert (path.name, path.suffix, path.parent) == ("clip.mp4", ".mp4", StorePath("gs://b/run"))
    assert isinstance(path, Path)
    assert path.parent / "a" / "b" == StorePath("gs://b/run/a/b")
    assert str((path.parent / "a/b").relative_to(path.parent)) == "a/b"
    assert path.with_suffix(".wav") == StorePath("gs://b/run/clip.wav")
    assert path.resolve() is path.absolute() is path
    assert pickle.loads(pickle.dumps(path)) == path
    assert len({path, StorePath("gs://b/run/clip.mp4"), StorePath("s3://b/run/clip.mp4")}) == 2


def test_objects_are_files_and_their_names_make_folders(bucket):
    run = bucket / "run"
    assert not run.exists()
    assert not (run / "a").is_file()
    run.mkdir(parents=True)
    run.rmdir()
    (run / "a.json").write_text("é")
    (run / "deep" / "er" / "b.bin").write_bytes(b"bytes")
    assert run.is_dir()
    assert not run.is_file()
    assert [p.name for p in sorted(run.iterdir())] == ["a.json", "deep"]
    below = ["a.json", "deep", "deep/er", "deep/er/b.bin"]
    assert [str(p.relative_to(run)) for p in run.rglob("*")] == below
    assert sorted(files.names_in(run)) == ["a.json", "deep"]
    assert run.names("de") == ["deep"]
    assert files.names_in(bucket) == ["run"]
    assert files.names_in(bucket / "nothing") == (bucket / "nothing").names("a") == []
    assert [p.name for p in run.glob("*.json")] == ["a.json"]
    assert [p.name for p in run.glob("deep/*/*.bin")] == ["b.bin"]
    assert (run / "a.json").read_text() == "é"
    found = (run / "a.json").stat()
    assert (stat.S_ISREG(found.st_mode), found.st_size) == (True, 2)
    with pytest.raises(OSError, match="not empty"):
        run.rmdir()
    (run / "a.json").unlink()
    (run / "a.json").unlink(missing_ok=True)
    assert not (run / "a.json").exists()


def test_what_a_disk_says_a_store_says(bucket):
    nothing = bucket / "nothing"
    calls = (nothing.read_bytes, nothing.unlink, nothing.stat, nothing.open)
    elsewhere = StorePath(f"{bucket}-no-such/x")
    for call in (*calls, lambda: [*nothing.iterdir()], elsewhere.read_bytes):
        with pytest.raises(FileNotFoundError) as raised:
            call()
        assert raised.value.filename.startswith(str(bucket))
    nothing.create(b"1")
    nothing.create(b"1")  # the same call, whose answer was lost
    for call in (lambda: nothing.create(b"2"), nothing.mkdir):
        with pytest.raises(FileExistsError):
            call()
    with pytest.raises(io.UnsupportedOperation, match="cannot rename"):
        nothing.rename(bucket / "b")


def test_a_file_that_is_written_is_there_whole_or_not_at_all(bucket):
    file = bucket / "lines.txt"
    with file.open("w") as out:
        out.write("one\n")
        assert not file.exists()
    with file.open("ab") as out:
        out.write(b"two\n")

    def fail():
        with file.open("w") as out:
            out.write("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert file.read_text() == "one\ntwo\n"


def test_atomic_writes_go_through_this_machine(bucket, copies):
    target = bucket / "out" / "a.wav"
    files.check_folder(target.parent)
    with files.atomic_write(target) as part:
        assert part.suffix == ".wav"
        part.write_bytes(b"sound")
        before = files.signature(target)
        assert before is None
    assert target.read_bytes() == b"sound"
    after = files.signature(target)
    files.write_text(target, "other")
    assert None is not after != files.signature(target)
    assert [*target.parent.iterdir()] == [target]
    with pytest.raises(WriteError, match=rf"cannot write into {target} \(a file has its name\)"):
        files.check_folder(target)
    with pytest.raises(WriteError, match=f"cannot write into {bucket}-no-such/x"):
        files.check_folder(StorePath(f"{bucket}-no-such/x"))
    assert [p for p in copies.rglob("*") if p.is_file()] == []


def test_a_folder_takes_the_place_of_another(bucket, copies):
    target = bucket / "report"
    (target / "old.txt").write_text("old")
    with files.new_folder(target, replace=True, last="index.html") as folder:
        (folder / "index.html").write_text("page")
        (folder / "media").mkdir()
        (folder / "media" / "a.wav").write_bytes(b"a")
        assert (target / "old.txt").exists()
    assert {p.name for p in target.files()} == {"index.html", "a.wav"}
    files.remove_tree(target)
    assert not target.exists()
    assert [p for p in copies.rglob("*") if p.is_file()] == []


def test_a_folder_is_claimed_by_one(bucket, monkeypatch):
    monkeypatch.setattr(locks, "CLAIM", 1.0)
    with locks.claimed_folder(bucket / "run") as alone:
        assert alone
        with locks.claimed_folder(bucket / "run") as second:
            assert not second
    with locks.claimed_folder(bucket / "run") as again:
        assert again


def test_what_a_user_names(tmp_path):
    assert user_path("gs://b/x") == StorePath("gs://b/x")
    assert user_path(StorePath("s3://b/x")) == StorePath("s3://b/x")
    assert user_path(Path("gs://b/x")) == StorePath("gs://b/x")
    assert user_path("file:///a%20b/c.mp4") == Path("/a b/c.mp4")
    assert user_path("a/b") == Path("a/b")
    for name in ("http://h/a.mp4", "gs:/b/x", "gcs://b/x", "hf://o/n", "gs://", "file://host/a"):
        with pytest.raises(PathError, match=r"mount|BUCKET|lacks a slash"):
            user_path(name)


def test_a_store_that_refuses_is_one_line(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(AddressError, match=r"^s3://b/x .*credentials.*log in") as raised:
        StorePath("s3://b/x").read_bytes()
    assert isinstance(raised.value, UserError)
    assert isinstance(raised.value, OSError)

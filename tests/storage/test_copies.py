"""Copies of what lies in a store: whole, verified, bounded, and of one version."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from mfm_jax.errors import MediaError, WriteError
from mfm_jax.storage import copies as module
from mfm_jax.storage.copies import kept_copy, local_copy
from mfm_jax.storage.files import signature


def in_cache(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


def test_what_is_here_is_not_copied(tmp_path):
    with local_copy(tmp_path) as here:
        assert here is tmp_path
    assert kept_copy(tmp_path) is tmp_path


def test_a_copy_has_the_suffix_and_goes_after_its_use(bucket, copies, monkeypatch):
    video = bucket / "clips" / "a.mp4"
    video.write_bytes(b"frames")
    for small in (1000, -1):
        monkeypatch.setattr(module, "SMALL", small)
        with local_copy(video) as here, local_copy(video) as same:
            assert here.suffix == ".mp4"
            assert here.read_bytes() == same.read_bytes() == b"frames"
            assert (here == same) == (small < 0)  # a small one is sooner read again than shared
        assert in_cache(copies) == []
    with pytest.raises(FileNotFoundError), local_copy(bucket / "nothing"):
        pass


def test_an_error_names_the_address(bucket, copies):
    (bucket / "a.mp4").write_bytes(b"no video")
    named = pytest.raises(MediaError, match=r"^gs://.*/a\.mp4 has no frames$")
    with named, local_copy(bucket / "a.mp4") as here:
        raise MediaError(f"{here} has no frames")


def test_a_folder_is_copied_once_for_each_version(bucket, copies, monkeypatch):
    folder = bucket / "features"
    (folder / "a.json").write_text("{}")
    (folder / "deep" / "b.bin").write_bytes(b"b")
    monkeypatch.setattr(module, "SMALL", -1)
    fetched = []
    get = type(folder).get
    monkeypatch.setattr(type(folder), "get", lambda *a: (fetched.append(a[0].name), get(*a)))
    first = kept_copy(folder)
    assert (first / "deep" / "b.bin").read_bytes() == b"b"
    assert kept_copy(folder) == first
    assert sorted(fetched) == ["a.json", "b.bin"]
    (folder / "a.json").write_text("[]")
    second = kept_copy(folder)
    assert (second / "a.json").read_text() == "[]"
    assert (first / "a.json").read_text() == "{}"
    (second / "a.json").write_text("")  # damaged meanwhile
    assert (kept_copy(folder) / "a.json").read_text() == "[]"


def test_the_copies_are_bounded_and_those_in_use_stay(bucket, copies, monkeypatch):
    for name in "abc":
        (bucket / name).write_bytes(bytes(400))
    monkeypatch.setenv(module.LIMIT, "1e-6")
    monkeypatch.setattr(module, "SMALL", -1)
    with local_copy(bucket / "a"):
        _, handle = module._fetched(bucket / "b", *module._found(bucket / "b"))
        os.close(handle)  # as of a process that has ended
        assert in_cache(copies) == ["a", "b"]
        with local_copy(bucket / "c"):
            assert in_cache(copies) == ["a", "c"]
            with pytest.raises(WriteError, match=f"do not fit .* with {module.LIMIT}"):
                kept_copy(bucket / "b")
    monkeypatch.setenv(module.LIMIT, "many")
    with pytest.raises(WriteError, match="give a number"), local_copy(bucket / "a"):
        pass


def test_a_copy_that_differs_is_not_used(bucket, copies, monkeypatch):
    (bucket / "a").write_bytes(b"right")
    monkeypatch.setattr(type(bucket), "get", lambda self, file: file.write_bytes(b"wrong"))
    told, _ = (bucket / "a").read_small(0)
    monkeypatch.setattr(module, "SMALL", -1)
    for read in (None, b"wrong"):
        monkeypatch.setattr(type(bucket), "read_small", lambda self, most, read=read: (told, read))
        with pytest.raises(OSError, match="was changed while it was read, or damaged"):
            kept_copy(bucket / "a")
    assert in_cache(copies) == []


@pytest.mark.parametrize("small", [1000, -1], ids=["small", "shared"])
def test_copies_come_and_go_in_many_threads_and_every_one_is_whole(
    bucket, copies, monkeypatch, small
):
    """Each of those that are shared looks for room among those that others are just removing."""
    monkeypatch.setattr(module, "SMALL", small)
    for number in range(8):
        (bucket / f"{number}").write_bytes(bytes([number]) * 1000)

    def read(turn: int) -> bool:
        with local_copy(bucket / f"{turn % 8}") as copy:
            return copy.read_bytes() == bytes([turn % 8]) * 1000

    def stays(turn: int) -> bool:
        with local_copy(bucket / "0") as copy:
            before = signature(copy)
            return read(turn) and signature(copy) == before

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(160)))
        assert all(pool.map(stays, [0] * 80))
    assert {path.name for path in copies.rglob("*")} <= {"outgoing"}

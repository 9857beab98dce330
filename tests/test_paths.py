"""Files and folders appear whole or not at all."""

import pytest

from mfm_jax import paths


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_bytes(b"old")

    def fail(target):
        with paths.written_whole(target) as part:
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
        with pytest.raises(paths.MediaError, match=pattern), paths.written_whole(tmp_path / target):
            pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.wav"]


def test_text_is_replaced_in_one_step(tmp_path):
    paths.write_text(tmp_path / "new" / "a.txt", "first")
    paths.write_text(tmp_path / "new" / "a.txt", "second")
    assert (tmp_path / "new" / "a.txt").read_text() == "second"
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.txt"]


def test_a_failed_folder_is_not_there(tmp_path):
    def fail():
        with paths.new_folder(tmp_path / "a") as folder:
            (folder / "half").touch()
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert not list(tmp_path.iterdir())
    with paths.new_folder(tmp_path / "a") as folder:
        (folder / "whole").touch()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["whole"]

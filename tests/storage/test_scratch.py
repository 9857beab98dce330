"""Files on their way to or from a store: in a folder of the process, and gone after their use."""

import shutil
import subprocess
import sys

import pytest

from mfm_jax.errors import WriteError
from mfm_jax.storage.files import atomic_write
from mfm_jax.storage.scratch import scratch, scratch_file

LEFT = """
import os
from mfm_jax.storage.scratch import scratch_file
with scratch_file("a.wav") as file:
    file.write_bytes(b"half")
    os._exit(1)
"""


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.name != "outgoing")


def test_they_share_a_folder_that_goes_with_the_last_of_them(copies):
    with scratch_file("a.wav") as file:
        with scratch("events") as folder, atomic_write(file) as part:
            assert part == file  # nobody sees it before it is whole
            part.write_bytes(b"sound")
            (folder / "deep").mkdir()
            (folder / "deep" / "b").touch()
            assert folder.name == "events"
            assert folder.parents[1] == file.parent
        assert file.read_bytes() == b"sound"
        assert names(copies) == sorted([file.parent.name, file.name])
    assert names(copies) == []


def test_what_a_killed_process_left_is_removed_by_the_next(copies):
    subprocess.run([sys.executable, "-c", LEFT], check=False)
    assert any(name.endswith(".wav") for name in names(copies))
    with scratch_file("b.wav") as file:
        assert names(copies) == [file.parent.name]


def test_the_user_may_empty_the_folder_meanwhile(copies):
    with scratch_file("a.wav"):
        shutil.rmtree(copies / "outgoing")
        with scratch_file("b.wav") as file:
            file.write_bytes(b"sound")
            assert file.suffix == ".wav"


def test_a_folder_that_cannot_be_made_is_one_line(copies):
    (copies / "outgoing").write_text("a file has its name")
    told = r"^cannot write into .*outgoing \(.*with MFM_FILES$"
    with pytest.raises(WriteError, match=told), scratch("a"):
        pass

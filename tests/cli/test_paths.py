"""Every argument that is a path, of every command, with everything that a path can be.

One line, exit code 1 or 2, and nothing is made, before a network is loaded or a step compiled.
"""

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from mfm_jax.cli import main
from mfm_jax.media.write import write_frames
from mfm_jax.storage.paths import TINY_BUNDLE


def too_long(place):
    return place / ("x" * 256)


def far_too_long(place):
    return place / "/".join(["x" * 200] * 30)


def loop(place):
    (place / "loop").symlink_to("loop")
    return place / "loop"


def in_a_loop(place):
    return loop(place) / "a"


def pipe(place):
    os.mkfifo(place / "pipe.mp4")
    return place / "pipe.mp4"


def under_a_file(place):
    (place / "file").write_text("x")
    return place / "file" / "a"


def closed(place):
    """A folder that nobody may look into."""
    (place / "closed").mkdir(mode=0)
    return place / "closed"


def in_a_closed_folder(place):
    return closed(place) / "a"


def unreadable(place):
    (place / "unreadable").write_text("x")
    (place / "unreadable").chmod(0)
    return place / "unreadable"


def absent(place):
    return place / "absent"


def empty_folder(place):
    (place / "empty").mkdir()
    return place / "empty"


def empty_file(place):
    (place / "empty.json").touch()
    return place / "empty.json"


def text(place):
    (place / "text.mp4").write_text("no video, no JSON, no config = (\n")
    return place / "text.mp4"


def bytes_(place):
    (place / "bytes.json").write_bytes(bytes(range(256)) * 8)
    return place / "bytes.json"


def deep(place):
    """JSON that is nested deeper than Python's stack, for what is read as JSON."""
    deep = "[" * 100_000
    for name in ("bundle.json", "features.json", "unfinished.json", "config.json", "index.json"):
        (place / "deep").mkdir(exist_ok=True)
        (place / "deep" / name).write_text(deep)
    return place / "deep"


def deep_file(place):
    return deep(place) / "config.json"


def address(place):
    return "s3://x/x"  # what is told may name the bucket


NEVER = (
    too_long, far_too_long, loop, in_a_loop, pipe, under_a_file, closed, in_a_closed_folder,
    unreadable, address,
)  # fmt: skip
"""What no path may be, whatever it is for."""

READ = (absent, empty_folder, empty_file, text, bytes_, deep, deep_file)
"""What cannot be read: folders in place of files, other files and folders than are wanted."""

FILES = (text, bytes_)
"""What cannot become a folder."""

CASES = {
    "generate": (["{}", "-o", "out"], READ),
    "generate -o": (["clip.mp4", "-o", "{}"], (bytes_,)),
    "generate -o FILE": (["clip.mp4", "-o", "{}/a.wav"], FILES),
    "generate --bundle": (["clip.mp4", "-o", "out", "--bundle", "{}"], READ),
    "generate --negative-sound": (["clip.mp4", "-o", "out", "--negative-sound", "{}"], READ),
    "extract": (["{}", "-o", "out"], READ),
    "extract --videos": (["vggsound.csv", "-o", "out", "--videos", "{}"], READ),
    "extract -o": (["clips.csv", "-o", "{}"], (*FILES, deep)),
    "extract --bundle": (["clips.csv", "-o", "out", "--bundle", "{}"], READ),
    "evaluate": (["{}", "--reference", ".", "-o", "out"], READ),
    "evaluate --reference": ([".", "--reference", "{}", "-o", "out"], READ),
    "evaluate -o": (["x=.", "--reference", ".", "-o", "{}"], FILES),
    "evaluate --bundle": (["x=.", "--reference", ".", "-o", "out", "--bundle", "{}"], READ),
    "evaluate --onsets": (["x=.", "--reference", ".", "-o", "out", "--onsets", "{}"], READ),
    "train --config": (["--config", "{}", "--workdir", "out"], READ),
    "train --workdir": (["--config", "tiny", "--workdir", "{}"], FILES),
    "train source": (["--config", "tiny", "--workdir", "out", "--set", "recipe.source={}"], READ),
    "train source.videos": (
        ["--config", "tiny", "--workdir", "out", "--set", "recipe.source=vggsound.csv",
         "recipe.source.videos={}"], READ,
    ),
    "train source.cache": (
        ["--config", "tiny_vae", "--workdir", "out", "--set", "recipe.source=clips.csv",
         "recipe.source.cache={}"], FILES,
    ),
    "train source.folder": (
        ["--config", "tiny", "--workdir", "out", "--set", "recipe.source.folder={}"], FILES,
    ),
    "train recipe.bundle": (
        ["--config", "tiny", "--workdir", "out", "--set", "recipe.bundle={}"], READ,
    ),
    "train new bundle": (
        ["--config", "tiny_vae", "--workdir", "out", "--set", "recipe.bundle={}"], (*FILES, deep),
    ),
    "convert": (["gpt2", "{}", "-o", "out"], READ),
    "convert -o": (["gpt2", "absent", "-o", "{}"], (*FILES, deep)),
    "convert --config": (["cavp", "tiny", "-o", "out", "--config", "{}"], READ),
    "convert --vocabulary": (["timechat", "tiny", "-o", "out", "--vocabulary", "{}"], READ),
    "convert --to torch": (["audiomae", "{}", "-o", "out", "--to", "torch"], READ),
    "convert --to torch -o": (["audiomae", "tiny", "-o", "{}", "--to", "torch"], (*FILES, deep)),
    "bundle show": (["show", "{}"], READ),
    "bundle verify": (["verify", "{}"], READ),
    "demo -o": (["-o", "{}"], FILES),
    "demo --bundle": (["-o", "out", "--bundle", "{}"], READ),
    "plan --config": (["--topology", "v5e:2x2", "--config", "{}"], READ),
    "plan --bundle": (["--topology", "v5e:2x2", "--bundle", "{}"], READ),
    "plan --json": (["--topology", "v5e:2x2", "--json", "{}"], (empty_folder, deep)),
    "miniature scores": (["scores", "--bundle", "{}", "-o", "out.json"], READ),
    "miniature real": (["real", "--videos", "{}", "-o", "out"], READ),
    "miniature train": (["train", "--workdir", "{}", "--target", "out"], FILES),
}  # fmt: skip
"""By command and argument: the words, and what else than `NEVER` the path cannot be."""

ROWS = [
    (command, kind)
    for command, (_, kinds) in CASES.items()
    for kind in (*NEVER, *kinds)
    if (command, kind) != ("plan --json", unreadable)  # a file that may be replaced
]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Good files of every kind, so that one argument alone is wrong."""
    folder = tmp_path_factory.mktemp("good")
    write_frames(iter(np.zeros((4, 16, 16, 3), np.uint8)), folder / "clip.mp4", fps=4)
    (folder / "clips.csv").write_text("file\nclip.mp4\n")
    (folder / "vggsound.csv").write_text("abcdefghijk,30,a dog,train\nabcdefghijl,3,a cat,test\n")
    shutil.copytree(TINY_BUNDLE, folder / "tiny")
    return folder


@contextmanager
def without_override() -> Iterator[None]:
    """Let permissions hold for root as well, who else may read everything (capset(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    before, less = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, before) == 0
    less[:] = before[:]
    less[0] &= ~(1 << 1 | 1 << 2)  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, of those in effect
    assert libc.capset(header, less) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


@pytest.mark.parametrize(("command", "kind"), ROWS, ids=lambda x: getattr(x, "__name__", x))
def test_a_path_that_cannot_be_used_is_one_line(
    command, kind, shared, tmp_path, monkeypatch, capsys
):
    for good in shared.iterdir():
        (tmp_path / good.name).symlink_to(good)
    monkeypatch.chdir(tmp_path)
    path = kind(tmp_path)
    before = sorted(tmp_path.iterdir())
    words = [word.format(path) for word in CASES[command][0]]
    with without_override():
        try:
            code = main([command.split()[0], *words])
        except SystemExit as stop:
            code = stop.code
    said = capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before
    assert (code in (1, 2), said.count("\n")) == (True, 1), said
    assert os.path.basename(path)[:40] in said or "give one folder" in said

"""Every block of code in the documents runs, or says why it does not and is parsed.

Each page gets a folder with the files that the documents speak of: a clip, a folder of clips, the
shipped miniature as `bundles/base`. Its blocks run there in their order, in this process, and share
what they make. A generation that has run for an earlier page is not run again. The notebook
runs as well.
"""

import re
import shlex
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mfm_jax.cli import main
from mfm_jax.cli.command import build_parser
from mfm_jax.cli.toplevel import read_config
from mfm_jax.foley.world import SPLITS, World, generate_clip, write_clip
from mfm_jax.inference import generate
from mfm_jax.media.sandbox import SWITCH
from mfm_jax.media.write import write_frames
from mfm_jax.storage.paths import TINY_BUNDLE
from tests.docs import notebook
from tests.docs.blocks import CODE, PAGES, ROOT, SHOWN, Block, blocks

SHELL = ("cp", "mkdir", "export")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
SYNOPSIS = re.compile(r"\b(MODEL|BUNDLE|SOURCE|FOLDER|VIDEO|HOST|PORT)\b|\.\.\.|<")
"""Words that stand for something, in what shows a form and is no command."""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """The files of the documents, small: every video is one window, but for `long.mp4`."""
    folder = tmp_path_factory.mktemp("docs") / "world"
    folder.mkdir()
    seeds = SPLITS["test"]
    for path, seed in {
        "clip": 3,
        "clips/a": 4,
        "clips/b": 5,
        "my_clips/a": 4,
        "my_clips/b": 5,
    }.items():
        target = folder / f"{path}.mp4"
        target.parent.mkdir(exist_ok=True)
        write_clip(World(), seeds[seed], folder / "written").rename(target)
    shutil.rmtree(folder / "written")
    rendered = generate_clip(World(), seeds[3])
    for name, repeats in {"demo/silent.mp4": 1, "long.mp4": 2}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_frames(iter(np.tile(rendered.frames, (repeats, 1, 1, 1))), folder / name, fps=25)
    (folder / "clips.csv").write_text("file\nclips/a.mp4\nclips/b.mp4\n")
    (folder / "times").mkdir()
    for name in ("a", "b"):
        times = [f"{event.time}\n" for event in generate_clip(World(), seeds[4]).events]
        (folder / "times" / f"{name}.txt").write_text("".join(times))
    soundfile.write(folder / "unwanted.wav", rendered.audio, 16_000)
    (folder / "notes.txt").write_text("no video")
    (folder / "bundles").mkdir()
    (folder / "bundles" / "base").symlink_to(TINY_BUNDLE)
    return folder


@cache
def parse(line: str) -> None:
    """Check that a command is one: its program, options, fields, extras or target are there."""
    words = shlex.split(line, comments=True)
    if words[:3] == ["python", "-m", "miniature"]:
        words = ["mfm", *words[2:]]
    if words[0] == "mfm":
        args = build_parser().parse_args(words[1:])
        if getattr(args, "set", None) and args.config is not None:
            read_config(args.config, args.set)
    elif words[0] == "make":
        assert {w for w in words[1:] if "=" not in w} <= TARGETS, line
    elif words[:2] == ["pip", "install"]:
        named = [e for w in words for e in re.findall(r"\[([\w,]+)\]", w)]
        assert {e for names in named for e in names.split(",")} <= set(EXTRAS), line
    elif words[:2] == ["python", "-m"]:
        module = ROOT / words[2].replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), line
    else:
        assert words[0] in ("git", "curl", "python", "scripts", *SHELL) or "=" in words[0], line


pytestmark = pytest.mark.usefixtures("open_once")
done: set[tuple[str, ...]] = set()
"""Generations that have run."""


def run_sh(block: Block) -> None:
    """Run the commands of a block that have not run yet."""
    for line in block.commands():
        parse(line)
        words = shlex.split(line, comments=True)
        if words[1] == "generate":
            if tuple(words) in done:
                continue
            done.add(tuple(words))
        if words[0] == "mfm":
            assert main(words[1:]) == 0, line
        else:
            assert words[0] in SHELL, f"{block}: {words[0]} cannot be run here"
            subprocess.run(line, shell=True, check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_of_a_page(page, world, tmp_path, monkeypatch):
    shutil.copytree(world, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv(SWITCH, "")  # `--sandbox` sets it, for as long as the command runs
    # One program for everything, that of one window, as in the tests of `mfm demo`.
    monkeypatch.setattr(generate, "BATCH", 1)
    names: dict = {}
    for block in blocks(page):
        assert block.language in (*CODE, *SHOWN), f"{block}: what language is this?"
        if block.language == "sh" and block.reason is None:
            run_sh(block)
        elif block.language == "sh":
            for line in block.commands():
                if not SYNOPSIS.search(line):
                    for part in line.split("&&"):
                        parse(part.strip())
        elif block.language == "python":
            code = compile(block.text, str(block), "exec")
            if block.reason is None:
                exec(code, names)


def test_the_notebook_stores_nothing_that_ran():
    for cell in notebook.CELLS:
        assert (cell["execution_count"], cell["outputs"]) == (None, [])


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names: dict = {}
    shown = [notebook.run(cell, names) for cell in notebook.CELLS]
    players = [value._repr_html_() for value in shown if isinstance(value, names["Player"])]
    assert [player.startswith("<video") for player in players] == [True] * 3
    assert sum(isinstance(value, names["Image"].Image) for value in shown) == 2
    assert 0 in shown  # the exit code of the training
    said = capsys.readouterr().out
    assert "onset_f1_100" in said
    assert "heldout_loa_error" in said
    (folder,) = tmp_path.iterdir()
    assert (folder / "report" / "index.html").is_file()

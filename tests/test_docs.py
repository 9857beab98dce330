"""The files, modules, commands, options and fields that the documents name exist."""

import re
import shlex
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

import mfm_jax
from mfm_jax.cli.command import build_parser
from mfm_jax.cli.toplevel import config_names, read_config
from mfm_jax.runtime.config import override
from tests.docs.blocks import PAGES

ROOT = Path(__file__).parents[1]
FOLDERS = ("mfm_jax", "convert", "miniature", "benchmarks", "configs", "scripts", "tests", "docs")
SURFACE = [f"mfm_jax.{name}" for name in mfm_jax.__all__]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@cache
def configs():
    return [read_config(name) for name in config_names()]


def links(text: str) -> list[tuple[str, str]]:
    """File and anchor of every link inside the project."""
    found = re.findall(r"\]\(([^)\s#]*)(?:#([^)\s]+))?\)", text)
    return [(file, anchor) for file, anchor in found if "://" not in file]


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub forms them."""
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def commands(text: str) -> list[list[str]]:
    """The words after `mfm` of the commands of a page; mere names and synopses are left out."""
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^\s*mfm (.*)$", joined, re.MULTILINE)
    lines += re.findall(r"`mfm ([^`\n]*)`", joined)
    split = [shlex.split(line, comments=True) for line in lines if "..." not in line]
    return [words for words in split if len(words) > 2 and "MODEL" not in words]


@pages
def test_files_and_modules_exist(page):
    text = page.read_text()
    top = "|".join(FOLDERS)
    for name in re.findall(rf"(?<![\w/.(])((?:{top})/[\w./-]*\w/?)", text):
        assert (ROOT / name).exists() or f"{name}<" in text, name
    for name in re.findall(r"(?<![\w/])((?:mfm_jax|benchmarks)(?:\.(?!md)[a-z_0-9]+)+)", text):
        assert find_spec(name) is not None or name in SURFACE, name


@pages
def test_links_lead_somewhere(page):
    for file, anchor in links(page.read_text()):
        target = page.parent / file if file else page
        if is_generated(target):
            continue
        assert target.exists(), file
        assert not anchor or anchor in anchors(target.read_text()), f"{file}#{anchor}"


def is_generated(page: Path) -> bool:
    """Whether the site makes a page from the code (scripts/site_hooks.py)."""
    room = ROOT / "mfm_jax" / page.stem / "__init__.py"
    return page.name == "commands.md" or (page.parent.name == "api" and room.is_file())


@pages
def test_commands_have_their_options_and_fields(page):
    for words in commands(page.read_text()):
        args = build_parser().parse_args(words)
        if getattr(args, "set", None) and args.config is not None:
            read_config(args.config, args.set)


@pages
def test_fields_exist(page):
    text = page.read_text()
    for field in re.findall(r"`((?:recipe|optimizer|compute|mesh)\.[a-z_.]+)", text):
        assert any(has_field(config, field) for config in configs()), field


def has_field(config, path: str) -> bool:
    value = override(config, ["recipe.source=clips"]) if path.startswith("recipe.") else config
    for name in path.split("."):
        if not hasattr(value, name):
            return False
        value = getattr(value, name)
    return True

"""What the site has beyond the Markdown in docs/: see mkdocs.yml.

- Pages that are made from the code: `commands.md` from the parsers of `mfm`, `api/ROOM.md` from the
  modules of each folder of the package.
- Sections of files above docs/. A line that is only a link to one, such as
  `[Networks](../README.md#networks)`, stands for the section itself, so that it is written once.
  Other links to files above docs/, which are not on the site, become their names.
"""

import argparse
import ast
import os
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mfm_jax"
RESEARCH = ("miniature",)
"""Commands whose parsers need the libraries that they run with, and are not listed further."""
INCLUDE = re.compile(r"^\[[^\]]+\]\(\.\./([\w./-]+\.md)(?:#([\w-]+))?\)$", re.MULTILINE)
HEADING = re.compile(r"^(#+) (.*)$")
ABOVE = re.compile(r"\[([^\]]+)\]\(\.\./([^)\s#]+)[^)]*\)")
LINK = re.compile(r"\]\((?!\w+://|#)([^)\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the folders of the package to the part of the navigation that is called API."""
    (api,) = (item["API"] for item in config.nav or [] if "API" in item)
    api += [{room: f"api/{room}.md"} for room in rooms()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code."""
    pages = {"commands.md": commands_page()}
    for room in rooms():
        pages[f"api/{room}.md"] = room_page(room)
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Put sections of files above docs/, or their names, in the place of links to them."""
    if "/" in page.file.src_uri:
        return markdown
    text = INCLUDE.sub(lambda match: included(match[1], match[2]), markdown)
    return ABOVE.sub(lambda match: f"{match[1]} (`{match[2]}`)", text)


def rooms() -> list[str]:
    """Return the folders of the package that have modules."""
    return sorted(p.parent.name for p in PACKAGE.glob("*/__init__.py"))


def room_page(room: str) -> str:
    """Return a page with the API of all modules of a folder, each under its name."""
    folder = PACKAGE / room
    about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    parts = [f"# mfm_jax.{room}", about]
    for file in sorted(folder.rglob("*.py")):
        if file.name not in ("__init__.py", "__main__.py"):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            shown = module.removeprefix("mfm_jax.")
            options = "    options: {show_root_heading: false, show_root_toc_entry: false}"
            parts.append(f"## {shown} {{ #{shown} }}\n\n::: {module}\n{options}")
    return "\n\n".join(parts) + "\n"


def commands_page() -> str:
    """Return a page with the help of every command of `mfm`."""
    sys.path.insert(0, str(ROOT))
    os.environ["COLUMNS"] = "76"
    from mfm_jax.cli.command import COMMANDS

    parts = ["# Commands and options", "`mfm COMMAND -h` prints the same."]
    for name, about in COMMANDS.items():
        parts.append(f"## mfm {name}\n\n{about[0].upper()}{about[1:]}.\n\n{helped(name)}")
        if name not in RESEARCH:
            below = choices_below(parsers(name)[-1])
            parts += [f"### mfm {name} {one}\n\n{helped(name, one)}" for one in below]
    return "\n\n".join(parts) + "\n"


def helped(*command: str) -> str:
    """Return what `mfm COMMAND -h` prints, as a block."""
    parser = parsers(*command)[-1]
    return f"```text\n{parser.format_help().rstrip()}\n```"


def parsers(*command: str) -> list:
    """Return the parser of `mfm`, of a command, and of a command below it."""
    from mfm_jax.cli.command import build_parser

    found = [build_parser()]
    for name in command:
        parser = choices_below(found[-1])[name]
        if getattr(parser, "fill", None) is not None:
            fill, parser.fill = parser.fill, None
            fill(parser)
        found.append(parser)
    return found


def choices_below(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the parsers of the commands below a command, by name."""
    groups = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return {name: below for group in groups for name, below in group.choices.items()}


def included(file: str, anchor: str | None) -> str:
    """Return a section of a file above docs/, or all below its title, as docs/ has to link it."""
    lines = (ROOT / file).read_text().splitlines()
    lines = lines[1:] if anchor is None else section(lines, anchor, file)
    return LINK.sub(lambda match: f"]({relative(match[1])})", "\n".join(lines))


def section(lines: list[str], anchor: str, file: str) -> list[str]:
    """Return the lines below a heading: up to the next that is as high, below a title up to any.

    Raises:
        PluginError: there is no such heading.
    """
    depth, found, fenced = 0, [], False
    for line in lines:
        fenced ^= line.startswith("```")
        head = None if fenced else HEADING.match(line)
        if depth and head and (depth == 1 or len(head[1]) <= depth):
            break
        if depth:
            found.append(line)
        elif head and slug(head[2]) == anchor:
            depth = len(head[1])
    if not depth:
        raise PluginError(f"{file} has no heading with the anchor {anchor}")
    return found


def slug(heading: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def relative(link: str) -> str:
    """Return a link of a file at the root as one of a page in docs/."""
    return link.removeprefix("docs/") if link.startswith("docs/") else f"../{link}"

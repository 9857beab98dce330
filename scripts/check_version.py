"""Check that a version can be released: the package, the changes and the citation name it.

python scripts/check_version.py VERSION
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = {
    "mfm_jax/__init__.py": r'^__version__ = "(.*)"$',
    "CHANGELOG.md": r"^## (\S+) \(",
    "CITATION.cff": r"^version: (.*)$",
}
"""Files, and where in each the version stands; the first match counts."""


def named(file: str) -> str:
    """Return the version that a file names."""
    found = re.search(PLACES[file], (ROOT / file).read_text(), re.MULTILINE)
    return found[1] if found else "no version"


def problems(version: str) -> list[str]:
    """Return what keeps a version from being released."""
    found = [f"{file} has {named(file)}" for file in PLACES if named(file) != version]
    if f"## {version} (unreleased)" in (ROOT / "CHANGELOG.md").read_text():
        found.append(f"CHANGELOG.md calls {version} unreleased: give the date")
    return found


if __name__ == "__main__":
    if found := problems(sys.argv[1]):
        sys.exit(f"{sys.argv[1]} cannot be released: {'; '.join(found)}")

"""Check the files in dist/: nothing of the package is missing, and nothing else is in it.

python scripts/compare_dist.py DIST
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import mfm_jax

ROOT = Path(__file__).parents[1]
TOPLEVEL = ("train.py", "configs", "convert", "miniature")
"""Carried inside the package by the wheel."""
BESIDE = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "PKG-INFO")
"""Other files of the sdist."""


def tracked(*paths: str) -> set[str]:
    """Return the files that git knows below these paths."""
    out = subprocess.run(
        ["git", "ls-files", "-z", *paths], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return {name for name in out.split("\0") if name and (ROOT / name).exists()}


def complain(what: str, there: set[str], expected: set[str]) -> None:
    """Exit with a list of what is missing and what is too much, if anything is."""
    if there != expected:
        missing, extra = sorted(expected - there), sorted(there - expected)
        sys.exit(f"{what} lacks {missing or 'nothing'} and has {extra or 'nothing'} beyond that")


def main(dist: Path) -> None:
    """Compare both files with what git knows."""
    name = f"mfm_jax-{mfm_jax.__version__}"
    (sdist,), (wheel,) = dist.glob(f"{name}.tar.gz"), dist.glob(f"{name}-py3-none-any.whl")
    package, beside = tracked("mfm_jax"), tracked(*TOPLEVEL)

    with tarfile.open(sdist) as archive:
        inside = {m.name.removeprefix(f"{name}/") for m in archive.getmembers() if m.isfile()}
    complain(sdist.name, inside - {".gitignore"}, {*package, *beside, *BESIDE})

    with zipfile.ZipFile(wheel) as archive:
        inside = {n for n in archive.namelist() if not n.startswith(f"{name}.dist-info/")}
    complain(wheel.name, inside, package | {f"mfm_jax/toplevel/{name}" for name in beside})
    print(
        f"{sdist.name} and {wheel.name} have what they should: {len(package)} files of the package"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))

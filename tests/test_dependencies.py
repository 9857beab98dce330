"""The lock holds a version of everything that pyproject.toml names, within its bounds."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
UNSTABLE = (
    "jax", "flax", "orbax-checkpoint", "grain", "array_record", "tensorflow-datasets", "av",
    "tensorboardX",
)  # fmt: skip
"""Libraries of which we use what has changed before, or what is not public."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *(line for lines in extras.values() for line in lines)]
    return [Requirement(line) for line in named if not line.startswith("mfm-jax")]


def test_the_lock_has_everything_within_its_bounds():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    locked = {canonical(name): version for name, version in (line.split("==") for line in pins)}
    for requirement in requirements():
        name = canonical(requirement.name)
        if name != "torch":  # the Makefile pins it
            assert requirement.specifier.contains(locked[name]), requirement


def test_what_may_change_has_an_upper_bound():
    bounded = {
        canonical(r.name) for r in requirements() if any(s.operator == "<" for s in r.specifier)
    }
    assert bounded >= {canonical(name) for name in UNSTABLE}


def test_torch_is_pinned_once_more_in_the_makefile():
    (torch,) = (r for r in requirements() if r.name == "torch")
    assert f"TORCH := torch{torch.specifier}\n" in (ROOT / "Makefile").read_text()

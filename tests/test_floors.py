"""Imports go down only, and networks and converters need little more than they say."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Longest matching prefix decides. A module may import from its own floor and from those below.
FLOORS = {
    "train": 6,
    "mfm_jax.cli": 6,
    "convert.__main__": 6.9,
    "convert": 6.8,
    "convert.model": 6.7,
    "convert.outgoing": 6.6,
    "convert.incoming": 6.5,
    "convert.spelling": 6.6,
    "convert.rows": 6.4,
    "convert.configs": 6.4,
    "convert.table": 6.3,
    "convert.licences": 6.3,
    "convert.source": 6.3,
    "convert.torch_file": 6.2,
    "convert.safetensors_file": 6.2,
    "convert.numpy_arrays": 6.15,
    "convert.pickle_machine": 6.1,
    "convert.tensors": 6,
    "benchmarks": 7,
    "miniature": 7,
    "configs": 6,
    "mfm_jax.plan": 5.8,
    "mfm_jax.foley": 5.8,
    "mfm_jax.serve": 5.7,
    "mfm_jax.train": 5.6,
    "mfm_jax.evaluation": 5.5,
    "mfm_jax.inference": 5.4,
    "mfm_jax.data": 5.2,
    "mfm_jax.encoders": 5,
    "mfm_jax.bundle": 4,
    "mfm_jax.metrics": 4,
    "mfm_jax.mapper": 3,
    "mfm_jax.models": 2,
    "mfm_jax.diffusion": 2,
    "mfm_jax.media": 1.6,
    "mfm_jax.storage": 1.5,
    "mfm_jax.layers": 1,
    "mfm_jax.text": 0.7,
    "mfm_jax.runtime": 0.5,
    "mfm_jax.cost": 0,
    "mfm_jax": 0,
}
TORCH_SIDE = ("torch", "diffusers", "safetensors")
OTHERS = (
    "av",
    "grain",
    "soundfile",
    "tensorflow_datasets",
    "array_record",
    "matplotlib",
    "tqdm",
    "transformers",
    "PIL",
    "jaxtyping",
    "beartype",
)
PRODUCT = ("convert", "mfm_jax", "train")
"""The product does not know the Foley world, the data of its miniature and of its tests."""
KNOW_FOLEY = ("mfm_jax.foley", "mfm_jax.cli.demo")
LOOSE_FILES = 4
"""Most files at the root of the package; everything else lies in a folder."""
SURFACE = "mfm_jax"
"""The package itself hands on names from all floors, on first use (`tests/cli/test_imports.py`)."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(module: str) -> float | None:
    matches = [p for p in FLOORS if module == p or module.startswith(p + ".")]
    return FLOORS[max(matches, key=len)] if matches else None


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def modules_of(*packages: str) -> list[str]:
    """All modules of these packages, which their `__init__` need not import."""
    folders = [ROOT / package.replace(".", "/") for package in packages]
    return sorted(module_name(path) for folder in folders for path in folder.rglob("*.py"))


SOURCES = sorted(
    p
    for top in ("mfm_jax", "convert", "configs", "benchmarks", "miniature", "train.py")
    for p in ([ROOT / top] if top.endswith(".py") else (ROOT / top).rglob("*.py"))
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    name = module_name(path)
    for imported in imports(path):
        below = floor(imported)
        if below is not None and name != SURFACE:
            assert below <= floor(name), f"{name} must not import {imported}"
        if imported.split(".")[0] in TORCH_SIDE:
            assert name.startswith("benchmarks"), f"{name} must not import {imported}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_demo_and_the_miniature_know_the_foley_world(path):
    name = module_name(path)
    if name.split(".")[0] in PRODUCT and not name.startswith(KNOW_FOLEY):
        assert not [i for i in imports(path) if i.startswith("mfm_jax.foley")], name


def test_rooms_import_each_other_in_one_direction():
    """Between the folders of the package there is no circle, even where files make none."""
    below: dict[str, set[str]] = {}
    for path in SOURCES:
        parts = module_name(path).split(".")
        if parts[0] == "mfm_jax" and len(parts) > 1:
            found = {i.split(".")[1] for i in imports(path) if i.startswith("mfm_jax.")}
            below.setdefault(parts[1], set()).update(found - {parts[1]})
    TopologicalSorter(below).prepare()  # raises CycleError, which names the circle


def test_few_files_lie_at_the_root_of_the_package():
    assert len(list((ROOT / "mfm_jax").glob("*.py"))) <= LOOSE_FILES


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (
            modules_of("mfm_jax.models", "mfm_jax.mapper", "mfm_jax.diffusion"),
            ("orbax", *OTHERS, *TORCH_SIDE),
        ),
        (["mfm_jax.inference.pipeline"], (*OTHERS, *TORCH_SIDE)),
        (modules_of("convert"), ("transformers", *TORCH_SIDE)),
    ],
    ids=["networks", "pipeline", "convert"],
)
def test_imports_nothing_more_than_it_says(modules, absent):
    """In a process where nothing else can be imported, whatever else is installed here."""
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in {set(absent)}:
            raise ModuleNotFoundError(f"No module named {{top!r}}", name=top)
sys.meta_path.insert(0, Refuse())
import {", ".join(modules)}
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr

"""`import mfm_jax` and every help text come without the libraries that networks and files need."""

import subprocess
import sys
from pathlib import Path

import pytest

import mfm_jax
from mfm_jax.cli.command import COMMANDS

ROOT = Path(__file__).parents[2]
HEAVY = (
    "array_record", "av", "flax", "grain", "jax", "matplotlib", "numpy", "optax", "orbax", "PIL",
    "scipy", "soundfile", "tensorboardX", "tensorflow_datasets", "tqdm", "transformers",
)  # fmt: skip


def heavy_modules(program: str) -> str:
    """What the program has imported of them when it ends."""
    last = f"import sys; print(sorted({set(HEAVY)} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{last}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()[-1]


def test_the_package_alone_imports_none():
    assert heavy_modules("import mfm_jax; dir(mfm_jax)") == "[]"
    assert "numpy" in heavy_modules("import mfm_jax; mfm_jax.Sampling")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_none(command):
    words = [*filter(None, [command]), "-h"]
    program = (
        f"from mfm_jax.cli import main\ntry: main({words})\n"
        "except SystemExit as stop: assert stop.code == 0"
    )
    assert heavy_modules(program) == "[]"


def test_the_public_names_are_there():
    assert mfm_jax.__all__ == ["Bundle", "Layout", "Sampling", "VideoToAudio", "generate"]
    for name in mfm_jax.__all__:
        assert name in dir(mfm_jax)
        assert getattr(mfm_jax, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Sound'"):
        mfm_jax.Sound  # noqa: B018

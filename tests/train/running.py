"""Runs of shipped configs inside the test process."""

import runpy
from collections.abc import Sequence
from pathlib import Path

from mfm_jax.runtime.config import override
from train import train

CONFIGS = Path(__file__).parents[2] / "configs"


def run_config(name: str, workdir: Path, fields: Sequence[str]) -> int:
    """Train as `mfm train --config NAME --workdir DIR --set FIELDS` does; returns its exit code."""
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    return train(override(config, fields), workdir, f"mfm train --config {name}")

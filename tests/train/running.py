"""Runs of shipped configs inside the test process."""

from collections.abc import Sequence
from pathlib import Path

from mfm_jax.cli.toplevel import read_config
from train import train


def run_config(name: str, workdir: Path, fields: Sequence[str]) -> int:
    """Train as `mfm train --config NAME --workdir DIR --set FIELDS` does; returns its exit code."""
    return train(read_config(name, fields), workdir, f"mfm train --config {name}")

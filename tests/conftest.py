"""Strict settings for every test, and the parity table printed at the end of a run."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Most of the suite's time would go into optimising code that runs once.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "highest")

REFERENCE = Path(__file__).parent / "reference"
VIDEOS = Path(__file__).parents[2] / "shared" / "videos"


@pytest.fixture(scope="session")
def reference() -> Path:
    """Goldens and manifests of the original networks: small copies that live in the repository."""
    return REFERENCE


@pytest.fixture(scope="session")
def videos() -> Path:
    """Real clips, which are not part of the repository."""
    if not VIDEOS.is_dir():
        pytest.skip("needs the real clips, which lie beside the checkout and not in it")
    return VIDEOS


@pytest.fixture
def parity(request: pytest.FixtureRequest) -> Callable:
    """`parity(network, against, ours, theirs, tolerance)`: assert, and add a row to the table.

    The tolerance is absolute. With `relative_to="spread"` it is a share of the standard deviation
    of theirs.
    """

    def check(network, against, ours, theirs, tolerance, *, relative_to=None):
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        assert ours.shape == theirs.shape, f"{network}: {ours.shape} against {theirs.shape}"
        assert np.all(np.isfinite(ours)), f"{network}: not finite"
        difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max(initial=0.0)
        if relative_to == "spread":
            difference /= theirs.std()
        row = [network, against, float(difference), float(tolerance)]
        request.node.user_properties.append(("parity", json.dumps(row)))
        assert difference <= tolerance, f"{network} against {against}: {difference:.2e}"

    return check


def pytest_terminal_summary(terminalreporter) -> None:
    """Print network, compared with what, max abs difference and tolerance, one row a check."""
    rows = [
        json.loads(value)
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        for name, value in getattr(report, "user_properties", [])
        if name == "parity" and report.when == "call"
    ]
    if not rows:
        return
    terminalreporter.section("parity")
    wide = max(len(r[0]) for r in rows), max(len(r[1]) for r in rows)
    terminalreporter.write_line(
        f"{'network':{wide[0]}}  {'against':{wide[1]}}  {'max diff':>9}  {'tolerance':>9}"
    )
    for network, against, difference, tolerance in sorted(rows):
        terminalreporter.write_line(
            f"{network:{wide[0]}}  {against:{wide[1]}}  {difference:9.1e}  {tolerance:9.1e}"
        )

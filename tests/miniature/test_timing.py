"""The routes to timing: an adapter that reads LOA, and how lines become tables."""

import jax
import numpy as np
import pytest

from miniature import timing
from miniature.routes import FINE, GridSync
from tests.bundles import untrained_bundle


def test_an_adapter_of_loa_reads_the_true_sound_with_noise(tmp_path):
    base = untrained_bundle(tmp_path / "b")
    recipe = GridSync(bundle=str(base.path), kind="features")
    assert recipe.network.streams == ("loa",)
    assert recipe.reads == ("audiomae", "vae")
    tokens = jax.random.normal(jax.random.key(0), (8, 129, 128))
    stream = recipe.streams({"audiomae": tokens}, jax.random.key(1))["loa"]
    np.testing.assert_allclose(stream.seconds[3], FINE.times())
    true = np.asarray(FINE.pooled(tokens))
    noise = np.abs(np.asarray(stream.tokens) - true).max(axis=(1, 2))
    assert 0 < (noise == 0).sum() < 8


def line(name, seed, hits, *, same=True):
    """A route that hits `hits` of the ten contacts of each of four clips."""
    ten = [10] * 4
    counts = {
        "found": ten, "true": ten, "hits_50": [hits] * 4, "hits_100": [hits] * 4,
        "event_hits": [hits] * 4, "materials": [1] * 4, "materials_hit": [1] * 4,
        "log_mel": [0.5] * 4,
    }  # fmt: skip
    kinds = ["bounce", "bounce", "roll", "strike"]
    return {"name": name, "seed": seed, "parameters": 7, "unet_unchanged": same,
            "counts": counts, "kinds": kinds}  # fmt: skip


def test_the_report_compares_every_route_with_the_papers():
    letters = {name[1]: name for name in timing.ROUTES}
    lines = [line(letters["a"], seed, 3) for seed in range(2)]
    lines += [line(letters["d"], seed, 8) for seed in range(2)]
    lines += [line(letters["c"], seed, 5, same=seed == 0) for seed in range(2)]
    found = timing.report(lines, timing.Budget())
    gap = found["differences"][letters["d"]]["event_f1"]
    assert (gap["difference"], gap["verdict"]) == (pytest.approx(0.5), "holds")
    assert letters["a"] not in found["differences"]
    routes_table, _, kinds = found["tables"]
    told = {row[0]: row[2] for row in routes_table["rows"]}
    assert told == {letters["a"]: "yes", letters["d"]: "yes", letters["c"]: "no"}
    assert kinds["rows"][0][1:] == ["0.300"] * 3

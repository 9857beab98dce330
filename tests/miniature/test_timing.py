"""The routes to timing: how tokens are packed, and how lines become tables."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.data.clips import DataError
from mfm_jax.models.adapters import AdapterConfig
from miniature import routes, timing
from miniature.routes import COARSE, PackedTimes, PackedUNet, packed, token_seconds
from tests.bundles import CONFIGS, untrained_bundle, untrained_component
from tests.feature_folder import write_features

ENCODERS = (("cavp", 32, 64), ("timechat", 16, 96))


def test_every_stream_has_channels_of_its_own():
    loa = jnp.full((2, 3, 4), 1.0)
    given = packed(loa, [jnp.full((2, 5, 6), 2.0), np.full((2, 1, 7), 3.0, np.float16)])
    assert given.shape == (2, 3 + 5 + 1, 13)
    sums = {value: np.argwhere(np.asarray(given[0]) == value) for value in (1, 2, 3)}
    for value, (rows, columns) in {1: (3, 4), 2: (5, 6), 3: (1, 7)}.items():
        assert len(sums[value]) == rows * columns
    assert (np.asarray(given)[0].sum(axis=1) > 0).all()
    assert sums[2][:, 1].max() < sums[3][:, 1].min()


def test_a_packed_unet_hears_its_loa_and_the_tokens():
    config = AdapterConfig(CONFIGS["unet"], tokens=160, width=8, loa=routes.BOTH)
    _, unet, _ = untrained_component("unet", CONFIGS["unet"], 1)
    _, adapter, _ = untrained_component("adapter", config, 2)
    keys = jax.random.split(jax.random.key(0), 3)
    loa = jax.random.normal(keys[0], (1, COARSE.tokens, 128))
    sizes = zip(keys[1:], ENCODERS, strict=True)
    streams = [jax.random.normal(key, (1, tokens, width)) for key, (_, tokens, width) in sizes]
    times = PackedTimes((*COARSE.times(), *np.linspace(0, 2.5, 48))).config.loa.times()
    latents, t = jnp.ones((1, 64, 16, 8)), jnp.array([400])

    @jax.jit
    def run(given):
        return PackedUNet(unet, adapter)(latents, t, (given,), context_seconds=jnp.asarray(times))

    base = run(packed(loa, streams))
    assert jnp.abs(run(packed(-loa, streams)) - base).max() > 1e-3
    assert jnp.abs(run(packed(loa, [streams[0], -streams[1]])) - base).max() > 1e-4


def test_clips_of_several_frame_rates_are_refused(tmp_path):
    write_features(untrained_bundle(tmp_path / "b"), tmp_path / "f", 2)
    with pytest.raises(DataError, match="tokens at other times: use one frame rate"):
        token_seconds(tmp_path / "f", ENCODERS)


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

"""Ways of sampling are compared from the same noise and LOA."""

from mfm_jax.bundle import write_bundle
from mfm_jax.foley.recipes.listener import foley_listener
from mfm_jax.foley.world import World, write_world
from mfm_jax.inference.pipeline import Sampling
from miniature import steps
from miniature.scores import open_clips
from miniature.steps import Way, compare, table, ways
from tests.bundles import untrained_bundle, untrained_component


def test_a_row_for_each_way_beside_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "BATCH", 2)
    write_world(World(), range(20_000_000, 20_000_003), tmp_path / "clips")
    clips = open_clips(tmp_path / "clips")
    bundle = untrained_bundle(tmp_path / "bundle").path
    listener = {"listener": untrained_component("listener", foley_listener(), 9)}
    write_bundle(bundle, listener)
    few = [
        Way("a", Sampling("ddim", 2, 1.0)),
        Way("b", Sampling("dpm++", 2, 1.0)),
        Way("c", Sampling("ddim", 2, 1.0)),
    ]
    first, other, again = compare(bundle, clips, few)
    assert first["distance"] == again["distance"] == 0
    assert other["distance"] > 1e-3
    assert first["scores"] == again["scores"]
    assert [row[:2] for row in table([first, other])["rows"]] == [["a", 2], ["b", 2]]


def test_the_ways_have_the_steps_that_they_name():
    found = ways(3.0, few=(5, 8), many=20)
    assert found[0] == ("DDIM, 20", Sampling("ddim", 20, 3.0))
    assert [way.sampling.steps for way in found[1:]] == [5, 5, 8, 8, 8]
    assert {way.sampling.spacing for way in found[1:-1]} == {"linspace", "logsnr"}
    assert all(way.name.endswith(f" {way.sampling.steps}") for way in found)
    assert {way.sampling.guidance for way in found} == {3.0}

"""The table of guidance counts what the UNet computes."""

from mfm_jax.diffusion import Schedule
from miniature.document import LABELS
from miniature.guidance import evaluations, table, ways


def test_steps_without_guidance_count_once():
    found = ways(4.0, steps=(25, 8))
    by_name = {way.name: evaluations(way.sampling, Schedule()) for way in found}
    assert len(by_name) == len(found) == 12
    assert by_name["25 steps, guidance 4"] == by_name["25 steps, rescaled by 0.7"] == 50
    assert by_name["8 steps, guidance 1"] == 8
    # Their noise levels are 84, 27, 11, 5.1, 2.8, 1.6, 0.98 and 0.54.
    assert by_name["8 steps, only at noise levels 0.3 to 3"] == 12
    assert by_name["8 steps, only at noise levels 0.3 to 12"] == 14
    row = {"way": "a", "distance": 0.0, "scores": dict.fromkeys(LABELS, 0.5)}
    assert table(found[:1], [row], Schedule())["rows"][0][:3] == ["a", 50, "0.000"]

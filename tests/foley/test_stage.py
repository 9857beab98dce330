import colorsys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from mfm_jax.foley.scene import KINDS, MATERIALS, SPLITS, World, WorldError, split_of
from mfm_jax.foley.stage import stage

WORLD, HARD = World(), World.hard()
NAMES = [material.name for material in MATERIALS]


@pytest.fixture(scope="module")
def scenes():
    return [stage(WORLD, seed) for seed in range(1500)]


@pytest.fixture(scope="module")
def hard_scenes():
    """The same number of each split."""
    return [stage(HARD, first + i) for first in (0, 10**7, 2 * 10**7) for i in range(150)]


def test_a_clip_too_short_to_act_in_is_refused():
    with pytest.raises(WorldError, match=r"use 1\.5 s or more"):
        World(seconds=1.0)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"seconds": 5.0, "longest": 4.0}, "give the shorter length first"),
        ({"bodies": 3}, "use 1 or 2"),
        ({"hues": 11.0}, "use 0 to 10"),
    ],
    ids=["length", "bodies", "hues"],
)
def test_numbers_that_make_no_clips_are_refused(numbers, message):
    with pytest.raises(WorldError, match=message):
        World(**numbers)


def test_shares_of_kinds_materials_and_empty_clips(scenes):
    kinds = [scene.bodies[0].kind for scene in scenes]
    shares = [kinds.count(kind) / len(scenes) for kind in KINDS]
    np.testing.assert_allclose(shares, WORLD.kinds, atol=0.04)
    names = [scene.bodies[0].material.name for scene in scenes]
    np.testing.assert_allclose([names.count(n) / len(scenes) for n in NAMES], 1 / 8, atol=0.03)
    counts = [len(scene.events) for scene in scenes]
    assert 0.015 < counts.count(0) / len(scenes) < 0.045
    assert 2.5 < np.mean(counts) < 3.2
    assert abs(np.mean([scene.disc is not None for scene in scenes]) - 0.5) < 0.04


@pytest.mark.parametrize("seconds", [1.5, 2.56, 6.0, 10.24])
def test_events_lie_inside_the_clip_and_apart(seconds):
    world = World(seconds=seconds)
    for seed in range(200):
        scene = stage(world, seed)
        times = [event.time for event in scene.events]
        assert times == sorted(times)
        assert all(world.margin <= t <= seconds - world.margin for t in times)
        assert all(later - t >= 0.159 for t, later in pairwise(times))
        assert all(0 < event.strength <= 1 for event in scene.events)
        assert all(event.kind == scene.bodies[0].kind for event in scene.events)


def bodies(*groups):
    return [(scene, body) for scenes in groups for scene in scenes[:400] for body in scene.bodies]


def test_motions_do_not_jump(scenes, hard_scenes):
    for _, body in bodies(scenes, hard_scenes):
        for motion in (body.x, body.height, body.mallet):
            if motion is None:
                continue
            for (t0, p0, v0, a0), (t1, p1, _, _) in pairwise(motion.pieces):
                assert t1 >= t0
                assert p0 + (v0 + a0 * (t1 - t0) / 2) * (t1 - t0) == pytest.approx(p1, abs=1e-6)


def test_bodies_stay_in_the_picture(scenes, hard_scenes):
    for scene, body in bodies(scenes, hard_scenes):
        t, floor = np.linspace(0, scene.seconds, 400), scene.backdrop.floor
        x, height = body.x.at(t)[0], body.height.at(t)[0]
        assert np.all((x - body.radius >= 0) & (x + body.radius <= 64))
        assert np.all((height >= -1e-9) & (floor - height - 2 * body.radius >= 0))


def test_strength_is_the_speed_before_the_contact(scenes, hard_scenes):
    fastest = {"bounce": 125, "strike": 240, "roll": 60}
    for _, body in bodies(scenes, hard_scenes):
        motion = {"bounce": body.height, "strike": body.mallet, "roll": body.x}[body.kind]
        for time, strength in body.contacts:
            speed = abs(motion.at(np.array([time - 1e-6]))[1][0])
            assert speed == pytest.approx(strength * fastest[body.kind], rel=1e-3)


def test_long_clips_are_filled():
    world = World(seconds=12.0)
    t = np.arange(0, 12, 0.02)
    for seed in range(150):
        body = stage(world, seed).bodies[0]
        moving = np.zeros(len(t), bool)
        for motion in (body.x, body.height, body.mallet):
            if motion is not None:
                moving |= np.abs(motion.at(t)[1]) > 0
        idle = np.diff(np.flatnonzero(np.concatenate([[True], moving, [True]]))).max() * 0.02
        # The mallet strikes at least once in every 2.56 s, a ball only rests for .8 s.
        assert idle < (5.1 if body.kind == "strike" else 0.9), (seed, body.kind, idle)


# The hard grade


def test_hard_clips_last_for_whole_pictures(hard_scenes):
    seconds = np.array([scene.seconds for scene in hard_scenes])
    assert 5 <= seconds.min() < 5.3
    assert 9.7 < seconds.max() <= 10
    np.testing.assert_allclose(seconds * 25, np.rint(seconds * 25), rtol=0, atol=1e-9)


def test_two_bodies_of_all_kinds_and_of_two_materials(hard_scenes):
    casts = [[body.kind for body in scene.bodies] for scene in hard_scenes]
    assert {tuple(cast) for cast in casts} == {(a, b) for a in KINDS for b in KINDS}
    for i in (0, 1):
        shares = [[cast[i] for cast in casts].count(kind) / len(casts) for kind in KINDS]
        np.testing.assert_allclose(shares, HARD.kinds, atol=0.08)
        names = [scene.bodies[i].material.name for scene in hard_scenes]
        np.testing.assert_allclose([names.count(n) / len(names) for n in NAMES], 1 / 8, atol=0.06)
    assert all(a.material != b.material for a, b in (scene.bodies for scene in hard_scenes))


def test_the_bodies_keep_apart(hard_scenes):
    for scene in hard_scenes:
        t, edges = np.linspace(0, scene.seconds, 600), []
        for body, side in zip(scene.bodies, (1, -1), strict=True):
            # The head of a mallet is 4.5 units to either side, and no body is smaller.
            edges.append((side * body.x.at(t)[0]).max() + body.radius)
        assert edges[0] + 1 < -edges[1]
        for body, at_left in zip(scene.bodies, (True, False), strict=True):
            if body.kind == "roll":
                wall = scene.backdrop.walls[0 if at_left else -1]
                assert (wall < 32) == at_left
                gap = np.abs(body.x.at(t)[0] - wall) - body.radius
                assert gap.min() > -1e-6


def test_contacts_of_two_bodies_do_not_wait_for_each_other(hard_scenes):
    nearest = []
    for scene in hard_scenes:
        times = [event.time for event in scene.events]
        assert times == sorted(times)
        assert all(HARD.margin <= t <= scene.seconds - HARD.margin for t in times)
        for body in scene.bodies:
            assert all(b[0] - a[0] >= 0.159 for a, b in pairwise(body.contacts))
        nearest.append(min(np.diff(times), default=np.inf))
    assert np.mean(np.array(nearest) < 0.05) > 0.5


def hue(colour):
    return 360 * colorsys.rgb_to_hsv(*(c / 255 for c in colour))[0]


def angle(a, b):
    """Degrees from the hue of `a` to that of `b`."""
    return (hue(b) - hue(a) + 180) % 360 - 180


def test_held_out_hues_are_not_seen_in_training_and_not_mistaken(hard_scenes):
    turns = {split: [] for split in SPLITS}
    for scene, body in bodies(hard_scenes, hard_scenes[150:], hard_scenes[300:]):
        turns[split_of(scene.seed)].append(angle(body.material.colour, body.colour))
        nearest = min(MATERIALS, key=lambda m: abs(angle(m.colour, body.colour)))
        assert nearest.colour == body.material.colour
    for split, turned in turns.items():
        low, high = (0, 10) if split == "train" else (10, 20)
        sizes = np.abs(turned)
        assert np.all((sizes >= low - 1e-6) & (sizes <= high + 1e-6))
        assert min(turned) < -high + 1
        assert max(turned) > high - 1


def test_hues_and_screens_change_nothing_else():
    screened = [seed for seed in range(30) if stage(HARD, seed).screen is not None]
    assert 8 <= len(screened) <= 22
    for seed in screened:
        scene, plain = stage(HARD, seed), stage(replace(HARD, screened=0.0, hues=0.0), seed)
        pairs = zip(scene.bodies, plain.bodies, strict=True)
        recoloured = tuple(replace(body, colour=other.colour) for body, other in pairs)
        assert replace(scene, bodies=recoloured, screen=None) == plain
        assert all(body.colour == body.material.colour for body in plain.bodies)


def test_a_screen_hides_the_contacts_of_one_body(hard_scenes):
    screens = [scene for scene in hard_scenes if scene.screen is not None]
    assert abs(len(screens) / len(hard_scenes) - 0.5) < 0.08
    for scene in screens:
        hidden = scene.bodies[scene.screen.hides]
        assert hidden.contacts
        assert [e.time for e in scene.events if e.hidden] == [t for t, _ in hidden.contacts]
    assert {scene.bodies[scene.screen.hides].kind for scene in screens} == set(KINDS)
    assert {scene.screen.hides for scene in screens} == {0, 1}
    assert not any(e.hidden for s in hard_scenes if s.screen is None for e in s.events)

import csv
import hashlib
import json
from dataclasses import replace
from itertools import pairwise

import av
import numpy as np
import pytest

from mfm_jax.foley.world import (
    KINDS,
    MATERIALS,
    SPLITS,
    World,
    WorldError,
    generate_clip,
    read_events,
    render,
    split_of,
    stage,
    synthesise,
    write_clip,
    write_world,
)
from mfm_jax.media.soundtrack import read_audio

WORLD, HARD = World(), World.hard()
NAMES = [material.name for material in MATERIALS]


@pytest.fixture(scope="module")
def scenes():
    return [stage(WORLD, seed) for seed in range(1500)]


@pytest.fixture(scope="module")
def hard_scenes():
    """The same number of each split."""
    return [stage(HARD, first + i) for first in (0, 10**7, 2 * 10**7) for i in range(150)]


@pytest.fixture(scope="module")
def clips():
    return [generate_clip(WORLD, seed) for seed in range(100)]


def of_kind(kind, clips):
    return [c for c in clips if c.scene.bodies[0].kind == kind]


# The clip

# SHA-256 of the frames, the sound and the events. Networks were trained on these very clips.
DIGESTS = {
    0: "86baed50c60964d6",
    1: "0551deedc171a394",
    2: "999a3e5f065808ed",
    3: "68bb7dcc5bd5ef02",
    5: "dacaad2a4a25d69e",
    8: "d59e86b8259da8e2",
    13: "a863e02653759f37",
    21: "9f902a89a6fdaf59",
    9_999_999: "4baa24b04d5784ae",
    10_000_000: "5878a0a4176df59e",
    20_000_000: "505d019b5d06ae47",
    20_000_007: "f4d41866440886cb",
}


@pytest.mark.parametrize("seed", DIGESTS)
def test_the_base_grade_stays_what_it_was(seed):
    made = generate_clip(WORLD, seed)
    events = [[e.time, e.kind, e.material, e.strength] for e in made.events]
    digest = hashlib.sha256(made.frames.tobytes() + made.audio.tobytes())
    digest.update(json.dumps(events).encode())
    assert digest.hexdigest()[:16] == DIGESTS[seed]
    assert not any(event.hidden for event in made.events)


def test_a_clip_is_a_function_of_its_seed(clips):
    for seed in (17, 3):
        again = generate_clip(WORLD, seed)
        assert again.scene == clips[seed].scene
        np.testing.assert_array_equal(again.frames, clips[seed].frames)
        np.testing.assert_array_equal(again.audio, clips[seed].audio)
    assert len({scene_clip.audio.tobytes() for scene_clip in clips if scene_clip.events}) == len(
        [c for c in clips if c.events]
    )
    assert len({c.frames.tobytes() for c in clips}) == len(clips)


def test_sizes(clips):
    assert clips[0].frames.shape == (64, 64, 64, 3)
    assert clips[0].audio.shape == (40_960,)
    long = generate_clip(World(seconds=6.0, fps=12.5, size=32), 0)
    assert long.frames.shape == (75, 32, 32, 3)
    assert long.audio.shape == (96_000,)


def test_a_hard_clip_is_a_function_of_its_seed():
    made, again = generate_clip(HARD, 5), generate_clip(HARD, 5)
    assert made.scene == again.scene
    np.testing.assert_array_equal(made.frames, again.frames)
    np.testing.assert_array_equal(made.audio, again.audio)


def test_a_hard_clip_lasts_as_long_as_its_scene():
    made = generate_clip(HARD, 1)
    frames = round(made.scene.seconds * 25)
    assert made.frames.shape == (frames, 64, 64, 3)
    assert made.audio.shape == (frames * 640,)


# The sound


def flux(audio):
    """Rise of the log spectrum per step of 2.5 ms, windows of 10 ms; step k is at 2.5 k ms."""
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(audio, 80), 160)[::40]
    power = np.log(np.abs(np.fft.rfft(frames * np.hanning(160))) + 1e-3)
    return np.maximum(np.diff(power, axis=0, prepend=power[:1]), 0).mean(1)


def test_the_sound_rises_at_every_contact(clips):
    errors = []
    for made in clips:
        rise = flux(made.audio)[:-4]  # a sound cut off by the end of the clip is no onset
        for event in made.events:
            at = round(event.time * 400)
            low = max(at - 30, 0)
            around = rise[low : at + 31]
            errors.append((low + around.argmax()) / 400 - event.time)
            # The noise of gravel and of rolling rises now and then by itself.
            assert around.max() > 2 * around.mean(), (made.scene.seed, event)
    assert len(errors) > 200
    assert np.abs(errors).max() < 0.01


def test_silence_before_the_first_contact(clips):
    for made in of_kind("bounce", clips) + of_kind("strike", clips):
        start = round(made.events[0].time * WORLD.rate)
        assert not made.audio[:start].any()
        assert made.audio[start : start + 800].any()


def test_a_rolling_ball_is_as_loud_as_it_is_fast():
    quiet = World(kinds=(0.0, 0.0, 1.0), wall_hit=0.0)
    t = np.arange(64) * 0.04 + 0.02
    for seed in range(12):
        scene = stage(quiet, seed)
        assert not scene.events
        level = synthesise(quiet, scene).reshape(64, 640).std(1)
        speed = np.abs(scene.bodies[0].x.at(t)[1])
        assert np.corrcoef(level, speed)[0, 1] > 0.7
        still = scene.bodies[0].x.at(t - 0.02)[1] == 0
        still[:-1] &= still[1:] & (speed[:-1] == 0)
        assert not level[still][:-1].any()


@pytest.mark.parametrize("seed", range(8))
def test_harder_contacts_are_louder_and_brighter(scenes, seed):
    scene = replace(scenes[0], seed=seed)
    frequency = np.fft.rfftfreq(1600, 1 / WORLD.rate)
    body = replace(scene.bodies[0], material=MATERIALS[seed])
    levels, centres = [], []
    for strength in (0.1, 0.3, 0.6, 1.0):
        struck = replace(body, contacts=((1.0, strength),))
        sound = synthesise(WORLD, replace(scene, bodies=(struck,)))[16_000:17_600]
        levels.append(np.sqrt(np.mean(sound**2)))
        power = np.abs(np.fft.rfft(sound)) ** 2
        centres.append((power * frequency).sum() / power.sum())
    assert all(b > a for a, b in pairwise(levels))
    # The pitch of a body can lie above the brightness of its burst, which then pulls it down less.
    assert centres[-1] > centres[0]
    assert 5 < levels[-1] / levels[0] < 20


def test_level_follows_strength_across_clips(clips):
    first = [(c.audio, c.events[0]) for c in of_kind("bounce", clips) + of_kind("strike", clips)]
    peaks = [
        np.abs(a[(s := round(e.time * WORLD.rate)) : s + 1600]).max() / e.strength for a, e in first
    ]
    np.testing.assert_allclose(peaks, 0.4, rtol=0.35)
    assert max(np.abs(c.audio).max() for c in clips) < 0.6


def test_two_bodies_leave_room_below_full_scale(hard_scenes):
    for scene in hard_scenes[:60]:
        assert np.abs(synthesise(HARD, scene)).max() < 0.65


def test_the_sound_of_two_bodies_is_the_sum_of_theirs(hard_scenes):
    for scene in hard_scenes[:10]:
        silent = [replace(body, contacts=(), kind="strike") for body in scene.bodies]
        first = synthesise(HARD, replace(scene, bodies=(scene.bodies[0], silent[1])))
        second = synthesise(HARD, replace(scene, bodies=(silent[0], scene.bodies[1])))
        assert first.any() or not scene.bodies[0].contacts
        np.testing.assert_allclose(synthesise(HARD, scene), first + second, rtol=0, atol=1e-6)


def sound_features(audio, event):
    """Log band energies of the 60 ms after a contact less their mean, and of the 60 ms after it."""
    start = round(event.time * WORLD.rate)
    bands = np.searchsorted(np.fft.rfftfreq(960, 1 / WORLD.rate), np.geomspace(60, 7900, 14))
    early, late = (
        np.log(
            np.add.reduceat(np.abs(np.fft.rfft(part)) ** 2, bands)[:-1] / event.strength**2 + 1e-4
        )
        for part in (audio[start : start + 960], audio[start + 960 : start + 1920])
    )
    return np.concatenate([early - early.mean(), late - early.mean()])


def test_the_spectrum_tells_the_material():
    """Nearest centroid of simple features of the first contact, on clips it has not seen."""
    rows, labels = [], []
    for seed in range(500):
        scene = stage(WORLD, seed)
        if scene.events and scene.bodies[0].kind != "roll" and scene.events[0].time < 2.4:
            rows.append(sound_features(synthesise(WORLD, scene), scene.events[0]))
            labels.append(NAMES.index(scene.events[0].material))
    rows, labels = np.array(rows), np.array(labels)
    half = len(rows) // 2
    centres = np.stack([rows[:half][labels[:half] == i].mean(0) for i in range(8)])
    guesses = ((rows[half:, None] - centres) ** 2).sum(-1).argmin(1)
    assert np.mean(guesses == labels[half:]) > 0.9
    assert len(set(guesses)) == 8


# The picture


def body_mask(frames):
    """Pixels of a body: the only thing with much colour."""
    frames = frames.astype(int)
    return frames.max(-1) - frames.min(-1) > 50


def test_a_ball_touches_the_floor_at_its_contacts(clips):
    for made in of_kind("bounce", clips):
        floor, mask = made.scene.backdrop.floor, body_mask(made.frames)
        gap = floor - (64 - mask.any(2)[:, ::-1].argmax(1))
        height = made.scene.bodies[0].height.at(np.arange(64) / WORLD.fps)[0]
        assert np.abs(gap - height).max() < 2
        for event in made.events:
            # The nearest frame is at most half a frame off.
            assert gap[round(event.time * WORLD.fps)] < event.strength * 125 * 0.02 + 1.5


def test_the_mallet_touches_the_body_when_it_strikes(clips):
    for made in of_kind("strike", clips):
        body, backdrop = made.scene.bodies[0], made.scene.backdrop
        column = int(body.x.at(np.zeros(1))[0][0])
        above = round(backdrop.floor - 2 * body.radius) - 2
        for event in made.events:
            after, before = int(np.ceil(event.time * WORLD.fps)), round((event.time - 0.12) * 25)
            head = 35 * backdrop.gain + 15
            assert made.frames[after, above, column].max() < head
            assert made.frames[before, above, column].max() > head


def test_a_rolling_ball_touches_the_wall(clips):
    for made in of_kind("roll", clips):
        (wall,), columns = made.scene.backdrop.walls, body_mask(made.frames).any(1)
        for event in made.events:
            shown = np.flatnonzero(columns[round(event.time * WORLD.fps)])
            way = shown[0] - wall if wall < 32 else wall - shown[-1] - 1
            assert abs(way) < event.strength * 60 * 0.02 + 1


def test_the_disc_is_seen_and_not_heard(scenes):
    scene = next(scene for scene in scenes if scene.disc is not None)
    alone = replace(scene, disc=None)
    np.testing.assert_array_equal(synthesise(WORLD, scene), synthesise(WORLD, alone))
    assert np.abs(render(WORLD, scene).astype(int) - render(WORLD, alone)).max() > 20


@pytest.mark.parametrize("kind", KINDS)
def test_size_is_only_resolution(scenes, kind):
    scene = next(scene for scene in scenes if scene.bodies[0].kind == kind)
    sharp = render(replace(WORLD, size=128, noise=0), scene).astype(float)
    coarse = render(replace(WORLD, noise=0), scene).astype(float)
    pooled = sharp.reshape(64, 64, 2, 64, 2, 3).mean((2, 4))
    flicker = pooled.mean((1, 2, 3), keepdims=True) / coarse.mean((1, 2, 3), keepdims=True)
    assert np.abs(pooled - coarse * flicker).mean() < 1


SHARP = replace(HARD, noise=0)


def white(scene, i):
    """The scene with body `i` in white."""
    changed = replace(scene.bodies[i], colour=(255.0, 255.0, 255.0))
    return replace(
        scene, bodies=tuple(changed if k == i else b for k, b in enumerate(scene.bodies))
    )


def area_that_shows(scene, i):
    """Pixels of each picture that body `i` fills in sight."""
    change = render(SHARP, scene).astype(int) - render(SHARP, white(scene, i))
    return (np.abs(change).max(-1) > 15).sum((1, 2))


def screened_by_kind(scenes, kind, count):
    screened = [s for s in scenes if s.screen and s.bodies[s.screen.hides].kind == kind]
    return screened[:count]


@pytest.mark.parametrize("kind", ["bounce", "roll"])
def test_a_ball_vanishes_behind_the_screen_and_shows_before(hard_scenes, kind):
    for scene in screened_by_kind(hard_scenes, kind, 8):
        body, area = scene.bodies[scene.screen.hides], area_that_shows(scene, scene.screen.hides)
        nearest = [round(time * HARD.fps) for time, _ in body.contacts]
        assert not area[nearest].any()
        assert area[: nearest[0]].max() > 20
        if kind == "bounce" and nearest[0] < len(area) - 20:
            assert area[nearest[0] :].max() > 20


def test_the_head_of_a_mallet_goes_down_behind_the_screen(hard_scenes):
    for scene in screened_by_kind(hard_scenes, "strike", 8):
        i = scene.screen.hides
        body, floor = scene.bodies[i], scene.backdrop.floor
        bare = tuple(replace(b, mallet=None) if b is body else b for b in scene.bodies)
        frames = render(SHARP, scene).astype(int)
        change = np.abs(frames - render(SHARP, replace(scene, bodies=bare))).max((-2, -1))
        head = change[:, int(np.ceil(floor - 2 * body.radius - 5)) :].max(1)
        assert head[[int(np.ceil(time * HARD.fps)) for time, _ in body.contacts]].max() <= 1
        above = change[:, : int(floor - 2 * body.radius - 8)].max(1)
        assert above.min() > 10
        assert area_that_shows(scene, i).min() > 20


def test_a_screen_leaves_the_other_body_alone(hard_scenes):
    screened = [scene for scene in hard_scenes if scene.screen is not None]
    for scene in screened[:12]:
        other = 1 - scene.screen.hides
        shown = area_that_shows(scene, other)
        np.testing.assert_array_equal(shown, area_that_shows(replace(scene, screen=None), other))


def test_a_screen_is_seen_and_not_heard(hard_scenes):
    scene = next(scene for scene in hard_scenes if scene.screen is not None)
    alone = replace(scene, screen=None)
    np.testing.assert_array_equal(synthesise(HARD, scene), synthesise(HARD, alone))
    assert np.abs(render(HARD, scene).astype(int) - render(HARD, alone)).max() > 20


# Files


def decode(path):
    with av.open(str(path)) as file:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    return frames, read_audio(path)


@pytest.mark.parametrize("seed", range(20, 28))
def test_a_written_clip_is_the_clip(tmp_path, clips, seed):
    made = clips[seed]
    path = write_clip(WORLD, seed, tmp_path)
    assert path == tmp_path / f"{seed}.mp4"
    assert read_events(path) == made.events == read_events(path.with_suffix(".json"))
    frames, audio = decode(path)
    assert frames.shape == made.frames.shape
    assert np.abs(frames.astype(int) - made.frames).mean() < 4
    assert audio.shape == made.audio.shape
    assert np.corrcoef(audio, made.audio)[0, 1] > 0.95


def test_the_material_is_visible_after_h264(tmp_path):
    """Hue by the mean colour of the body, texture by the spread of its brightness."""
    right = []
    for seed in range(200, 224):
        frames, _ = decode(write_clip(WORLD, seed, tmp_path))
        material = stage(WORLD, seed).bodies[0].material
        pixels = frames[body_mask(frames)].astype(float)
        colour = pixels.mean(0) / np.linalg.norm(pixels.mean(0))
        hues = [np.array(m.colour) / np.linalg.norm(m.colour) for m in MATERIALS]
        hue = int(np.argmax([h @ colour for h in hues])) // 2
        checker = pixels.max(1).std() / pixels.max(1).mean() > 0.2
        right.append(MATERIALS[2 * hue + checker] == material)
    assert np.mean(right) > 0.9


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_write_world_does_not_depend_on_order_processes_or_interruption(tmp_path):
    seeds = [2, 0, 10_000_001, 1]
    listed = write_world(WORLD, seeds, tmp_path / "a", processes=2)
    expected = contents(tmp_path / "a")
    assert len(expected) == 2 * len(seeds) + 1
    rows = list(csv.DictReader(listed.read_text().splitlines()))
    assert [row["file"] for row in rows] == ["0.mp4", "1.mp4", "2.mp4", "10000001.mp4"]
    assert [row["split"] for row in rows] == ["train"] * 3 + ["validation"]
    scene = stage(WORLD, 0).bodies[0]
    assert (rows[0]["kind"], rows[0]["material"]) == (scene.kind, scene.material.name)

    write_world(WORLD, [1], tmp_path / "b")
    (tmp_path / "b" / "0.mp4").write_bytes(b"left by a run that was killed before its json")
    kept = (tmp_path / "b" / "1.mp4").stat().st_mtime_ns
    write_world(WORLD, sorted(seeds), tmp_path / "b")
    assert contents(tmp_path / "b") == expected
    assert (tmp_path / "b" / "1.mp4").stat().st_mtime_ns == kept


def test_a_folder_of_another_world_is_refused(tmp_path):
    write_clip(WORLD, 0, tmp_path)
    with pytest.raises(WorldError, match="another folder"):
        write_world(replace(WORLD, distractor=0.0), [1], tmp_path)


def test_a_folder_from_before_the_hard_grade_is_of_the_base_grade(tmp_path):
    file = write_clip(WORLD, 0, tmp_path).with_suffix(".json")
    record = json.loads(file.read_text())
    for key in ("longest", "bodies", "screened", "hues"):
        del record["world"][key]
    for event in record["events"]:
        del event["hidden"]
    for key in ("kinds", "materials", "seconds"):
        del record[key]
    file.write_text(json.dumps(record))
    assert read_events(file) == stage(WORLD, 0).events
    rows = list(csv.DictReader(write_world(WORLD, [0], tmp_path).read_text().splitlines()))
    assert [row["file"] for row in rows] == ["0.mp4"]
    assert json.loads(file.read_text()) == record
    with pytest.raises(WorldError, match="another folder"):
        write_world(HARD, [0], tmp_path)


def test_the_record_of_a_hard_clip(tmp_path):
    seed = next(seed for seed in range(20) if stage(HARD, seed).screen is not None)
    scene, path = stage(HARD, seed), write_clip(HARD, seed, tmp_path)
    record = json.loads(path.with_suffix(".json").read_text())
    assert record["kinds"] == [body.kind for body in scene.bodies]
    assert record["materials"] == [body.material.name for body in scene.bodies]
    assert (record["kind"], record["material"]) == (record["kinds"][0], record["materials"][0])
    assert record["seconds"] == scene.seconds
    assert read_events(path) == scene.events
    assert {event.hidden for event in read_events(path)} == {False, True}
    frames, audio = decode(path)
    assert (len(frames), len(audio)) == (scene.seconds * 25, scene.seconds * 16_000)


def test_records_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(WorldError, match=r"5\.json is missing"):
        read_events(tmp_path / "5.mp4")
    for text in ("{", "[]", "{}"):
        (tmp_path / "5.json").write_text(text)
        with pytest.raises(WorldError, match=r"5\.json does not describe a clip"):
            read_events(tmp_path / "5.mp4")


def test_splits_follow_the_seed(tmp_path):
    assert [split_of(seed) for seed in (0, 9_999_999)] == ["train", "train"]
    assert [split_of(seed) for seed in (10_000_000, 20_000_000)] == ["validation", "test"]
    assert [(a.stop, b.start) for a, b in pairwise(SPLITS.values())] == [
        (10**7,) * 2,
        (2 * 10**7,) * 2,
    ]
    with pytest.raises(WorldError, match="belongs to no split"):
        write_world(WORLD, [-1], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("world", [WORLD, HARD], ids=["base", "hard"])
def test_the_record_holds_the_world(tmp_path, world):
    record = json.loads(write_clip(world, 3, tmp_path).with_suffix(".json").read_text())
    saved = {k: tuple(v) if isinstance(v, list) else v for k, v in record["world"].items()}
    assert World(**saved) == world
    assert record["seed"] == 3

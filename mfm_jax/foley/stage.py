"""Draws the scenes of the Foley world: which bodies there are, where, and how they move."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mfm_jax.foley.scene import (
    FASTEST,
    KINDS,
    MATERIALS,
    Backdrop,
    Body,
    Disc,
    Material,
    Motion,
    Scene,
    Screen,
    World,
    split_of,
    stream,
)
from mfm_jax.typing import Float


@dataclass(frozen=True)
class Part:
    """The properties that are drawn for a body before its motion."""

    kind: str
    material: Material
    colour: tuple[float, float, float]  # red, green, blue, 0-255
    radius: float  # units
    lane: tuple[float, float]  # units from the left; the part of the picture it stays in
    seconds: float  # length of the clip


def stage(world: World, seed: int) -> Scene:
    """Draw the scene of `seed`.

    Raises:
        WorldError: the world turns the hues, and the seed belongs to no split.
    """
    rng, seconds = stream(seed, 0), _length(world, seed)
    parts = _cast(world, rng, seed, seconds)
    floor = rng.uniform(50, 57)
    bodies: list[Body] = []
    walls: list[float] = []
    for part in parts:
        if part.kind == "bounce":
            bodies.append(_bounce(world, rng, part, floor))
        elif part.kind == "strike":
            bodies.append(_strike(world, rng, part))
        else:
            walls.append(_wall(rng, part.lane))
            bodies.append(_roll(world, rng, part, walls[-1]))
    backdrop = Backdrop(
        floor=floor,
        walls=tuple(walls),
        grey=rng.uniform(110, 165),
        tint=tuple(rng.uniform(-10, 10, 3).tolist()),
        swing=rng.uniform(8, 22),
        waves=tuple((rng.choice([-1, 1], 2) * rng.uniform(0.1, 0.5, 2)).tolist()),
        speed=rng.uniform(2, 8),
        gain=rng.uniform(0.85, 1.15),
    )
    disc = _disc(rng) if rng.random() < world.distractor else None
    return Scene(seed, seconds, tuple(bodies), backdrop, disc, _screen(world, seed, bodies, floor))


# Bodies and their surroundings --------------------------------------------------------------------

# Uses of a seed's random streams. 0 is the scene of the base grade, 1 the noise of the picture, 2
# and 3 are the sounds of the bodies.
_LENGTH, _LANES, _HUES, _SCREEN = 4, 5, 6, 7


def _length(world: World, seed: int) -> float:
    """Return the seconds of the clip."""
    if world.longest is None:
        return world.seconds
    drawn = stream(seed, _LENGTH).uniform(world.seconds, world.longest)
    return round(drawn * world.fps) / world.fps


def _lanes(world: World, seed: int) -> list[tuple[float, float]]:
    """Return the part of the picture's width that each body stays in."""
    if world.bodies == 1:
        return [(0.0, 64.0)]
    border = stream(seed, _LANES).uniform(30, 34)
    return [(0.0, border), (border, 64.0)]


def _cast(world: World, rng: np.random.Generator, seed: int, seconds: float) -> list[Part]:
    """Draw the properties of the bodies; no two have the same material."""
    parts: list[Part] = []
    hues = stream(seed, _HUES)
    for lane in _lanes(world, seed):
        kind = KINDS[rng.choice(len(KINDS), p=world.kinds)]
        left = [m for m in MATERIALS if all(m is not part.material for part in parts)]
        material = left[rng.integers(len(left))]
        colour = _turned(world, hues, seed, material.colour) if world.hues else material.colour
        parts.append(Part(kind, material, colour, rng.uniform(*world.radius), lane, seconds))
    return parts


def _turned(
    world: World, rng: np.random.Generator, seed: int, colour: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Return `colour` in another hue, less than halfway to the next material's; a little paler."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
    low, high = (0.0, world.hues) if split_of(seed) == "train" else (world.hues, 2 * world.hues)
    angle = rng.choice([-1, 1]) * rng.uniform(low, high)
    saturation, value = saturation * rng.uniform(0.85, 1), value * rng.uniform(0.85, 1)
    red, green, blue = colorsys.hsv_to_rgb((hue + angle / 360) % 1, saturation, value)
    return 255 * float(red), 255 * float(green), 255 * float(blue)


def _wall(rng: np.random.Generator, lane: tuple[float, float]) -> float:
    """Draw the face of a wall: on either side of the picture, or on the outer side of a lane."""
    if lane == (0.0, 64.0):
        return float(rng.choice([rng.uniform(4, 8), rng.uniform(56, 60)]))
    return rng.uniform(3, 5) if lane[0] == 0 else rng.uniform(59, 61)


def _screen(world: World, seed: int, bodies: Sequence[Body], floor: float) -> Screen | None:
    """Draw a screen that hides all contacts of one body and stays in the body's lane, or None."""
    rng = stream(seed, _SCREEN)
    touching = [i for i, body in enumerate(bodies) if body.contacts]
    if not touching or rng.random() >= world.screened:
        return None
    i = touching[rng.integers(len(touching))]
    body = bodies[i]
    x = body.x.at(np.array([t for t, _ in body.contacts]))[0]
    # The screen is larger than the body at its contacts: a frame can be half a frame away from a
    # contact, and the edges of both are soft by half a unit. For a strike it hides the mallet's
    # head and leaves the lower half of the body visible. For a ball it reaches below the floor.
    rim, way = 1.0, max(strength for _, strength in body.contacts) * FASTEST[body.kind] / world.fps
    side, rise, low = {
        "bounce": (body.radius + rim, 2 * body.radius + rim + way / 2, -rim),
        "roll": (body.radius + rim + way / 2, 2 * body.radius + rim, -rim),
        "strike": (4.5 + rim, 2 * body.radius + 5 + rim, body.radius),
    }[body.kind]
    return Screen(
        hides=i,
        grey=float(rng.choice([rng.uniform(20, 60), rng.uniform(200, 240)])),
        across=(float(x.min()) - side, float(x.max()) + side),
        down=(floor - rise, floor - low),
    )


def _disc(rng: np.random.Generator) -> Disc:
    def two(low: float, high: float) -> tuple[float, float]:
        x, y = rng.uniform(low, high, 2)
        return float(x), float(y)

    return Disc(
        grey=float(rng.choice([rng.uniform(20, 60), rng.uniform(200, 240)])),
        radius=rng.uniform(3, 6),
        centre=two(18.0, 34.0),
        reach=two(8.0, 18.0),
        rate=two(0.1, 0.4),
        phase=two(0.0, 2 * np.pi),
    )


# Motions of the bodies ----------------------------------------------------------------------------

_STILL = Motion(((0.0, 0.0, 0.0, 0.0),))


def _inside(part: Part, contacts: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the contacts within the clip."""
    return [(t, strength) for t, strength in contacts if 0 <= t < part.seconds]


def _clear(world: World, part: Part, contacts: Sequence[tuple[float, float]]) -> bool:
    """Return True if every contact is far enough from both ends to be seen and heard."""
    ends = (0.0, part.seconds)
    return all(abs(t - end) >= world.margin for t, _ in contacts for end in ends)


def _ease(t: float, start: float, stop: float, seconds: float) -> list[tuple]:
    """Return two pieces that go from rest at `start` to rest at `stop`."""
    a = 4 * (stop - start) / seconds**2
    half = seconds / 2
    return [(t, start, 0.0, a), (t + half, (start + stop) / 2, a * half, -a)]


def _bounce(world: World, rng: np.random.Generator, part: Part, floor: float) -> Body:
    """Draw a ball that falls and bounces until it rests, then is lifted and falls again."""
    g, e = rng.uniform(*world.gravity), rng.uniform(*world.restitution)
    highest = floor - 2 * part.radius - 1
    reach = (part.lane[0] + 2 + part.radius, part.lane[1] - 2 - part.radius)
    contacts: list[tuple[float, float]] = []
    while not (_inside(part, contacts) and _clear(world, part, contacts)):
        h = rng.uniform(18, highest)
        t = float(rng.uniform(-0.7 * np.sqrt(2 * h / g), 0.4))
        side = rng.uniform(*reach)
        height, x, contacts = [(t - 10, h, 0.0, 0.0)], [(t - 10, side, 0.0, 0.0)], []
        while t < part.seconds:
            gaps = _gaps(h, g, e, world.bounce_gap)
            drift = float(np.clip((rng.uniform(*reach) - side) / sum(gaps), -20, 20))
            height.append((t, h, 0.0, -g))
            x.append((t, side, drift, 0.0))
            side += drift * sum(gaps)
            for i, gap in enumerate(gaps):
                t += gap
                speed = float(np.sqrt(2 * g * h)) * e**i
                contacts.append((t, speed / FASTEST["bounce"]))
                height.append((t, 0.0, speed * e, -g))
            height[-1] = (t, 0.0, 0.0, 0.0)
            x.append((t, side, 0.0, 0.0))
            t += rng.uniform(0.3, 0.8)
            h = rng.uniform(18, highest)
            height += _ease(t, 0.0, h, 0.5)
            t += 0.5
    turn = Motion(((0.0, rng.uniform(0, 7), rng.uniform(-5, 5), 0.0),))
    return Body(
        kind="bounce",
        material=part.material,
        colour=part.colour,
        radius=part.radius,
        x=Motion(tuple(x)),
        height=Motion(tuple(height)),
        turn=turn,
        mallet=None,
        contacts=tuple(_inside(part, contacts)),
    )


def _gaps(h: float, g: float, e: float, shortest: float) -> list[float]:
    """Return the seconds of the fall from `h`, then of each bounce of at least `shortest`."""
    fall = float(np.sqrt(2 * h / g))
    gaps = [fall]
    while (gap := 2 * fall * e ** len(gaps)) >= shortest:
        gaps.append(gap)
    return gaps


_DWELL = 0.04  # s that the mallet stays on the body, so that one frame at 25 fps shows it there


def _strike(world: World, rng: np.random.Generator, part: Part) -> Body:
    """Draw a body on the floor that a mallet strikes."""
    times = _blow_times(world, rng, part.seconds)
    left, right = part.lane
    count = len(times)
    strengths = rng.uniform(0.25, 1, count)
    # A harder blow starts higher up and takes less time.
    drops = 2.5 + 13.5 * strengths
    falls = 2 * drops / (FASTEST["strike"] * strengths)
    gap: list[tuple] = [(-1.0, drops[0], 0.0, 0.0)]
    for i, t in enumerate(times):
        gap += [(t - falls[i], drops[i], 0.0, -2 * drops[i] / falls[i] ** 2), (t, 0.0, 0.0, 0.0)]
        following = drops[i + 1] if i + 1 < count else 8.0
        free = times[i + 1] - falls[i + 1] - t - _DWELL if i + 1 < count else 1.0
        rise = min(0.25, free)
        gap += [*_ease(t + _DWELL, 0.0, following, rise), (t + _DWELL + rise, following, 0.0, 0.0)]
    return Body(
        kind="strike",
        material=part.material,
        colour=part.colour,
        radius=part.radius,
        x=Motion(((0.0, rng.uniform(left + 4 + part.radius, right - 4 - part.radius), 0.0, 0.0),)),
        height=_STILL,
        turn=Motion(((0.0, rng.uniform(0, 7), 0.0, 0.0),)),
        mallet=Motion(tuple(gap)),
        contacts=tuple(zip(times.tolist(), strengths.tolist(), strict=True)),
    )


def _blow_times(
    world: World, rng: np.random.Generator, seconds: float
) -> Float[np.ndarray, " blows"]:
    """Draw the times of the blows; each 2.56 s of a long clip are drawn separately."""
    first = 0.22  # s, so that the fall of the mallet is visible
    stretch = seconds - world.margin + world.blow_gap - first
    sections = max(1, round(seconds / 2.56))
    times: list[float] = []
    for i in range(sections):
        most = int(stretch / sections / world.blow_gap)
        count = min(int(rng.integers(world.blows[0], world.blows[1] + 1)), most)
        spare = stretch / sections - count * world.blow_gap
        start = first + i * stretch / sections
        times.extend(
            start + np.sort(rng.uniform(0, spare, count)) + world.blow_gap * np.arange(count)
        )
    return np.array(times)


def _roll(world: World, rng: np.random.Generator, part: Part, wall: float) -> Body:
    """Draw a ball that is pushed along the floor, mostly against a wall, again and again."""
    radius = part.radius
    room = (part.lane[1] - wall if wall < 32 else wall - part.lane[0]) - 2 * radius - 1
    contacts: list[tuple[float, float]] = []
    hit = rng.random() < world.wall_hit
    fits = False
    while not fits:
        t, d = rng.uniform(-0.2, 0.4), rng.uniform(0.6, 0.95) * room
        pieces: list[tuple] = [(t - 10, d, 0.0, 0.0)]
        contacts, against = [], hit
        while t < part.seconds:
            if d < 0.35 * room:
                t, d = _push(rng, pieces, t, d, rng.uniform(0.6, 0.95) * room)
            elif against:
                t, d, contact = _push_against_wall(rng, pieces, t, d, room)
                contacts.append(contact)
            else:
                t, d = _push(rng, pieces, t, d, rng.uniform(0.1, 0.3) * d)
            t += rng.uniform(0.3, 0.8)
            against = rng.random() < world.wall_hit
        fits = _clear(world, part, contacts) and (not hit or bool(_inside(part, contacts)))
    # `d` is the distance to the wall.
    sign = 1 if wall < 32 else -1
    x = Motion(tuple((t, wall + sign * (radius + d), sign * v, sign * a) for t, d, v, a in pieces))
    turn = Motion(tuple((t, p / radius, v / radius, a / radius) for t, p, v, a in x.pieces))
    return Body(
        kind="roll",
        material=part.material,
        colour=part.colour,
        radius=part.radius,
        x=x,
        height=_STILL,
        turn=turn,
        mallet=None,
        contacts=tuple(_inside(part, contacts)),
    )


_PUSH = 0.2  # s until a ball at rest reaches its speed


def _push(
    rng: np.random.Generator, pieces: list[tuple], t: float, start: float, stop: float
) -> tuple[float, float]:
    """Roll from rest at `start` to rest at `stop`; return the time and place of the end."""
    way = stop - start
    v = float(np.sign(way) * min(rng.uniform(25, 60), abs(way) / _PUSH))
    pieces.append((t, start, 0.0, v / _PUSH))
    left = way - v * _PUSH / 2
    a = -(v**2) / (2 * left)
    pieces += [
        (t + _PUSH, stop - left, v, a),
        (t + _PUSH - v / a, stop, 0.0, 0.0),
    ]
    return t + _PUSH - v / a, stop


def _push_against_wall(
    rng: np.random.Generator, pieces: list[tuple], t: float, d: float, room: float
) -> tuple[float, float, tuple[float, float]]:
    """Roll from rest at distance `d` against the wall and back; return the end and the contact."""
    v = min(rng.uniform(25, 60), d / _PUSH)
    arrival = v * rng.uniform(0.6, 0.95)
    left = d - v * _PUSH / 2
    a = (v**2 - arrival**2) / (2 * left)
    hit = t + _PUSH + (v - arrival) / a
    back = arrival * rng.uniform(0.4, 0.6)
    a_back = max(a, back**2 / (2 * 0.9 * room))
    stop, end = back**2 / (2 * a_back), hit + back / a_back
    pieces += [
        (t, d, 0.0, -v / _PUSH),
        (t + _PUSH, left, -v, a),
        (hit, 0.0, back, -a_back),
        (end, stop, 0.0, 0.0),
    ]
    return end, stop, (hit, arrival / FASTEST["roll"])

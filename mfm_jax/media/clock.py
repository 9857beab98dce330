"""Continuous times from the timestamps of a file, whose clock may start again or leap.

Recordings joined byte by byte start their clock again, and a broken recorder lets it leap ahead.
Players go on as if nothing had happened. The picture and the sound of one recording share a clock,
so a break in one stream belongs together with the break in the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np

from mfm_jax.typing import Float, Int

BACK = 0.1
"""Seconds by which a timestamp may lie before the one before it; containers round them."""

AHEAD = 10.0
"""Seconds that a stream may be ahead of all that came before it in the file, as in ffplay."""

ALONE = 60.0
"""The same, where no other stream contradicts the clock, as in mpv."""

NEAR = 5.0
"""Seconds between two streams at one place of a file."""

RETURN = 1.0
"""The same, where one returns to the clock of the other after it was wrong for a while."""

LAG = 0.3
"""Seconds by which one stream may usually lag behind another in a file."""

AUDIO_OVERLAP = 0.1
"""Seconds of sound that may be lost at a joint, so that the padding of codecs adds no pause."""


@dataclass(frozen=True, eq=False)
class Stamps:
    """The times of the packets of one stream, in the order of the file.

    They are in seconds; those that the file does not tell are NaN.
    """

    place: Int[np.ndarray, " packets"]  # among the packets of all streams
    decoded: Float[np.ndarray, " packets"]
    shown: Float[np.ndarray, " packets"]
    lasting: Float[np.ndarray, " packets"]
    audio: bool

    @cached_property
    def usual(self) -> float:
        """The usual duration of a packet."""
        return float(np.median(self.lasting)) if len(self.lasting) else 0.0

    @cached_property
    def begins(self) -> Float[np.ndarray, " packets"]:
        """When each packet is shown, or decoded where only that is known."""
        return np.where(np.isnan(self.shown), self.decoded, self.shown)

    @cached_property
    def ends(self) -> Float[np.ndarray, " packets"]:
        """When each packet ends; a break of the clock may look like a very long packet."""
        return self.begins + np.where(self.lasting > 2 * self.usual, self.usual, self.lasting)

    @cached_property
    def breaks(self) -> Int[np.ndarray, " breaks"]:
        """The packets, by their numbers, to which the clock goes back or far ahead."""
        return self._about_breaks[1]

    @cached_property
    def _about_breaks(self) -> tuple[Int[np.ndarray, " breaks"], Int[np.ndarray, " breaks"]]:
        """The packets before and behind each break."""
        known = np.flatnonzero(np.isfinite(self.decoded))
        steps = np.diff(self.decoded[known])
        breaks = (steps < -BACK) | (steps > AHEAD)
        return known[:-1][breaks], known[1:][breaks]

    @cached_property
    def _break_times(self) -> Float[np.ndarray, " breaks"]:
        return np.sort(self.decoded[self.breaks])

    def next_break(self, after: int) -> tuple[float, float] | None:
        """Return the times before and behind the first break after a packet, if there is one."""
        at = int(np.searchsorted(self.breaks, after, side="right"))
        if at == len(self.breaks):
            return None
        before, behind = (float(self.decoded[side[at]]) for side in self._about_breaks)
        return before, behind

    def breaks_near(self, time: float) -> bool:
        """Return whether the clock goes back or far ahead to about `time`."""
        at = np.searchsorted(self._break_times, time - NEAR, side="right")
        return bool(at < len(self._break_times) and self._break_times[at] < time + NEAR)


def shifts(streams: Sequence[Stamps], *, restarts: bool) -> list[Float[np.ndarray, " packets"]]:
    """Return what to add to the times of each packet so that every stream is continuous.

    Args:
        streams: the picture and the sound of a file.
        restarts: whether a break of the clock is usual in this kind of container (MPEG streams).
            The durations in other kinds are believed, if no other stream contradicts them.
    """
    if not any(len(stream.breaks) for stream in streams):
        return [np.zeros(len(stream.place)) for stream in streams]
    epochs = [_Epochs(stream) for stream in streams]
    joints = _find_joints(epochs)
    visits = _first_visits(epochs, joints)
    offsets = [0.0]
    for joint in range(1, joints + 1):
        offsets.append(_offset(visits[joint], offsets))
    found = [_spread(stream, offsets) for stream in epochs]
    _close_gaps(streams, found, restarts)
    return found


@dataclass
class _Epochs:
    """The stretches of one stream between breaks of its clock."""

    stamps: Stamps
    joints: list[int] = field(default_factory=lambda: [0])  # that each follows; 0 is the beginning
    begins: list[int] = field(default_factory=lambda: [0])  # number of the first packet of each
    latest: int = -1  # number of the latest packet
    last: float = np.nan  # its time

    def is_at(self, time: float, apart: float) -> bool:
        """Return whether this stream is at most `apart` from `time` in the same recording."""
        return abs(self.last - time) < apart and not self.is_before(time)

    def is_before(self, time: float) -> bool:
        """Return whether `time` is rather that of the next recording, which is about to begin."""
        coming = self.stamps.next_break(self.latest)
        if coming is None or np.isnan(self.last):
            return False
        before, behind = coming
        away = abs(behind - time) + (before - self.last)
        return away < NEAR and away + LAG < abs(self.last - time)


def _find_joints(epochs: Sequence[_Epochs]) -> int:
    """Cut the streams where their clocks go back; return the number of joints in the file.

    Here, a clock that leaps ahead counts only where the other stream goes on without a leap.
    """
    joints, position = 0, -np.inf
    ahead_of = [0.0] * len(epochs)  # what makes each stream continuous so far
    for which, number in _in_file_order(epochs):
        stream = epochs[which]
        time = float(stream.stamps.decoded[number])
        others = [other for other in epochs if other is not stream]
        back = time - stream.last < -BACK
        leaps = time - stream.last > AHEAD and time + ahead_of[which] - position > AHEAD
        if leaps:
            going_on = [o for o in others if np.isfinite(o.last)]
            leaps = bool(going_on) and not any(o.stamps.breaks_near(time) for o in going_on)
        if back or leaps:
            joint = _same_joint(stream, time, others)
            if joint is None:
                joints += 1
                joint = joints
            ahead_of[which] += stream.last + stream.stamps.usual - time
            stream.joints.append(joint)
            stream.begins.append(number)
        elif np.isnan(stream.last):
            stream.joints[0] = _joint_at_start(time, others, joints)
            joints = max(joints, stream.joints[0])
        stream.latest, stream.last = number, time
        position = max(position, time + ahead_of[which])
    return joints


def _in_file_order(epochs: Sequence[_Epochs]) -> list[tuple[int, int]]:
    """Return the stream and the number of each packet whose time is known."""
    every = [
        (int(stream.stamps.place[number]), which, int(number))
        for which, stream in enumerate(epochs)
        for number in np.flatnonzero(np.isfinite(stream.stamps.decoded))
    ]
    return [(which, number) for _, which, number in sorted(every)]


def _same_joint(stream: _Epochs, time: float, others: Sequence[_Epochs]) -> int | None:
    """Return the joint of another stream that a break of `stream` to `time` belongs to, if any.

    It is an earlier one where a clock was wrong for a while.
    """
    for other in others:
        there, here = other.joints[-1], stream.joints[-1]
        if there != here and other.is_at(time, NEAR if there > here else RETURN):
            return there
    return None


def _joint_at_start(time: float, others: Sequence[_Epochs], joints: int) -> int:
    """Return the joint that a stream follows whose first packet has `time`."""
    for other in others:
        return joints + 1 if other.is_before(time) else other.joints[-1]
    return 0


_Visit = tuple[_Epochs, int]
"""A stream, and which of its epochs begins at a joint."""


def _first_visits(epochs: Sequence[_Epochs], joints: int) -> list[list[_Visit]]:
    """Return the epochs that begin at each joint after one that lies before it."""
    visits: list[list[_Visit]] = [[] for _ in range(joints + 1)]
    for stream in epochs:
        for at, (before, joint) in enumerate(pairwise(stream.joints), start=1):
            if before < joint:
                visits[joint].append((stream, at))
    return visits


def _offset(first_visits: Sequence[_Visit], offsets: Sequence[float]) -> float:
    """Return the shift behind a joint: every stream goes on after its end, and one at its end."""
    with_picture = any(not stream.stamps.audio for stream, _ in first_visits)
    found = []
    for stream, at in first_visits:
        end = float(np.nanmax(stream.stamps.ends[_stretch(stream, at - 1)]))
        begin = float(np.nanmin(stream.stamps.begins[_stretch(stream, at)]))
        overlap = AUDIO_OVERLAP if stream.stamps.audio and with_picture else 0.0
        found.append(end + offsets[stream.joints[at - 1]] - begin - overlap)
    return max(found, default=offsets[-1])


def _stretch(stream: _Epochs, at: int) -> slice:
    return slice(stream.begins[at], stream.begins[at + 1] if at + 1 < len(stream.begins) else None)


def _spread(stream: _Epochs, offsets: Sequence[float]) -> Float[np.ndarray, " packets"]:
    number = np.arange(len(stream.stamps.place))
    epoch = np.searchsorted(stream.begins, number, side="right") - 1
    return np.array([offsets[joint] for joint in stream.joints])[epoch]


def _close_gaps(
    streams: Sequence[Stamps], found: Sequence[Float[np.ndarray, " _"]], restarts: bool
) -> None:
    """Take out of `found` the leaps ahead: stretches in which no stream has anything."""
    sorted_streams = [_Sorted(s, shift) for s, shift in zip(streams, found, strict=True)]
    every = np.concatenate([stream.begins for stream in sorted_streams])
    order = np.argsort(every)
    every = every[order]
    latest = np.maximum.accumulate(np.concatenate([s.ended for s in sorted_streams])[order])
    behinds, gaps = [], [0.0]
    for at in np.flatnonzero(every[1:] - latest[:-1] > AHEAD):
        behind = float(every[at + 1])
        gap = _gap_to_close(sorted_streams, behind, behind - float(latest[at]), restarts)
        if gap is not None:
            behinds.append(behind)
            gaps.append(gap)
    total = np.cumsum(gaps)
    for stream, shift in zip(streams, found, strict=True):
        begins = stream.begins + shift
        known = np.isfinite(begins)
        shift[known] -= total[np.searchsorted(behinds, begins[known], side="right")]


class _Sorted:
    """The packets of a stream in the order of their continuous times."""

    def __init__(self, stream: Stamps, shift: Float[np.ndarray, " packets"]) -> None:
        begins = stream.begins + shift
        order = np.argsort(begins)[: int(np.isfinite(begins).sum())]
        self.audio = stream.audio
        self.begins = begins[order]
        # The end of all packets so far: the likely one, and the one that is declared.
        self.ended = np.maximum.accumulate((stream.ends + shift)[order])
        self.declared = np.maximum.accumulate((begins + stream.lasting)[order])


def _gap_to_close(
    streams: Sequence[_Sorted], behind: float, seconds: float, restarts: bool
) -> float | None:
    """Return what to take out of a gap of `seconds` before `behind`; None if it is meant."""
    before = [int(np.searchsorted(stream.begins, behind)) for stream in streams]
    places = list(zip(streams, before, strict=True))
    going_on = [(s, at) for s, at in places if 0 < at < len(s.begins)]
    if not going_on:
        return None
    if not restarts and len(going_on) < 2:
        declared = max(float(s.declared[at - 1]) for s, at in places if at)
        if seconds <= ALONE or declared >= behind - BACK:
            return None  # the picture stays for so long
    # As much as lets one stream go on at its end.
    return min(
        float(stream.begins[at] - stream.ended[at - 1])
        + (AUDIO_OVERLAP if stream.audio and len(going_on) > 1 else 0.0)
        for stream, at in going_on
    )

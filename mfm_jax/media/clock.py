"""Continuous times from the timestamps of a file, whose clock may start again or leap.

Recordings joined byte by byte start their clock again, and a broken recorder lets it leap ahead.
Players go on as if nothing had happened. The picture and the sound of one recording share a clock,
so a break in one stream belongs together with the break in the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mfm_jax.typing import Bool, Float, Int

BACK = 0.1
"""Seconds by which a timestamp may lie before the one before it; containers round them."""

AHEAD = 10.0
"""Seconds that a stream may be ahead of all that came before it in the file, as in ffplay."""

ALONE = 60.0
"""The same, where no other stream contradicts the clock, as in mpv."""

NEAR = 5.0
"""Seconds between two streams at one place of a file."""

LONGEST = 1.0
"""Seconds of the last packet before a joint that are believed."""

AUDIO_OVERLAP = 0.1
"""Seconds of sound that may be lost at a joint, so that the padding of codecs adds no pause."""


@dataclass(frozen=True, eq=False)
class Stamps:
    """When the packets of one stream are decoded, in the order of the file.

    Times are in seconds; those that the file does not tell are NaN.
    """

    place: Int[np.ndarray, " packets"]  # among the packets of all streams
    decoded: Float[np.ndarray, " packets"]
    lasting: Float[np.ndarray, " packets"]  # 0 if the file does not tell
    audio: bool


@dataclass
class _Epochs:
    """The stretches of one stream between breaks of its clock."""

    stamps: Stamps
    joints: list[int]  # the joint that each stretch follows; 0 is the beginning of the file
    first: list[float]  # raw time at which each begins
    end: list[float]  # latest raw time at which each ends
    begins: list[int]  # number of its first packet
    last: float = np.nan  # raw times of the latest packet
    lasting: float = 0.0
    leaps_to: list[float] = field(default_factory=list)


def shifts(streams: Sequence[Stamps], *, restarts: bool) -> list[Float[np.ndarray, " packets"]]:
    """Return what to add to the times of each packet so that every stream is continuous.

    Args:
        streams: the picture and the sound of a file.
        restarts: whether the clock of this kind of container may start again (MPEG-TS, FLV). The
            durations in other kinds are believed, if no other stream contradicts them.
    """
    if not any(_suspicious(stream).any() for stream in streams):
        return [np.zeros(len(stream.place)) for stream in streams]
    epochs = [_Epochs(s, [0], [np.nan], [-np.inf], [0]) for s in streams]
    joints = _find_joints(epochs, restarts)
    offsets = [0.0]
    for joint in range(1, joints + 1):
        offsets.append(_offset(epochs, joint, offsets))
    return [_spread(stream, offsets) for stream in epochs]


def _suspicious(stream: Stamps) -> Bool[np.ndarray, " steps"]:
    known = stream.decoded[np.isfinite(stream.decoded)]
    steps = np.diff(known)
    return (steps < -BACK) | (steps > AHEAD)


def _find_joints(epochs: Sequence[_Epochs], restarts: bool) -> int:
    """Cut the streams into epochs; return the number of joints in the file."""
    for stream in epochs:
        known = stream.stamps.decoded[np.isfinite(stream.stamps.decoded)]
        stream.leaps_to = known[1:][np.diff(known) > AHEAD].tolist()
    several = sum(bool(np.isfinite(stream.stamps.decoded).any()) for stream in epochs) > 1
    joints, position = 0, -np.inf
    provisional = [0.0] * len(epochs)
    for which, number in _in_file_order(epochs):
        stream = epochs[which]
        time = float(stream.stamps.decoded[number])
        if not np.isfinite(time):
            continue
        others = [other for other in epochs if other is not stream]
        limit = AHEAD if several or restarts else ALONE
        ahead = time + provisional[which] - position
        told = stream.last + stream.lasting >= time - BACK and not restarts
        leaps = ahead > limit and time - stream.last > AHEAD
        if leaps and told and not stream.stamps.audio:
            # The file itself says that the frame stays for so long.
            leaps = any(abs(time - there) < NEAR for o in others for there in o.leaps_to)
        if time - stream.last < -BACK or leaps:
            joint = _same_joint(stream, time, others)
            if joint is None:
                joints += 1
                joint = joints
            provisional[which] += stream.end[-1] - time
            stream.joints.append(joint)
            stream.first.append(time)
            stream.end.append(-np.inf)
            stream.begins.append(number)
        elif not np.isfinite(stream.first[0]):
            stream.first[0] = time
        lasting = float(stream.stamps.lasting[number])
        stream.last, stream.lasting = time, lasting
        stream.end[-1] = max(stream.end[-1], time + min(lasting, LONGEST))
        position = max(position, stream.end[-1] + provisional[which])
    return joints


def _in_file_order(epochs: Sequence[_Epochs]) -> list[tuple[int, int]]:
    every = [
        (place, which, number)
        for which, stream in enumerate(epochs)
        for number, place in enumerate(stream.stamps.place.tolist())
    ]
    return [(which, number) for _, which, number in sorted(every)]


def _same_joint(stream: _Epochs, time: float, others: Sequence[_Epochs]) -> int | None:
    """Return the joint of another stream that a break of `stream` to `time` belongs to, if any."""
    current = stream.joints[-1]
    for other in others:
        for joint, first in zip(other.joints, other.first, strict=True):
            if joint > current and joint not in stream.joints and abs(first - time) < NEAR:
                return joint
        if other.joints[-1] != current and abs(other.last - time) < NEAR:
            return other.joints[-1]  # a clock that was wrong for a while
    return None


def _offset(epochs: Sequence[_Epochs], joint: int, offsets: Sequence[float]) -> float:
    """Return the shift behind a joint: every stream goes on after its end, and one at its end."""
    first_visits = [
        (stream, at)
        for stream in epochs
        for at, there in enumerate(stream.joints)
        if there == joint and stream.joints[at - 1] < joint
    ]
    with_picture = any(not stream.stamps.audio for stream, _ in first_visits)
    return max(
        stream.end[at - 1]
        + offsets[stream.joints[at - 1]]
        - stream.first[at]
        - (AUDIO_OVERLAP if stream.stamps.audio and with_picture else 0.0)
        for stream, at in first_visits
    )


def _spread(stream: _Epochs, offsets: Sequence[float]) -> Float[np.ndarray, " packets"]:
    number = np.arange(len(stream.stamps.place))
    epoch = np.searchsorted(stream.begins, number, side="right") - 1
    return np.array([offsets[joint] for joint in stream.joints])[epoch]

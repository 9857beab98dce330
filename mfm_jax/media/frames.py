"""The frames of a video that each encoder sees, window by window."""

from collections import deque
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import av
import numpy as np

from mfm_jax.errors import MediaError
from mfm_jax.media.containers import opened, reading
from mfm_jax.media.packets import numbered_packets, packet_of
from mfm_jax.media.sandbox import sandboxed_items
from mfm_jax.media.scaling import Picture
from mfm_jax.media.timeline import Timeline, read_timeline
from mfm_jax.media.windows import Seen, Window, WindowSpec

SMALL = 1 << 18
"""Pixels of a frame up to which one thread decodes a video: others double the work at first."""


@dataclass(frozen=True, eq=False)
class _Plan:
    """The frames of the video that one window shows, by their number."""

    index: int
    start: float
    seconds: float
    shown: Mapping[str, tuple[np.ndarray, np.ndarray]]  # by encoder: numbers and moments

    @property
    def first(self) -> int:
        return int(min(numbers[0] for numbers, _ in self.shown.values()))

    @property
    def last(self) -> int:
        return int(max(numbers[-1] for numbers, _ in self.shown.values()))

    def blank(self, spec: WindowSpec) -> Window:
        """Return the window with no frame in it yet."""
        seen = {
            name: Seen(np.zeros((len(moments), *spec.views[name].size, 3), np.uint8), moments)
            for name, (_, moments) in self.shown.items()
        }
        return Window(self.index, self.start, self.seconds, seen)

    def paint(self, window: Window, spec: WindowSpec, number: int, picture: Picture) -> None:
        """Put frame `number` of the video wherever the window shows it."""
        for name, (numbers, _) in self.shown.items():
            if (slots := numbers == number).any():
                window.seen[name].pixels[slots] = picture(spec.views[name])


def _plans(line: Timeline, spec: WindowSpec, begin_at: float, end_at: float) -> Iterator[_Plan]:
    # Nothing that appears later is seen; the last frame before stays on.
    all_times = line.times[: max(1, int(np.searchsorted(line.times, end_at - 1e-6)))]
    for index, later in enumerate(spec.starts(end_at - begin_at)):
        start = begin_at + later
        # From the frame that is shown when the window begins to one after its end.
        near = max(0, int(np.searchsorted(all_times, start)) - 1)
        times = all_times[near : np.searchsorted(all_times, start + spec.seconds) + 1] - start
        chosen = {name: view.choose(times, spec.seconds) for name, view in spec.views.items()}
        shown = {name: (near + picked, moments) for name, (picked, moments) in chosen.items()}
        yield _Plan(index, start, min(float(spec.seconds), end_at - start), shown)


@sandboxed_items
def windows(
    path: Path,
    spec: WindowSpec,
    start: float = 0.0,
    count: int | None = None,
    end: float | None = None,
) -> Iterator[Window]:
    """Yield the windows of a video from `start` (s) on, each with as many frames as `spec` says.

    A window starts every `seconds - overlap`; a video no longer than one window gives one. Past
    the video's end the last frame is held. Where a window has fewer frames than `spec` asks for,
    frames repeat: a deliberate deviation from TimeChat, for fixed shapes under `jit`. One pass over
    the packets chooses the frames and one over the frames reads them; about two windows are in
    memory at a time.

    Args:
        count: how many windows at most. So much of the video is read, and no more, if its
            container has an index.
        end: seconds since the video's first frame, at which it counts as over.

    Raises:
        MediaError: as `probe`; also if the video is damaged further on or ends before `start`.
    """
    reach = np.inf if count is None else spec.seconds + (count - 1) * (spec.seconds - spec.overlap)
    line = read_timeline(path, start, min(start + reach, np.inf if end is None else end))
    if start >= line.seconds:
        raise MediaError(
            f"{path} ends at {line.seconds:.2f} s: nothing is left from {start:g} s on"
        )
    over = line.seconds if end is None else min(end, line.seconds)
    ahead = islice(_plans(line, spec, start, over), count)
    plan = next(ahead, None)
    if plan is None:
        return
    begun: deque[tuple[_Plan, Window]] = deque()
    for number, frame in decoded_frames(path, line, plan.first):
        picture = Picture(frame, line.orientation)
        for waiting, window in begun:
            waiting.paint(window, spec, number, picture)
        while begun and begun[0][0].last <= number:
            yield begun.popleft()[1]
        # A frame that stays for hours fills one window after another.
        while plan is not None and plan.first <= number:
            window = plan.blank(spec)
            plan.paint(window, spec, number, picture)
            if plan.last <= number and not begun:
                yield window
            else:
                begun.append((plan, window))
            plan = next(ahead, None)
        if plan is None and not begun:
            return


def decoded_frames(
    path: Path, line: Timeline, first: int = 0
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yield the frames of the timeline from `first` on, in order, with their numbers.

    One that cannot be decoded is replaced by a neighbour.
    """
    shown, held = first, None
    for number, frame in _from_entry(path, line, first):
        if number < first:
            held = frame
            continue
        for missing in range(shown, number):
            yield missing, frame if held is None else held
        if number >= shown:
            yield number, frame
        shown, held = max(shown, number + 1), frame
    if held is None:
        raise MediaError(f"{path} has no frame that can be decoded: re-encode it as mp4")
    for missing in range(shown, len(line.pts)):
        yield missing, held


def _from_entry(path: Path, line: Timeline, first: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decode from a packet on at which the decoder shows frame `first`, or one before it."""
    for begin in line.entries(first):
        frames = _numbered(path, line, begin)
        head = next(frames, None)
        if head is not None and (begin == 0 or head[0] <= first):
            yield head
            yield from frames
            return
        frames.close()


def _numbered(
    path: Path, line: Timeline, begin: int
) -> Generator[tuple[int, av.VideoFrame], None, None]:
    """Decode from packet `begin` on; yield the frames with the numbers that the timeline gives."""
    following = max(0, int(line.frame_of[begin]))
    with opened(path) as (container, stream), reading(path):
        stream.thread_type = "AUTO"
        if line.width * line.height <= SMALL:
            stream.codec_context.thread_count = 1
        for sent, packet in numbered_packets(container, stream, line.sought, stream):
            if sent < begin:
                continue
            for frame in stream.decode(packet):
                source = packet_of(frame)
                if source is not None and source >= len(line.frame_of):
                    return  # behind what the timeline covers
                number = following if source is None else int(line.frame_of[source])
                if line.decoder_order:
                    # Frames may have been lost before a keyframe, of which the place is known.
                    number = max(following, number) if frame.key_frame else following
                if number >= 0:
                    following = number + 1
                    yield number, frame

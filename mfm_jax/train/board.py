"""Event files for TensorBoard; every event is in the file as soon as it is added.

A file in a store is written as a whole, every half minute and at the end.
"""

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from mfm_jax.media.audio import RATE
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.files import names_in
from mfm_jax.storage.scratch import scratch
from mfm_jax.typing import Float, Shaped

INTERVAL = 30.0
"""Seconds between two writes of a file in a store."""


class Board:
    """A new TensorBoard event file in `folder`, for a run that resumes after step `start`."""

    def __init__(self, folder: Path, *, start: int) -> None:
        self._x = _tensorboardx()
        folder.mkdir(parents=True, exist_ok=True)
        # Two files of one second would have one name.
        number = len(names_in(folder))
        self._remote = folder if isinstance(folder, StorePath) else None
        self._ending = ExitStack()
        here = folder if self._remote is None else self._ending.enter_context(scratch("events"))
        # The library's own `SummaryWriter` keeps events in a queue that a kill would empty.
        self._writer = self._x.event_file_writer.EventsWriter(str(here / "events"), f".{number}")
        self._here, self._sent = here, time.monotonic()
        # TensorBoard forgets what an earlier file has of later steps: they are done again.
        proto = self._x.proto.event_pb2
        begun = proto.SessionLog(status=proto.SessionLog.START)
        self._add(start + 1 if start else 0, session_log=begun)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add numbers."""
        summary = self._x.proto.summary_pb2.Summary
        found = [summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, summary=summary(value=found))

    def sound(
        self,
        step: int,
        name: str,
        wave: Float[np.ndarray, " A"],
        picture: Shaped[np.ndarray, "H W 3"],
    ) -> None:
        """Add a sound and its spectrogram."""
        summary = self._x.summary
        self._add(step, summary=summary.audio(name, np.clip(wave, -1, 1), sample_rate=RATE))
        self._add(step, summary=summary.image(name, picture, dataformats="HWC"))

    def close(self) -> None:
        """End the file."""
        with self._ending:
            self._writer.close()
            self._send()

    def _add(self, step: int, **content: Any) -> None:
        event = self._x.proto.event_pb2.Event(step=step, wall_time=time.time(), **content)
        self._writer.write_event(event)
        self._writer.flush()
        if time.monotonic() > self._sent + INTERVAL:
            self._send()

    def _send(self) -> None:
        """Write the file to the store, if it belongs there."""
        self._sent = time.monotonic()
        if self._remote is not None:
            for file in self._here.iterdir():
                (self._remote / file.name).put(file)


def _tensorboardx() -> Any:
    """Import tensorboardX without torch, which it would import if installed; that takes seconds."""
    if "torch" in sys.modules:
        import tensorboardX

        return tensorboardX
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tensorboardX

        return tensorboardX
    finally:
        del sys.modules["torch"]

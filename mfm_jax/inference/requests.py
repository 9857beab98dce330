"""What is asked for: the sound of a video, how it is made, and the file that it becomes."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mfm_jax.errors import UsageError
from mfm_jax.media.formats import CONTAINERS, SOUNDS
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.files import check_folder

FORMATS = tuple(suffix.removeprefix(".") for suffix in (*CONTAINERS, *SOUNDS))
"""Names of the formats of output files."""


@dataclass(frozen=True)
class Request:
    """The sound that is wanted for a video or a part of it."""

    source: Path
    start: float = 0.0  # s since the first frame
    end: float | None = None  # s since the first frame; None is the end of the video
    prompt: str | None = None
    negative_prompt: str | None = None
    seed: int = 0
    output: str | None = None  # the file in the folder of outputs, if a manifest names it

    @property
    def reads_text(self) -> bool:
        """True if there is a prompt of either kind."""
        return self.prompt is not None or self.negative_prompt is not None

    @property
    def is_excerpt(self) -> bool:
        """True if only a part of the video is wanted."""
        return self.start > 0 or self.end is not None

    def seconds(self, length: float) -> float:
        """Return the seconds that are wanted of a video of `length` seconds."""
        return max(0.0, min(length, self.end or math.inf) - self.start)

    def file_name(self, form: str) -> str:
        """Return the name of the output file, below the folder of outputs."""
        if self.output is None:
            return f"{self.source.stem}{f'@{self.start:g}' if self.start else ''}.{form}"
        known = os.path.splitext(self.output)[1].lower() in (*CONTAINERS, *SOUNDS)
        return self.output if known else f"{self.output}.{form}"


def targets(requests: Sequence[Request], output: Path, form: str | None) -> list[Path]:
    """Choose the file that each request becomes.

    Args:
        output: a folder, or the file of a single request.
        form: of `FORMATS`; mp4 if None.

    Raises:
        UsageError: one output file for several videos, two requests of one name, or an output that
            cannot be a folder.
        WriteError: nothing can be written into its folder.
    """
    if is_file_name(output):
        if len(requests) > 1:
            raise UsageError(f"{len(requests)} videos do not fit one file {output}: name a folder")
        if form is not None and output.suffix.lower() != f".{form}":
            raise UsageError(f"format {form} and output {output} contradict each other")
        check_folder(output.parent)
        return [output]
    if output.is_file() if isinstance(output, StorePath) else os.path.isfile(output):
        known = ", ".join(f"FILE{suffix}" for suffix in (*CONTAINERS, *SOUNDS))
        raise UsageError(f"output {output} is a file: name a folder, or {known}")
    chosen: dict[Path, Request] = {}
    for request in requests:
        target = output / request.file_name(form or "mp4")
        if target in chosen:
            both = f"{chosen[target].source} and {request.source}"
            raise UsageError(f"{both} would both become {target}")
        chosen[target] = request
    check_folder(output)
    return list(chosen)


def is_file_name(output: Path) -> bool:
    """Return whether an output is one file, and not a folder of files."""
    if output.suffix.lower() not in (*CONTAINERS, *SOUNDS):
        return False
    return not (output.is_dir() if isinstance(output, StorePath) else os.path.isdir(output))


def is_sound(target: Path) -> bool:
    """Return whether a file holds sound alone."""
    return target.suffix.lower() in SOUNDS

"""Sound for video files: which file each video becomes, and the windows of all in full batches."""

import glob
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import jax
import numpy as np

from mfm_jax.bundle import Bundle, Settings
from mfm_jax.bundle.windows import window_spec
from mfm_jax.data.clips import is_hidden, videos_in
from mfm_jax.errors import MediaError, UsageError, UserError
from mfm_jax.inference.pipeline import Sampling, Text, VideoToAudio, stitch
from mfm_jax.inference.prompts import PromptEncoder
from mfm_jax.media.audio import RATE, write_wav
from mfm_jax.media.formats import CONTAINERS
from mfm_jax.media.frames import windows
from mfm_jax.media.probe import probe
from mfm_jax.media.windows import Window, WindowSpec
from mfm_jax.media.write import check_video_target, write_video
from mfm_jax.runtime.failures import FailureLog
from mfm_jax.runtime.precision import PRECISIONS
from mfm_jax.runtime.progress import Progress
from mfm_jax.runtime.seeds import check_seed
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh
from mfm_jax.storage.files import check_folder, check_target, signature
from mfm_jax.storage.paths import TINY_BUNDLE, array_path, local_path
from mfm_jax.typing import Float

BATCH = 4
"""Windows computed at once, rounded up to a multiple of the devices."""
FORMATS = (*(suffix.removeprefix(".") for suffix in CONTAINERS), "wav")
SAMPLERS = ("ddim", "dpm++")
STEPS = 999
"""The largest number of sampler steps: one less than the diffusion steps of the training."""


@dataclass
class Job:
    """A video, the file it becomes, the windows made so far, and why it failed if it did."""

    source: Path
    target: Path
    samples: int = 0
    windows: int = 0
    waves: list[np.ndarray] = field(default_factory=list)
    signature: tuple[int, ...] | None = None  # of the source, when its reading began
    written: bool = False
    failed: str | None = None


class GenerationError(UserError):
    """Some videos got no sound; `failures` says why, a line for each. The others are done."""

    exit_code = 1

    def __init__(self, failures: Sequence[str]) -> None:
        super().__init__("; ".join(failures))
        self.failures = tuple(failures)


def generate(
    videos: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    bundle: str | Path | None = None,
    verify: bool = True,
    prompt: str | None = None,
    negative_prompt: str | None = None,
    seed: int = 0,
    steps: int | None = None,
    sampler: str | None = None,
    guidance: float | int | None = None,
    eta: float | int = 0.0,
    precision: str = "float32",
    batch: int | None = None,
    format: str | None = None,
    fsdp: int = 1,
    tensor: int = 1,
    progress: Progress | None = None,
) -> list[Path]:
    """Make sound for videos; return the files written, in the order of the videos.

    What is None is as the bundle says. The sound of a video depends on its frames, `seed` and the
    sampler, and not on the other videos.

    Args:
        videos: files, folders or globs.
        out: a folder, or for one video FILE.mp4 (.mov, .m4v, .mkv, .webm) or FILE.wav.
        bundle: a folder; the miniature that comes with the package if None.
        verify: compare its weights with their checksums.
        prompt: text for the sound wanted, if the bundle has a text encoder.
        negative_prompt: text for the sound to keep away from.
        steps: of the sampler, 1 to `STEPS`.
        sampler: "ddim" or "dpm++".
        guidance: scale of classifier-free guidance; 1 is none.
        eta: for ddim, from 0 (deterministic) to 1 (ancestral).
        precision: "float32", "bfloat16" or "float16".
        batch: windows computed at once.
        format: of files in a folder `out`, one of `FORMATS`; mp4 if None.
        fsdp: shard the weights over so many of this process's devices.
        tensor: divide every layer over so many of them; the windows are divided over the others.
        progress: counts windows and prints a line for each file.

    Raises:
        UserError: an argument is wrong; nothing is written then.
        GenerationError: some videos failed; the others are done.
    """
    _check_least(1, batch=batch, steps=steps, fsdp=fsdp, tensor=tensor)
    _check_least(0, guidance=guidance, eta=eta)
    check_seed(seed)
    if steps is not None and steps > STEPS:
        raise UsageError(f"steps must be at most {STEPS}, got {steps}")
    _check_choice("sampler", sampler, SAMPLERS)
    _check_choice("precision", precision, PRECISIONS)
    _check_choice("format", format, FORMATS)

    opened = Bundle.open(TINY_BUNDLE if bundle is None else array_path(bundle), verify=verify)
    sampling = _sampling(opened.settings, sampler, steps, guidance, eta)
    names = [videos] if isinstance(videos, str | Path) else videos
    jobs = plan(expand([str(local_path(name)) for name in names]), local_path(out), format)
    layout, batch = layout_and_batch(batch, fsdp=fsdp, tensor=tensor)
    work = Work(jobs, progress)

    def load() -> Compute:
        # T5 is dropped before the other networks are loaded.
        text, negative = _encode(opened, precision, prompt, negative_prompt, work.note)
        model = VideoToAudio.open(opened.path, precision, layout, verify=verify)
        return partial(model, seed=seed, sampling=sampling, prompt=text, negative=negative)

    with output_folder(jobs[0].target.parent):
        work.check_targets()
        work.run(load, window_spec(opened), batch)
    if failures := [job.failed for job in jobs if job.failed]:
        raise GenerationError(failures)
    return [job.target for job in jobs]


Compute = Callable[[Sequence[Window]], Float[np.ndarray, "B A"]]
"""Makes the sound of windows."""


@dataclass(frozen=True)
class Work:
    """Makes and writes the sound of every job. A job that cannot be done is marked and told."""

    jobs: Sequence[Job]
    progress: Progress | None = None

    def check_targets(self) -> None:
        """Check that every file can be written, before anything is computed for it."""
        for job in self.jobs:
            with self.failure_of(job):
                if os.path.realpath(job.target) == os.path.realpath(job.source):
                    raise UsageError(
                        f"output {job.target} is the input itself: choose another output"
                    )
                if _is_sound(job.target):
                    check_target(job.target)
                else:
                    check_video_target(job.source, job.target)

    def run(self, load: Callable[[], Compute], spec: WindowSpec, batch: int) -> None:
        """Do all jobs, `batch` windows at a time, whichever videos they are of.

        Args:
            load: loads the networks; called once there is a window for them.
        """
        compute: Compute | None = None
        for group in batches(self.read(spec), batch):
            compute = compute or load()
            for job, wave in self.compute(_in_full(compute, batch), group):
                job.waves.append(wave)
                self.finish(job, spec)
            if self.progress is not None:
                self.progress.advance(len(group))
        for job in self.jobs:
            if not (job.failed or job.written):
                self.fail(job, MediaError(f"{job.source} was changed while it was read: try again"))

    def read(self, spec: WindowSpec) -> Iterator[tuple[Job, Window]]:
        """Yield every window of every readable video."""
        for job in self.jobs:
            if job.failed:
                continue
            with self.failure_of(job):
                job.signature = signature(job.source)
                info = probe(job.source)
                job.samples = round(info.seconds * RATE)
                job.windows = len(spec.starts(info.seconds))
                for window in windows(job.source, spec):
                    yield job, window
                    if job.failed:
                        break

    def compute(
        self, compute: Compute, group: Sequence[tuple[Job, Window]]
    ) -> list[tuple[Job, np.ndarray]]:
        """Return the waves of windows. Where they fail together, each video is tried alone."""
        try:
            waves = compute([window for _, window in group])
        except Exception as error:
            jobs = {id(job): job for job, _ in group}
            if len(jobs) == 1:
                self.fail(group[0][0], error)
                return []
        else:
            return [(job, wave) for (job, _), wave in zip(group, waves, strict=False)]
        alone = ([pair for pair in group if pair[0] is job] for job in jobs.values())
        return [made for pairs in alone for made in self.compute(compute, pairs)]

    def finish(self, job: Job, spec: WindowSpec) -> None:
        """Write the file of a job that has all its windows."""
        if job.failed or len(job.waves) != job.windows:
            return
        wave = stitch(job.waves, spec, job.samples)
        job.waves.clear()
        with self.failure_of(job):
            if signature(job.source) != job.signature:
                raise MediaError(f"{job.source} was changed while it was read: try again")
            notes = []
            if _is_sound(job.target):
                write_wav(job.target, wave)
            else:
                notes = write_video(job.source, job.target, wave)
            job.written = True
            self.say(f"{job.source} -> {job.target}")
            for note in notes:
                self.note(f"{job.target}: {note}")

    @contextmanager
    def failure_of(self, job: Job) -> Iterator[None]:
        """Turn every exception in the block into the failure of a job."""
        try:
            yield
        except Exception as error:
            self.fail(job, error)

    def fail(self, job: Job, error: Exception) -> None:
        """Mark a job as failed, and tell it at once."""
        job.failed = FailureLog(job.target.parent).reason(str(job.source), error)
        job.waves.clear()
        if len(self.jobs) > 1:  # the error that ends the command tells of a single one
            self.say(f"failed: {job.failed}")

    def note(self, line: str) -> None:
        """Tell what is other than one might expect, as a warning where no progress is shown."""
        if self.progress is None:
            warnings.warn(line, stacklevel=2)
        else:
            self.progress.say(line)

    def say(self, line: str) -> None:
        """Print a line where progress is shown."""
        if self.progress is not None:
            self.progress.say(line)


def _in_full(compute: Compute, batch: int) -> Compute:
    """Return `compute` with windows filled up to `batch`.

    The shape is then always the same: one compilation, and equal sound whatever else is computed.
    """
    return lambda windows: compute([*windows, *[windows[-1]] * (batch - len(windows))])


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Yield lists of `size` items, the last one shorter."""
    items = iter(items)
    while group := list(islice(items, size)):
        yield group


def _is_sound(target: Path) -> bool:
    return target.suffix.lower() == ".wav"


def expand(patterns: Sequence[str]) -> list[Path]:
    """Return the videos that files, folders and globs name, in order and once each.

    Raises:
        DataError: a folder without any video.
        UsageError: a glob that matches nothing, or no name at all.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        found.update(dict.fromkeys(_matches(pattern)))
    if not found:
        raise UsageError("no videos are given: name files, folders or globs")
    return list(found)


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    try:
        if path.is_dir():
            return videos_in(path)
        if path.exists() or not glob.has_magic(pattern):
            return [path]
    except OSError:
        return [path]  # it cannot be looked at, which is told of it alone
    found = map(Path, glob.glob(pattern, recursive=True))
    if matches := sorted(path for path in found if not is_hidden(path)):
        return matches
    raise UsageError(f"no file matches {pattern}")


def plan(sources: Sequence[Path], output: Path, form: str | None) -> list[Job]:
    """Choose the file that each video becomes.

    Raises:
        UsageError: one output file for several videos, two videos of one name, or an output that
            cannot be a folder.
        WriteError: nothing can be written into its folder.
    """
    suffix = output.suffix.lower()
    if suffix in (".wav", *CONTAINERS) and not os.path.isdir(output):
        if len(sources) > 1:
            raise UsageError(f"{len(sources)} videos do not fit one file {output}: name a folder")
        if form is not None and suffix != f".{form}":
            raise UsageError(f"format {form} and output {output} contradict each other")
        targets = [output]
    else:
        if os.path.isfile(output):
            known = ", ".join(f"FILE{suffix}" for suffix in (".wav", *CONTAINERS))
            raise UsageError(f"output {output} is a file: name a folder, or {known}")
        targets = [output / f"{source.stem}.{form or 'mp4'}" for source in sources]
    jobs: dict[Path, Job] = {}
    for source, target in zip(sources, targets, strict=True):
        if target in jobs:
            raise UsageError(f"{jobs[target].source} and {source} would both become {target}")
        jobs[target] = Job(source, target)
    check_folder(targets[0].parent)
    return list(jobs.values())


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Make a folder for what the block writes; it does not stay if nothing is written.

    Raises:
        WriteError: it cannot be made, or no file can be written into it.
    """
    check_folder(folder)
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if new:
            with suppress(OSError):
                folder.rmdir()


def layout_and_batch(
    batch: int | None = None, *, fsdp: int = 1, tensor: int = 1
) -> tuple[Layout, int]:
    """Return a layout of all devices of this process, and the windows that they compute at once.

    Raises:
        UsageError: the devices cannot be divided like this.
    """
    devices = jax.local_devices()
    if len(devices) % (fsdp * tensor):
        raise UsageError(
            f"fsdp {fsdp} x tensor {tensor} does not divide {len(devices)} devices: "
            "use a product that does"
        )
    shards = len(devices) // tensor
    # Rounded up: a batch takes the time of one window, whether or not every device has one.
    batch = batch or shards * math.ceil(BATCH / shards)
    if batch % shards:
        raise UsageError(
            f"batch {batch} does not divide over {shards} devices: use a multiple of {shards}"
        )
    return Layout(make_mesh(MeshConfig(fsdp=fsdp, tensor=tensor), devices)), batch


def _check_least(least: int, **values: float | int | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            raise UsageError(f"{name} must be at least {least}, got {value}")


def _check_choice(name: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise UsageError(f"{name} {value!r} is not known: use {', '.join(known)}")


def _sampling(
    settings: Settings,
    sampler: str | None,
    steps: int | None,
    guidance: float | int | None,
    eta: float | int,
) -> Sampling:
    sampler = sampler or settings.sampler
    if eta > 1 or (eta and sampler != "ddim"):
        raise UsageError(f"eta is 0 to 1 and only for sampler ddim, got {eta} for {sampler}")
    scale = settings.guidance if guidance is None else guidance
    return Sampling(sampler, steps or settings.steps, float(scale), float(eta))


def _encode(
    bundle: Bundle,
    precision: str,
    prompt: str | None,
    negative: str | None,
    note: Callable[[str], None],
) -> tuple[Text | None, Text | None]:
    """Encode both prompts with one T5, which is not loaded if there are none."""
    if prompt is None and negative is None:
        return None, None
    encode = PromptEncoder.open(bundle, precision)
    return (
        None if prompt is None else encode(prompt, note),
        None if negative is None else encode(negative, note),
    )

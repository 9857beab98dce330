"""Sound for video files: which file each video becomes, and the windows of all in full batches."""

import glob
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import jax
import numpy as np

from mfm_jax.bundle import Bundle, Settings
from mfm_jax.data.clips import videos_in
from mfm_jax.errors import UsageError, UserError, system_reason
from mfm_jax.inference.pipeline import Sampling, Text, VideoToAudio, stitch
from mfm_jax.inference.prompts import PromptEncoder
from mfm_jax.media.audio import RATE, write_wav
from mfm_jax.media.frames import windows
from mfm_jax.media.probe import probe
from mfm_jax.media.windows import Window, WindowSpec
from mfm_jax.media.write import write_video
from mfm_jax.runtime.precision import PRECISIONS
from mfm_jax.runtime.progress import Progress
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh
from mfm_jax.storage.paths import TINY_BUNDLE, local_path

BATCH = 4
"""Windows computed at once, rounded up to a multiple of the devices."""
FORMATS = ("mp4", "wav")
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
        out: a folder, or FILE.mp4 or FILE.wav for one video.
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
        format: "mp4" or "wav", of files in a folder `out`; mp4 if None.
        fsdp: shard the weights over so many of this process's devices.
        tensor: divide every layer over so many of them; the windows are divided over the others.
        progress: counts windows and prints a line for each file.

    Raises:
        UserError: an argument is wrong; nothing is written then.
        GenerationError: some videos failed; the others are done.
    """
    _check_least(1, batch=batch, steps=steps, fsdp=fsdp, tensor=tensor)
    _check_least(0, guidance=guidance, eta=eta, seed=seed)
    if steps is not None and steps > STEPS:
        raise UsageError(f"steps must be at most {STEPS}, got {steps}")
    _check_choice("sampler", sampler, SAMPLERS)
    _check_choice("precision", precision, PRECISIONS)
    _check_choice("format", format, FORMATS)

    opened = Bundle.open(TINY_BUNDLE if bundle is None else local_path(bundle), verify=verify)
    sampling = _sampling(opened.settings, sampler, steps, guidance, eta)
    names = [videos] if isinstance(videos, str | Path) else videos
    jobs = plan(expand([str(local_path(name)) for name in names]), local_path(out), format)
    layout, batch = layout_and_batch(batch, fsdp=fsdp, tensor=tensor)
    # T5 is dropped before the other networks are loaded.
    texts = _encode(opened, precision, prompt, negative_prompt)
    model = VideoToAudio.open(opened.path, precision, layout, verify=verify)
    run(model, jobs, batch, progress, seed=seed, sampling=sampling, texts=texts)
    if failures := [job.failed for job in jobs if job.failed]:
        raise GenerationError(failures)
    return [job.target for job in jobs]


def run(
    model: VideoToAudio,
    jobs: Sequence[Job],
    batch: int,
    progress: Progress | None,
    *,
    seed: int,
    sampling: Sampling,
    texts: tuple[Text | None, Text | None],
) -> None:
    """Make and write the sound of every job; `failed` says why a job has none."""
    prompt, negative = texts
    for group in batches(_read(jobs, model.spec), batch):
        live = [window for _, window in group]
        # The shape is always the same: one compilation, and equal sound whatever else is computed.
        full = live + [live[-1]] * (batch - len(live))
        waves = model(full, seed, sampling, prompt, negative)
        for (job, _), wave in zip(group, waves, strict=False):
            job.waves.append(wave)
            if finish(job, model.spec) and progress is not None:
                progress.say(f"{job.source} -> {job.target}")
        if progress is not None:
            progress.advance(len(live))


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Yield lists of `size` items, the last one shorter."""
    items = iter(items)
    while group := list(islice(items, size)):
        yield group


def finish(job: Job, spec: WindowSpec) -> bool:
    """Write the file of a job that has all its windows; return True if it is written."""
    if job.failed or len(job.waves) < job.windows:
        return False
    wave = stitch(job.waves, spec, job.samples)
    job.waves.clear()
    try:
        if job.target.suffix == ".wav":
            write_wav(job.target, wave)
        else:
            write_video(job.source, job.target, wave)
    except UserError as error:
        job.failed = str(error)
    return job.failed is None


def expand(patterns: Sequence[str]) -> list[Path]:
    """Return the videos that files, folders and globs name, in order and once each.

    Raises:
        DataError: a folder without any video.
        UsageError: a glob that matches nothing, or no name at all.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = videos_in(path)
        elif path.exists() or not glob.has_magic(pattern):
            matches = [path]
        else:
            matches = sorted(map(Path, glob.glob(pattern, recursive=True)))
            if not matches:
                raise UsageError(f"no file matches {pattern}")
        found.update(dict.fromkeys(matches))
    if not found:
        raise UsageError("no videos are given: name files, folders or globs")
    return list(found)


def plan(sources: Sequence[Path], output: Path, form: str | None) -> list[Job]:
    """Choose the file that each video becomes, and make the folder for these.

    Raises:
        UsageError: one output file for several videos, two videos of one name, or an output that
            cannot be a folder.
    """
    if output.suffix.lower() in (".mp4", ".wav") and not output.is_dir():
        if len(sources) > 1:
            raise UsageError(f"{len(sources)} videos do not fit one file {output}: name a folder")
        if form is not None and output.suffix != f".{form}":
            raise UsageError(f"format {form} and output {output} contradict each other")
        targets = [output]
    else:
        if output.exists() and not output.is_dir():
            raise UsageError(f"output {output} is a file: name a folder, or FILE.mp4 or FILE.wav")
        targets = [output / f"{source.stem}.{form or 'mp4'}" for source in sources]
    jobs: dict[Path, Job] = {}
    for source, target in zip(sources, targets, strict=True):
        if target in jobs:
            raise UsageError(f"{jobs[target].source} and {source} would both become {target}")
        jobs[target] = Job(source, target)
        if target.resolve() == source.resolve():
            jobs[target].failed = f"output {target} is the input itself: choose another output"
    make_folder(targets[0].parent)
    return list(jobs.values())


def make_folder(folder: Path) -> None:
    """Make an output folder.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = system_reason(error)
        raise UsageError(f"cannot make output folder {folder}: {reason}") from None


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


def _read(jobs: Sequence[Job], spec: WindowSpec) -> Iterator[tuple[Job, Window]]:
    """Yield every window of every readable video; a job whose video fails is marked."""
    for job in jobs:
        if job.failed:
            continue
        try:
            info = probe(job.source)
            job.samples = round(info.seconds * RATE)
            job.windows = len(spec.starts(info.seconds))
            for window in windows(job.source, spec):
                yield job, window
        except UserError as error:
            job.failed = str(error)


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
    bundle: Bundle, precision: str, prompt: str | None, negative: str | None
) -> tuple[Text | None, Text | None]:
    """Encode both prompts with one T5, which is not loaded if there are none."""
    if prompt is None and negative is None:
        return None, None
    encode = PromptEncoder.open(bundle, precision)
    return (
        None if prompt is None else encode(prompt),
        None if negative is None else encode(negative),
    )

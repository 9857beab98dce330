"""`mfm generate`: videos in, the same videos with sound out."""

import argparse
import glob
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from mfm_jax.data.clips import VIDEO_SUFFIXES
from mfm_jax.errors import UsageError, UserError, system_reason
from mfm_jax.media.audio import RATE, write_wav
from mfm_jax.media.frames import windows
from mfm_jax.media.probe import probe
from mfm_jax.media.windows import Window, WindowSpec
from mfm_jax.media.write import write_video
from mfm_jax.runtime.progress import Progress
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh
from mfm_jax.storage.paths import TINY_BUNDLE

BATCH = 4
"""Windows computed at once where the devices divide them."""


@dataclass
class Job:
    """One video on its way: the windows made so far, or why it failed."""

    source: Path
    target: Path
    samples: int = 0
    windows: int = 0
    waves: list[np.ndarray] = field(default_factory=list)
    failed: str | None = None


def add_parser(commands) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "generate", help="make sound for videos", description="Make sound for videos."
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="files, folders or globs")
    parser.add_argument(
        "-o", "--output", required=True, type=Path, help="a folder, or FILE.mp4 or FILE.wav"
    )
    parser.add_argument("--format", choices=("mp4", "wav"), help="of files in an output folder")
    parser.add_argument("--bundle", type=Path, default=TINY_BUNDLE, help="default: the miniature")
    parser.add_argument("--prompt", help="text for the sound wanted (bundles with a text encoder)")
    parser.add_argument("--negative-prompt", help="text for the sound to keep away from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of the sampler")
    parser.add_argument("--sampler", choices=("ddim", "dpm++"))
    parser.add_argument("--eta", type=float, default=0.0, help="of ddim: 0 to 1")
    parser.add_argument("--guidance", type=float, help="1 is none")
    parser.add_argument(
        "--batch",
        type=int,
        help=f"windows computed at once; default: {BATCH}, or as many more as the devices need",
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    group = parser.add_argument_group("several devices, over which the windows are divided")
    group.add_argument(
        "--fsdp", type=int, default=1, metavar="N", help="cut the weights over N of them, too"
    )
    group.add_argument(
        "--tensor", type=int, default=1, metavar="N", help="cut every layer's work over N of them"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate; 1 where some videos failed, each named."""
    from mfm_jax.inference.pipeline import VideoToAudio

    _check(args)
    jobs = plan(expand(args.videos), args.output, args.format)
    layout, batch = layout_and_batch(args)
    model = VideoToAudio.open(args.bundle, args.precision, layout)
    sampling = _sampling(args, model.settings)
    prompt, negative = (_read_text(args, text) for text in (args.prompt, args.negative_prompt))
    progress = Progress(None, "windows")
    for group in batches(_opened(jobs, model.spec), batch):
        live = [window for _, window in group]
        # Always the same shape: one compilation, and a sound that does not depend on its company.
        full = live + [live[-1]] * (batch - len(live))
        waves = model(full, args.seed, sampling, prompt, negative)
        for (job, _), wave in zip(group, waves, strict=False):
            job.waves.append(wave)
            finish(job, model.spec, progress)
        progress.advance(len(live))
    progress.close()
    failed = [job for job in jobs if job.failed]
    for job in failed:
        progress.say(f"mfm generate: {job.failed}")
    return 1 if failed else 0


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items, the last one shorter."""
    items = iter(items)
    while group := list(islice(items, size)):
        yield group


def finish(job: Job, spec: WindowSpec, progress: Progress) -> None:
    """Write the job's file once its last window is there."""
    from mfm_jax.inference.pipeline import stitch

    if job.failed or len(job.waves) < job.windows:
        return
    wave = stitch(job.waves, spec, job.samples)
    job.waves.clear()
    try:
        if job.target.suffix == ".wav":
            write_wav(job.target, wave)
        else:
            write_video(job.source, job.target, wave)
        progress.say(f"{job.source} -> {job.target}")
    except UserError as error:
        job.failed = str(error)


def expand(patterns: list[str]) -> list[Path]:
    """The videos that files, folders and globs name, in order and once each.

    Raises:
        UsageError: a folder or glob without any video.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES)
            if not matches:
                raise UsageError(f"no video in folder {path} ({', '.join(VIDEO_SUFFIXES)})")
        elif path.exists() or not glob.has_magic(pattern):
            matches = [path]
        else:
            matches = sorted(map(Path, glob.glob(pattern, recursive=True)))
            if not matches:
                raise UsageError(f"no file matches {pattern}")
        found.update(dict.fromkeys(matches))
    return list(found)


def plan(sources: list[Path], output: Path, form: str | None) -> list[Job]:
    """Which file each video becomes.

    Raises:
        UsageError: one output file for several videos, two videos of one name, an output that
            cannot be a folder.
    """
    if output.suffix.lower() in (".mp4", ".wav") and not output.is_dir():
        if len(sources) > 1:
            raise UsageError(f"{len(sources)} videos do not fit one file {output}: name a folder")
        if form is not None and output.suffix != f".{form}":
            raise UsageError(f"--format {form} and output {output} contradict each other")
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


def _opened(jobs: list[Job], spec: WindowSpec) -> Iterator[tuple[Job, Window]]:
    """Every window of every readable video; a video that fails is marked and left out."""
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


def _check(args: argparse.Namespace) -> None:
    ones = dict.fromkeys(("batch", "steps", "fsdp", "tensor"), 1)
    for name, least in {**ones, "guidance": 0, "eta": 0, "seed": 0}.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} must be at least {least}, got {value}")
    if args.eta > 1 or (args.eta and args.sampler != "ddim"):
        raise UsageError("--eta is 0 to 1, and for --sampler ddim")
    if args.steps is not None and args.steps > 999:
        raise UsageError(f"--steps must be at most 999, got {args.steps}")


def layout_and_batch(args: argparse.Namespace) -> tuple[Layout, int]:
    """All devices of this process, and the windows that they compute at once.

    Raises:
        UsageError: the devices do not divide as asked.
    """
    import jax

    devices = jax.local_devices()
    if len(devices) % (args.fsdp * args.tensor):
        raise UsageError(
            f"--fsdp {args.fsdp} x --tensor {args.tensor} does not divide {len(devices)} devices: "
            "use a product that does"
        )
    pieces = len(devices) // args.tensor
    # Rounded up: all devices take the time of one window, whether each has a different one or not.
    batch = args.batch or pieces * math.ceil(BATCH / pieces)
    if batch % pieces:
        raise UsageError(
            f"--batch {batch} does not divide over {pieces} devices: use a multiple of {pieces}"
        )
    return Layout(make_mesh(MeshConfig(fsdp=args.fsdp, tensor=args.tensor), devices)), batch


def _sampling(args: argparse.Namespace, settings):
    from mfm_jax.inference.pipeline import Sampling

    return Sampling(
        args.sampler or settings.sampler,
        args.steps or settings.steps,
        settings.guidance if args.guidance is None else args.guidance,
        args.eta,
    )


def _read_text(args: argparse.Namespace, text: str | None):
    """T5 states of a prompt.

    Raises:
        UsageError: the bundle has no text encoder.
    """
    if text is None:
        return None
    from mfm_jax.bundle import Bundle

    bundle = Bundle.open(args.bundle)
    if "t5" not in bundle.entries or len(bundle.config("unet").contexts) < 2:
        raise UsageError(f"bundle {args.bundle} has no text encoder: leave the prompts out")
    from mfm_jax.inference.prompts import encode_prompt

    return encode_prompt(bundle, text, args.precision)

"""Sound for video files, by one call: `generate`."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import jax

from mfm_jax.bundle import Bundle, Settings
from mfm_jax.encoders import read_in_generation, window_spec
from mfm_jax.errors import MediaError, UsageError, UserError
from mfm_jax.inference.candidates import CLASSES
from mfm_jax.inference.exported import Exports, has_programs
from mfm_jax.inference.finishing import LOUDEST, QUIETEST, RATES, Finishing
from mfm_jax.inference.inputs import expand
from mfm_jax.inference.networks import MEMORY, Loader, absolute_name, open_loader
from mfm_jax.inference.on_ray import do_on_ray
from mfm_jax.inference.pipeline import Sampling
from mfm_jax.inference.record import Record
from mfm_jax.inference.requests import FORMATS, Request, is_file_name, targets
from mfm_jax.inference.shares import do_together
from mfm_jax.inference.work import Job, Work
from mfm_jax.media.audio import RATE
from mfm_jax.media.containers import check_is_file
from mfm_jax.media.probe import probe
from mfm_jax.media.windows import WindowSpec
from mfm_jax.runtime.precision import PRECISIONS
from mfm_jax.runtime.progress import Progress
from mfm_jax.runtime.seeds import check_seed
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh
from mfm_jax.runtime.throughput import Throughput
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.copies import local_copy
from mfm_jax.storage.files import check_file, check_folder
from mfm_jax.storage.paths import TINY_BUNDLE, user_path
from mfm_jax.storage.store import digest_file

BATCH = 4
"""Windows computed at once, rounded up to a multiple of the devices."""
SAMPLERS = ("ddim", "dpm++")
STEPS = 999
"""The largest number of sampler steps: one less than the diffusion steps of the training."""


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
    negative_sound: str | Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    sampler: str | None = None,
    guidance: float | int | None = None,
    guidance_interval: Sequence[float | int] | None = None,
    guidance_rescale: float | int = 0.0,
    eta: float | int = 0.0,
    precision: str = "float32",
    batch: int | None = None,
    format: str | None = None,
    joint: bool = False,
    memory: str = "high",
    candidates: int = 1,
    veto: str | Sequence[str] = (),
    rate: int = RATE,
    lufs: float | int | None = None,
    mix: float | int | None = None,
    overwrite: bool = False,
    shared: bool = False,
    on: str | None = None,
    workers: int | None = None,
    fsdp: int = 1,
    tensor: int = 1,
    progress: Progress | None = None,
) -> list[Path]:
    """Make sound for videos; return the files written, in the order of the videos.

    What is None is as the bundle says. The sound of a video depends on its frames, its prompts, its
    seed and the sampler, and not on the other videos. A folder of outputs has a record of what was
    made (`mfm_jax.inference.record`): what is there as it would be made again is left as it is, so
    that a run that was stopped goes on where it stopped. Paths may be addresses in an object store.
    Where the folder of outputs is in one, workers that are asked for the same at the same time
    divide the work (`mfm_jax.inference.shares`), and each returns when all of it is done.

    Args:
        videos: files, folders, globs or manifests (`mfm_jax.inference.manifest`).
        out: a folder, or for one video FILE.mp4 (.mov, .m4v, .mkv, .webm) or FILE.wav.
        bundle: a folder, or a repository of the hub (`hf://organisation/name@revision`); the
            miniature that comes with the package if None.
        verify: compare its weights with their checksums.
        prompt: text for the sound wanted, if the bundle has a text encoder.
        negative_prompt: text for the sound to keep away from.
        negative_sound: a file with sound to keep away from, as AudioMAE hears it.
        steps: of the sampler, 1 to `STEPS`.
        sampler: "ddim" or "dpm++".
        guidance: scale of classifier-free guidance; 1 is none.
        guidance_interval: noise levels sigma / alpha, low and high, between which there is guidance
            (Kynkaanniemi et al., arXiv 2404.07724); everywhere if None. A step outside is half the
            work.
        guidance_rescale: from 0 to 1, how far guidance keeps the spread of the prediction (Lin et
            al., arXiv 2305.08891).
        eta: for ddim, from 0 (deterministic) to 1 (ancestral).
        precision: "float32", "bfloat16" or "float16".
        batch: windows computed at once; by default `BATCH`, or all windows if they are fewer.
        joint: denoise the windows of a video together, so that they agree where they overlap;
            otherwise each is made alone and they are cross-faded.
        memory: "high", with all networks on the device, or "low": encoders, mapper and diffusion
            one after the other, for which the weights of each are read again every
            `mfm_jax.inference.staged.ROUND` windows. The sounds are the same.
        format: of files in a folder `out`, one of `FORMATS`; mp4 if None.
        candidates: sounds for each video, of its seed and of those after it. The one is kept whose
            LOA, as AudioMAE hears it, is nearest to what was predicted.
        veto: classes of sounds, of `CLASSES`; a candidate in which Cnn14 hears one is not kept
            while there is another.
        rate: samples per second of the files, one of `RATES`; the networks make 16,000.
        lufs: integrated loudness of the sound, -60 to 0; its level is left as it is if None.
        mix: dB by which the video's own sound is changed and added to the new one; at most 0.
        overwrite: make everything anew, also what is recorded.
        shared: divide the work with others also where the folder of outputs is on a disk.
        on: "ray" lets the machines of a Ray cluster do it (`mfm_jax.inference.on_ray`), which see
            the same paths. This process needs no device then.
        workers: on Ray, so many; by default as many as there are accelerators for now.
        fsdp: shard the weights over so many of this process's devices.
        tensor: divide every layer over so many of them; the windows are divided over the others.
        progress: counts videos and prints a line for each file.

    Raises:
        UserError: an argument is wrong; nothing is written then.
        GenerationError: some videos failed, here or at another worker; the others are done.
    """
    _check_least(1, candidates=candidates)
    _check_computing(batch, precision, fsdp, tensor)
    check_seed(seed)
    _check_choice("format", format, FORMATS)
    _check_choice("memory", memory, MEMORY)
    _check_choice("on", on, ("ray",))
    _check_least(1, workers=workers)
    if workers is not None and on is None:
        raise UsageError("workers are those on Ray: leave the number out, or ask for ray")
    if joint and memory == "low":
        raise UsageError("memory low makes each window alone: leave it out, or joint")
    vetoed = _veto(veto, candidates)
    finishing = _finishing(rate, lufs, mix)

    opened = Bundle.open(TINY_BUNDLE if bundle is None else bundle, verify=verify)
    sampling = _sampling(
        opened.settings, sampler, steps, guidance, eta, guidance_interval, guidance_rescale
    )
    names = [videos] if isinstance(videos, str | Path) else videos
    default = Request(Path(), prompt=prompt, negative_prompt=negative_prompt, seed=seed)
    requests = expand(names, default)
    output = user_path(out)
    if on is not None:  # other machines have other current folders
        requests = [replace(each, source=each.source.absolute()) for each in requests]
        output = output.absolute()
    one_file = is_file_name(output)
    shared = shared or on is not None
    if shared and one_file:
        raise UsageError(f"{output} is one file, which workers cannot share: name a folder")
    shared = not one_file and (shared or isinstance(output, StorePath))
    jobs = [
        Job(request, target)
        for request, target in zip(requests, targets(requests, output, format), strict=True)
    ]
    spec = window_spec(opened, read_in_generation(opened))
    unwanted = _unwanted(negative_sound, sampling)
    settings = {
        **sampling._asdict(),
        "interval": None if sampling.interval is None else list(sampling.interval),
        "precision": precision,
        "bundle": opened.identity,
        "candidates": candidates,
        "veto": vetoed,
        "joint": joint,
        "negative_sound": None if unwanted is None else digest_file(unwanted),
        **asdict(finishing),
    }
    throughput = Throughput(len(jobs))
    if progress is not None:
        progress.watch(len(jobs), throughput)
    record = None if one_file or shared else Record(output, skip=not overwrite)
    work = Work(
        jobs, spec, progress, record, settings, finishing, throughput=throughput, joint=joint
    )
    with ExitStack() as held:
        # Programs beside a bundle are for full batches.
        most = BATCH if has_programs(opened) else windows_at_most(BATCH, requests, spec, held)
        devices = partial(layout_and_batch, batch, most=most, fsdp=fsdp, tensor=tensor)
        loader = partial(
            Loader,
            requests=requests,
            sampling=sampling,
            precision=precision,
            memory=memory,
            candidates=candidates,
            veto=vetoed,
            joint=joint,
            negative_sound=unwanted,
        )
        held.enter_context(output_folder(output.parent if one_file else output))
        if on is not None:
            name = absolute_name(TINY_BUNDLE if bundle is None else bundle)
            opener = partial(open_loader, name, opened.identity, verify, devices, loader)
            failures = do_on_ray(
                work, output, opener, gpus=fsdp * tensor, workers=workers, overwrite=overwrite
            )
        else:
            layout, batch = devices()
            load = loader(bundle=opened, layout=layout, batch=batch, say=work.say, note=work.note)
            if shared:
                failures = do_together(work, output, load, batch, overwrite=overwrite)
            else:
                work.check_targets()
                work.run(load, batch)
                failures = [job.failed for job in jobs if job.failed]
    if failures:
        raise GenerationError(failures)
    return [job.target for job in jobs]


def compile_programs(
    bundle: str | Path | None = None,
    *,
    steps: int | None = None,
    sampler: str | None = None,
    guidance: float | int | None = None,
    guidance_interval: Sequence[float | int] | None = None,
    guidance_rescale: float | int = 0.0,
    eta: float | int = 0.0,
    precision: str = "float32",
    batch: int | None = None,
    fsdp: int = 1,
    tensor: int = 1,
    say: Callable[[str], object] = print,
) -> Path:
    """Compile what `generate` runs with these settings on devices like those of this process.

    The programs are written into a folder beside the bundle, which is returned. `generate` uses
    them where everything is the same, and where this user's key is (`mfm_jax.runtime.executables`).

    Raises:
        UserError: an argument is wrong, or the programs cannot be written.
    """
    _check_computing(batch, precision, fsdp, tensor)
    opened = Bundle.open(TINY_BUNDLE if bundle is None else bundle)
    sampling = _sampling(
        opened.settings, sampler, steps, guidance, eta, guidance_interval, guidance_rescale
    )
    layout, batch = layout_and_batch(batch, fsdp=fsdp, tensor=tensor)
    return Exports(opened, layout, batch, precision, sampling).write(say)


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


def windows_at_most(
    limit: int, requests: Sequence[Request], spec: WindowSpec, held: ExitStack
) -> int:
    """Return how many windows there are to compute, or `limit` if there are more, or may be.

    Args:
        held: keeps copies of videos in a store, which will be read again.
    """
    if len(requests) >= limit:
        return limit
    try:
        files = [held.enter_context(local_copy(request.source)) for request in requests]
        infos = zip(requests, map(probe, files), strict=True)
        lengths = [request.seconds(info.seconds) for request, info in infos]
    except (MediaError, OSError):  # which is told when it is this video's turn
        return limit
    return max(1, min(limit, sum(len(spec.starts(seconds)) for seconds in lengths)))


def layout_and_batch(
    batch: int | None = None, *, most: int = BATCH, fsdp: int = 1, tensor: int = 1
) -> tuple[Layout, int]:
    """Return a layout of all devices of this process, and the windows that they compute at once.

    Args:
        batch: so many windows; by default `most`, rounded up to a multiple of the devices.

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
    batch = batch or shards * math.ceil(most / shards)
    if batch % shards:
        raise UsageError(
            f"batch {batch} does not divide over {shards} devices: use a multiple of {shards}"
        )
    return Layout(make_mesh(MeshConfig(fsdp=fsdp, tensor=tensor), devices)), batch


def _check_least(least: int, **values: float | int | None) -> None:
    for name, value in values.items():
        if value is not None and value < least:
            raise UsageError(f"{name} must be at least {least}, got {value}")


def _veto(given: str | Sequence[str], candidates: int) -> list[str]:
    names = list(dict.fromkeys(given.split(",") if isinstance(given, str) else given))
    for name in names:
        _check_choice("veto", name, tuple(CLASSES))
    if names and candidates == 1:
        raise UsageError("a veto chooses among candidates: ask for 2 or more")
    return names


def _unwanted(file: str | Path | None, sampling: Sampling) -> Path | None:
    if file is None:
        return None
    if sampling.guidance == 1:
        raise UsageError("guidance 1 keeps away from nothing: leave the negative sound out")
    path = user_path(file)
    if isinstance(path, StorePath):
        check_file(path)
    else:
        check_is_file(path)
    return path


def _share(name: str, value: float | int) -> float:
    if not 0 <= value <= 1:
        raise UsageError(f"{name} must be from 0 to 1, got {value:g}")
    return float(value)


def _interval(given: Sequence[float | int] | None) -> tuple[float, float] | None:
    if given is None:
        return None
    if len(given) != 2 or not 0 <= given[0] < given[1]:
        told = " ".join(f"{each:g}" for each in given)
        raise UsageError(
            "guidance_interval is two noise levels, a lower and a higher one such as 0.3 3, "
            f"got {told}"
        )
    return float(given[0]), float(given[1])


def _check_computing(batch: int | None, precision: str, fsdp: int, tensor: int) -> None:
    _check_least(1, batch=batch, fsdp=fsdp, tensor=tensor)
    _check_choice("precision", precision, PRECISIONS)


def _check_choice(name: str, value: str | None, known: Sequence[str]) -> None:
    if value is not None and value not in known:
        raise UsageError(f"{name} {value!r} is not known: use {', '.join(known)}")


def _finishing(rate: int, lufs: float | int | None, mix: float | int | None) -> Finishing:
    if rate not in RATES:
        raise UsageError(f"rate must be one of {', '.join(map(str, RATES))}, got {rate}")
    if lufs is not None and not QUIETEST <= lufs <= LOUDEST:
        raise UsageError(f"lufs must be from {QUIETEST:g} to {LOUDEST:g}, got {lufs:g}")
    if mix is not None and not -120 <= mix <= 0:
        raise UsageError(f"mix must be from -120 to 0 dB, got {mix:g}")
    return Finishing(
        rate, None if lufs is None else float(lufs), None if mix is None else float(mix)
    )


def _sampling(
    settings: Settings,
    sampler: str | None,
    steps: int | None,
    guidance: float | int | None,
    eta: float | int,
    interval: Sequence[float | int] | None,
    rescale: float | int,
) -> Sampling:
    _check_least(1, steps=steps)
    _check_least(0, guidance=guidance, eta=eta)
    if steps is not None and steps > STEPS:
        raise UsageError(f"steps must be at most {STEPS}, got {steps}")
    _check_choice("sampler", sampler, SAMPLERS)
    sampler = sampler or settings.sampler
    if eta > 1 or (eta and sampler != "ddim"):
        raise UsageError(f"eta is 0 to 1 and only for sampler ddim, got {eta} for {sampler}")
    scale = settings.guidance if guidance is None else guidance
    return Sampling(
        sampler,
        steps or settings.steps,
        float(scale),
        float(eta),
        interval=_interval(interval),
        rescale=_share("guidance_rescale", rescale),
    )

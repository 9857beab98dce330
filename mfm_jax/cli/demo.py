"""`mfm demo`: make a silent example clip and give it sound with the shipped miniature."""

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfm_jax.cli import arguments as options

if TYPE_CHECKING:
    import numpy as np

    from mfm_jax.bundle import Bundle
    from mfm_jax.foley.world import RenderedClip, World
    from mfm_jax.inference.pipeline import VideoToAudio


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = "Make a silent example clip and give it sound with the shipped miniature."
    parser.add_argument(
        "-o", "--output", type=options.path, default=Path("demo"), help="a folder; default: demo"
    )
    options.add_bundle(parser)
    options.add_verify(parser)
    parser.add_argument("--clip", type=int, metavar="SEED", help="seed of another clip")
    options.add_programs(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the clip, its sound, a picture and a report, and print the scores."""
    from mfm_jax.bundle import Bundle
    from mfm_jax.foley.world import SPLITS, World, generate_clip
    from mfm_jax.inference.generate import output_folder
    from mfm_jax.inference.pipeline import VideoToAudio
    from mfm_jax.runtime.seeds import check_seed

    # By default a held-out clip of the Foley world, on which no network was trained.
    seed = SPLITS["test"][1] if args.clip is None else args.clip
    check_seed(seed, "--clip")
    started = time.monotonic()
    bundle = Bundle.open(args.bundle, verify=args.verify)
    with output_folder(args.output), written_here(args.output) as folder:
        model = VideoToAudio.open(args.bundle, verify=args.verify)
        make(model, bundle, World(), generate_clip(World(), seed), folder, args.output)
    spent = time.monotonic() - started
    print(f"{args.output}/sound.mp4, sound.wav, spectrogram.png: {spent:.0f} s")
    print(f"{args.output}/report/index.html: see and hear it beside the real sound, in a browser")
    return 0


@contextmanager
def written_here(target: Path) -> Iterator[Path]:
    """Yield a folder of this machine to write into, whose files go to `target` in the end."""
    from mfm_jax.storage.addresses import StorePath
    from mfm_jax.storage.scratch import scratch

    if not isinstance(target, StorePath):
        yield target
        return
    with scratch(target.name) as folder:
        yield folder
        for file in folder.rglob("*"):
            if file.is_file():
                StorePath(target / file.relative_to(folder)).put(file)


def make(
    model: "VideoToAudio",
    bundle: "Bundle",
    world: "World",
    clip: "RenderedClip",
    folder: Path,
    shown: Path,
) -> None:
    """Write the clip and its sound into `folder`, and print what is seen and heard.

    Args:
        shown: the folder as the user has named it.
    """
    import numpy as np

    from mfm_jax.inference.pipeline import stitch
    from mfm_jax.media.audio import RATE, write_sound
    from mfm_jax.media.frames import windows
    from mfm_jax.media.probe import probe
    from mfm_jax.media.write import write_frames, write_video

    silent = folder / "silent.mp4"
    write_frames(iter(clip.frames), silent, fps=world.fps)
    events = ", ".join(f"{e.time:.2f} s {e.material}" for e in clip.events)
    print(f"{shown / silent.name}: contacts at {events or 'no time'}")
    waves = model(list(windows(silent, model.spec)))
    wave = stitch(list(waves), model.spec, round(probe(silent).seconds * RATE))
    write_sound(folder / "sound.wav", wave)
    write_video(silent, folder / "sound.mp4", wave)
    draw(folder / "spectrogram.png", wave, clip)
    report(folder, clip, shown)
    if "listener" in bundle.entries:
        print(scores(bundle.load("listener", np.float32), wave, clip))


def report(folder: Path, clip: "RenderedClip", shown: Path) -> None:
    """Write the page that compares the sound with the real one, which is written as well."""
    from mfm_jax.evaluation.clips import Sound, pair
    from mfm_jax.evaluation.evaluate import Settings, evaluate_pairs
    from mfm_jax.media.write import write_video

    silent, real, made = (folder / f"{name}.mp4" for name in ("silent", "real", "sound"))
    write_video(silent, real, clip.audio)
    pairing = pair(
        {"clip": Sound(real)},
        {"generated": {"clip": Sound(made)}},
        {"reference": str(shown / real.name), "generated": str(shown / made.name)},
    )
    contacts = {"clip": [event.time for event in clip.events]}
    evaluate_pairs(pairing, folder / "report", Settings(), contacts=contacts, command="mfm demo")


def scores(listener: Any, wave: "np.ndarray", clip: "RenderedClip") -> str:
    """Say what is heard of the clip, and how well that fits what is seen."""
    import numpy as np

    from mfm_jax.foley.scores import Contacts, listen, score_waves

    heard = listen(listener, wave)
    names = (f"{time:.2f} s {name}" for time, name in zip(*astuple(heard), strict=True))
    times = np.array([event.time for event in clip.events])
    seen = Contacts(times, tuple(event.material for event in clip.events))
    (score,) = score_waves(listener, [wave], [seen], [clip.audio])
    values = score.scores()
    off = np.abs(heard.times[:, None] - times).min(axis=0, initial=np.inf)
    return (
        f"heard: {', '.join(names) or 'nothing'}; no contact is more than "
        f"{1000 * off.max(initial=0):.0f} ms from a sound\n"
        f"onset F1 {values['onset_f1_50']:.2f} within 50 ms, {values['onset_f1_100']:.2f} within "
        f"100 ms; with the right material {values['event_f1']:.2f}; "
        f"log-mel {values['log_mel']:.2f} nats from the true sound"
    )


FRAMES = 8
"""Frames of the clip in the picture."""


def draw(path: Path, wave: "np.ndarray", clip: "RenderedClip") -> None:
    """Draw frames of the clip above the generated and the true log-mel; contacts are dashed."""
    from matplotlib.figure import Figure

    from mfm_jax.media.audio import RATE
    from mfm_jax.media.spectrogram import show
    from mfm_jax.storage.files import atomic_write

    figure = Figure(figsize=(8, 5.2), layout="constrained")
    top, *axes = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1.4, 1.4))
    seconds = len(clip.audio) / RATE
    width = seconds / FRAMES
    for i in range(FRAMES):
        frame = clip.frames[round((i + 0.5) / FRAMES * (len(clip.frames) - 1))]
        # A frame lies where it is shown.
        top.imshow(frame, extent=(i * width, (i + 1) * width, 0, 1), aspect="auto")
    top.set(xlim=(0, seconds), ylim=(0, 1), yticks=[], title="the silent clip")
    for axis, sound, title in zip(
        axes, (wave, clip.audio), ("sound made for it", "its true sound"), strict=True
    ):
        show(axis, sound)
        axis.set(title=title, ylabel="mel bin", xlim=(0, seconds))
    for axis in (top, *axes):
        for event in clip.events:
            axis.axvline(event.time, color="white", linestyle="--", linewidth=0.8)
    axes[-1].set_xlabel("seconds; dashed: visible contacts")
    with atomic_write(path) as part:
        figure.savefig(part, dpi=100)

"""`python -m benchmarks.jobs`: a thousand clips in one run, and in one that is killed ten times.

It makes short clips, some of them broken, and gives them sound with the shipped miniature, once in
one run and once in runs that are killed at random moments and started again. It counts what was
compiled and when, watches the memory, and compares the outputs. `--plot FILE.png` draws the memory.
"""

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hardware import hardware

WATCHED = """
import json, sys, time
import jax
from mfm_jax.cli import main
compiled, begun = [], time.monotonic()
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **how: compiled.append(time.monotonic() - begun)
    if event.endswith("backend_compile_duration") else None
)
code = main(sys.argv[2:])
with open(sys.argv[1], "w") as file:
    json.dump({"code": code, "compiled": compiled}, file)
"""
"""A command whose compilations are noted, with the seconds since the start."""

BEGUN = 30
"""Clips after which a run counts as going: memory is compared from there on."""


def make_clips(folder: Path, count: int, broken: int) -> None:
    """Write clips of a window each, with different pictures; spread broken ones among them."""
    from mfm_jax.media.write import write_frames

    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = rng.integers(0, 256, (16, 4, 6, 3), np.uint8).repeat(4, axis=0)
        write_frames(coarse.repeat(16, 1).repeat(16, 2), folder / f"{i:04d}.mp4", fps=25)
    for i in range(broken):
        clip = folder / f"{(i * count // broken + 7) % count:04d}.mp4"
        clip.write_bytes(clip.read_bytes()[: 300 + 97 * i])


def memory(process: int) -> float:
    """Return the resident memory of a process in MiB."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def watch(clips: Path, out: Path, options: list[str]) -> dict[str, Any]:
    """Give all clips sound in one run; return what was compiled, the memory and the time."""
    told = out.parent / "told.json"
    command = [sys.executable, "-c", WATCHED, str(told), "generate", str(clips), "-o", str(out)]
    begun = time.monotonic()
    used: list[tuple[float, float, int]] = []  # seconds, MiB, outputs
    with (out.parent / "log.txt").open("w") as log:
        process = subprocess.Popen([*command, *options], stderr=log)
        while process.poll() is None:
            used.append((time.monotonic() - begun, memory(process.pid), count(out)))
            time.sleep(0.5)
    return {
        **json.loads(told.read_text()),
        "memory": used,
        "seconds": time.monotonic() - begun,
    }


def count(out: Path) -> int:
    """Return how many outputs are recorded."""
    file = out / "generated.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def broken_run(clips: Path, out: Path, options: list[str], kills: int, most: float) -> None:
    """Give all clips sound in runs of which the first ones are killed, after `most` s or less."""
    rng = random.Random(0)
    command = [sys.executable, "-m", "mfm_jax.cli", "generate", str(clips), "-o", str(out)]
    for _ in range(kills):
        process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.2, 1.0) * most)
        process.send_signal(signal.SIGKILL)
        process.wait()
        print(f"killed: {count(out)} are recorded", flush=True)
    subprocess.run([*command, *options], stderr=subprocess.DEVNULL)


def compare(unbroken: Path, broken: Path) -> str:
    """Say how the outputs of both differ, and whether one was recorded twice."""
    names = [json.loads(line)["output"] for line in (broken / "generated.jsonl").open()]
    twice = [name for name, times in Counter(names).items() if times > 1]
    files = {path.name for path in unbroken.iterdir()} | {path.name for path in broken.iterdir()}
    sounds = sorted(name for name in files if name.endswith(".wav"))
    other = [
        name
        for name in sounds
        if not ((unbroken / name).exists() and (broken / name).exists())
        or (unbroken / name).read_bytes() != (broken / name).read_bytes()
    ]
    left = sorted(files - set(sounds) - {"generated.jsonl", "failed.csv", "generated"})
    return (
        f"{len(sounds)} outputs, {len(other)} of them differ; {len(twice)} recorded twice; "
        f"{len(left)} other files"
    )


def plot(file: Path, used: list[tuple[float, float, int]]) -> None:
    """Draw memory over outputs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axis = figure.subplots()
    axis.plot([outputs for _, _, outputs in used], [mib for _, mib, _ in used])
    axis.set(xlabel="clips done", ylabel="resident memory, MiB", ylim=(0, None))
    figure.savefig(file, dpi=110)


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs", description=__doc__)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--broken", type=int, default=10)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", help="of the sampler; default: the bundle's")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    options = ["--format", "wav", *(["--steps", args.steps] if args.steps else [])]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"{hardware(folder)}; {args.clips} clips, {args.broken} of them broken")
        make_clips(folder / "clips", args.clips, args.broken)
        found = watch(folder / "clips", folder / "unbroken", options)
        with (folder / "unbroken" / "failed.csv").open(newline="") as file:
            failed = sum(1 for _ in csv.DictReader(file))
        first = next(at for at, _, outputs in found["memory"] if outputs)
        later = [at for at in found["compiled"] if at > first]
        going = [mib for _, mib, outputs in found["memory"] if outputs >= BEGUN]
        half = len(going) // 2
        print(
            f"one run: exit code {found['code']}, {failed} in failed.csv, "
            f"{args.clips / found['seconds']:.2f} clips/s, {len(found['compiled'])} programs "
            f"compiled, {len(later)} of them after the first output"
        )
        print(
            f"memory: {max(going[:half]):.0f} MiB at most in the first half, "
            f"{max(going[half:]):.0f} in the second"
        )
        most = 2 * found["seconds"] / max(1, args.kills)
        broken_run(folder / "clips", folder / "broken", options, args.kills, most)
        print(f"killed {args.kills} times: {compare(folder / 'unbroken', folder / 'broken')}")
        if args.plot is not None:
            plot(args.plot, found["memory"])


if __name__ == "__main__":
    main()

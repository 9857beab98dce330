"""`python -m benchmarks.serve`: a hundred videos from four clients, beside `mfm generate`.

It makes clips and gives them sound in rounds, so that whatever else the machine does falls on all:
with `mfm generate`, with `mfm serve` and clients that wait for each sound before they send the next
video, and with clients that send all of theirs at once. It counts what is lost, and measures the
time from sending a video to having its sound, the clips a second and their ratio to `mfm generate`,
the processor's seconds for a clip, and the memory.
"""

import argparse
import math
import os
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.hardware import hardware
from integrations.comfyui.client import Client, ServerError

FEW = 4
"""Clips of a run that are not timed: the first batches find nothing decoded."""
FPS = 25
SIZE = 192, 256

Took = list[tuple[float, float] | None]
"""When each video was sent and when its sound was there, in seconds; None for one that was lost."""


def make_clips(folder: Path, count: int, seconds: float) -> list[Path]:
    """Write clips with different pictures that change every fifth of a second."""
    from mfm_jax.media.write import write_frames

    folder.mkdir()
    rng = np.random.default_rng(0)
    files = [folder / f"{i:04d}.mp4" for i in range(count)]
    for file in files:
        coarse = rng.integers(0, 256, (round(5 * seconds), 6, 8, 3), np.uint8)
        frames = coarse.repeat(FPS // 5, 0).repeat(SIZE[0] // 6, 1).repeat(SIZE[1] // 8, 2)
        write_frames(iter(frames), file, fps=FPS)
    return files


def generate(clips: Sequence[Path], out: Path, options: Sequence[str]) -> tuple[float, float]:
    """Give clips sound with `mfm generate`; return the clips a second, and seconds of processor."""
    command = [sys.executable, "-m", "mfm_jax.cli", "generate", *map(str, clips), "-o", str(out)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, *options], stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    ends = [file.stat().st_mtime for file in out.glob("*.mp4")]
    assert len(ends) == len(clips), "every clip has its sound"
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return rate(ends), used


def rate(ends: Iterable[float]) -> float:
    """Return the clips a second after the first few, given when each was done."""
    later = sorted(ends)[FEW - 1 :]
    return (len(later) - 1) / (later[-1] - later[0]) if len(later) > 1 else math.nan


@contextmanager
def server(options: Sequence[str]) -> Iterator[tuple[Client, str, subprocess.Popen]]:
    """Start a server that refuses nobody for sending too much; stop it in the end."""
    many = ["--queue", "1000", "--per-visitor", "1000", "--per-minute", "100000"]
    command = [sys.executable, "-m", "mfm_jax.cli", "serve", "--port", "0", *many, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None, "it is a pipe"
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None, "it says where it is"
        yield Client(found[0]), found[0], process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def one_after_the_other(client: Client, clips: Sequence[Path], out: Path) -> Took:
    """Wait for each sound before the next video is sent."""
    return [_fetched(client, *_sent(client, clip), out / clip.name) for clip in clips]


def all_at_once(client: Client, clips: Sequence[Path], out: Path) -> Took:
    """Send all videos, and then wait for their sounds."""
    sent = [_sent(client, clip) for clip in clips]
    return [
        _fetched(client, *each, out / clip.name) for each, clip in zip(sent, clips, strict=True)
    ]


def _sent(client: Client, clip: Path) -> tuple[str | None, float]:
    """Return the id of a new job, and when it was sent."""
    begun = time.monotonic()
    try:
        return client.send(clip, {})["id"], begun
    except ServerError as error:
        print(f"lost: {error}", flush=True)
        return None, begun


def _fetched(
    client: Client, job: str | None, begun: float, target: Path
) -> tuple[float, float] | None:
    if job is None:
        return None
    try:
        client.fetch(job, "sound.mp4", target, wait=600)
    except ServerError as error:
        print(f"lost: {error}", flush=True)
        return None
    ended = time.monotonic()
    client.remove(job)
    return begun, ended


def visit(
    run: Callable[[Client, Sequence[Path], Path], Took],
    client: Client,
    clips: Sequence[Path],
    clients: int,
    out: Path,
) -> Took:
    """Let clients share the clips."""
    out.mkdir()
    with ThreadPoolExecutor(clients) as pool:
        shares = [clips[i::clients] for i in range(clients)]
        parts = list(pool.map(lambda share: run(client, share, out), shares))
    return [each for part in parts for each in part]


def metric(url: str, name: str) -> float:
    """Return one of the server's metrics."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        text = answer.read().decode()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def memory_of_children(process: int) -> float:
    """Return the MiB of the processes that a process has started."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    children = [child for task in tasks for child in task.read_text().split()]
    told = "".join(Path(f"/proc/{child}/smaps_rollup").read_text() for child in children)
    # What several processes share is counted once, in parts.
    return sum(map(int, re.findall(r"^Pss: +(\d+) kB", told, re.MULTILINE))) / 1024


def processor(process: int) -> float:
    """Return the seconds of processor of a process and of those that it has started."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    every = [process, *(child for task in tasks for child in task.read_text().split())]
    stats = (Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split() for one in every)
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def told(took: Took) -> str:
    """Say how long the sounds took."""
    there = sorted(ended - begun for begun, ended in filter(None, took))
    p50, p95 = statistics.median(there), there[min(len(there) - 1, int(0.95 * len(there)))]
    return f"{took.count(None)} of {len(took)} lost, p50 {p50:.2f} s, p95 {p95:.2f} s"


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=4, help="that share the clips; default: 4")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a clip; default: 5")
    parser.add_argument("--batch", default="4", help="windows computed at once; default: 4")
    args = parser.parse_args()
    options = ["--batch", args.batch]
    modes = (one_after_the_other, all_at_once)
    plain: list[float] = []
    took: dict[str, Took] = {run.__name__: [] for run in modes}
    rates: dict[str, list[float]] = {run.__name__: [] for run in modes}
    used = dict.fromkeys(("generate", *took), 0.0)
    with tempfile.TemporaryDirectory() as name, server(options) as (client, url, process):
        folder = Path(name)
        print(f"{hardware(folder)}; {args.clips} clips of {args.seconds:g} s, {SIZE[1]}x{SIZE[0]}")
        clips = make_clips(folder / "clips", args.clips, args.seconds)
        generate(clips[:FEW], folder / "warm", options)  # what it compiles is kept
        _, start = generate(clips[:FEW], folder / "few", options)
        visit(all_at_once, client, clips[:FEW], args.clients, folder / "first")
        for number in range(args.rounds):
            part = clips[number :: args.rounds]
            fast, spent = generate(part, folder / f"plain{number}", options)
            plain.append(fast)
            used["generate"] += (spent - start) / (len(part) - FEW) / args.rounds
            for run in modes:
                before, mode = processor(process.pid), run.__name__
                found = visit(run, client, part, args.clients, folder / f"{mode}{number}")
                took[mode] += found
                rates[mode].append(rate(ended for _, ended in filter(None, found)))
                spent = processor(process.pid) - before
                used[mode] += spent / len(part) / args.rounds
            print(f"load {os.getloadavg()[0]:.1f}", flush=True)
        print(
            f"mfm generate: {statistics.median(plain):.2f} clips/s, "
            f"{used['generate']:.2f} s of processor for a clip"
        )
        for mode, its in rates.items():
            shares = sorted(fast / slow for fast, slow in zip(its, plain, strict=True))
            print(
                f"mfm serve, {args.clients} clients, {mode.replace('_', ' ')}: {told(took[mode])}, "
                f"{statistics.median(its):.2f} clips/s ({statistics.median(shares):.2f} of mfm "
                f"generate, {shares[0]:.2f} to {shares[-1]:.2f} in {args.rounds} rounds), "
                f"{used[mode]:.2f} s of processor for a clip "
                f"({used['generate'] / used[mode]:.2f})"
            )
        filled = metric(url, "mfm_windows_total") / metric(url, "mfm_batches_total")
        resident = metric(url, "process_resident_memory_bytes") / 2**20
        print(
            f"memory: {resident:.0f} MiB, and {memory_of_children(process.pid):.0f} MiB in the "
            f"processes that decode; {filled:.1f} windows in a batch"
        )


if __name__ == "__main__":
    main()

"""`python -m benchmarks.serve`: a hundred videos from four clients, beside `mfm generate`.

It makes clips, gives them sound with `mfm generate` and then with `mfm serve`: once with clients
that wait for each sound before they send the next video, and once with clients that send all of
theirs at once. It counts what is lost, and measures the time from sending a video to having its
sound, the memory, and the clips a second, of which it prints the ratio to `mfm generate`.
"""

import argparse
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.hardware import hardware
from integrations.comfyui.client import Client, ServerError

FEW = 4
"""Clips of the run of `mfm generate` whose time is subtracted: that of its start."""
FPS = 25
SIZE = 192, 256

Took = list[float | None]
"""Seconds of each video until its sound was there; None for one that was lost."""


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


def generate(clips: Sequence[Path], out: Path, options: Sequence[str]) -> float:
    """Give clips sound with `mfm generate`; return the seconds that it took."""
    command = [sys.executable, "-m", "mfm_jax.cli", "generate", *map(str, clips), "-o", str(out)]
    begun = time.monotonic()
    subprocess.run([*command, *options], stderr=subprocess.DEVNULL, check=True)
    took = time.monotonic() - begun
    assert len(list(out.glob("*.mp4"))) == len(clips), "every clip has its sound"
    return took


def rate(clips: Sequence[Path], folder: Path, options: Sequence[str]) -> float:
    """Return the clips a second of `mfm generate`, once it has started."""
    generate(clips[:FEW], folder / "warm", options)  # what it compiles is kept
    few = generate(clips[:FEW], folder / "few", options)
    return (len(clips) - FEW) / (generate(clips, folder / "all", options) - few)


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
    return [_timed(lambda clip=clip: client.make(clip, out / clip.name)) for clip in clips]


def all_at_once(client: Client, clips: Sequence[Path], out: Path) -> Took:
    """Send all videos, and then wait for their sounds."""
    begun, jobs = [], []
    for clip in clips:
        begun.append(time.monotonic())
        jobs.append(client.send(clip, {})["id"])
    took: Took = []
    for clip, job, since in zip(clips, jobs, begun, strict=True):
        fetched = _timed(lambda job=job, clip=clip: _fetch(client, job, out / clip.name))
        took.append(None if fetched is None else time.monotonic() - since)
    return took


def _fetch(client: Client, job: str, target: Path) -> None:
    client.fetch(job, "sound.mp4", target, wait=600)
    client.remove(job)


def _timed(call: Callable[[], object]) -> float | None:
    begun = time.monotonic()
    try:
        call()
    except ServerError as error:
        print(f"lost: {error}", flush=True)
        return None
    return time.monotonic() - begun


def measure(
    run: Callable[[Client, Sequence[Path], Path], Took],
    client: Client,
    clips: Sequence[Path],
    clients: int,
    out: Path,
) -> tuple[Took, float]:
    """Let clients share the clips; return the time of each video, and the clips a second."""
    out.mkdir()
    begun = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        shares = [clips[i::clients] for i in range(clients)]
        parts = list(pool.map(lambda share: run(client, share, out), shares))
    return [each for part in parts for each in part], len(clips) / (time.monotonic() - begun)


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


def told(took: Took) -> str:
    """Say how long the sounds took."""
    there = sorted(each for each in took if each is not None)
    p50, p95 = statistics.median(there), there[min(len(there) - 1, int(0.95 * len(there)))]
    return f"{took.count(None)} of {len(took)} lost, p50 {p50:.2f} s, p95 {p95:.2f} s"


def main() -> None:
    """Print what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve", description=__doc__)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0, help="of a clip; default: 5")
    parser.add_argument("--batch", default="4", help="windows computed at once; default: 4")
    args = parser.parse_args()
    options = ["--batch", args.batch]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"{hardware(folder)}; {args.clips} clips of {args.seconds:g} s, {SIZE[1]}x{SIZE[0]}")
        clips = make_clips(folder / "clips", args.clips, args.seconds)
        plain = rate(clips, folder / "plain", options)
        safe = rate(clips, folder / "safe", [*options, "--sandbox"])
        print(f"mfm generate: {plain:.2f} clips/s; with --sandbox {safe:.2f}", flush=True)
        with server(options) as (client, url, process):
            for run in (one_after_the_other, all_at_once):
                took, fast = measure(run, client, clips, args.clients, folder / run.__name__)
                print(
                    f"mfm serve, {args.clients} clients, {run.__name__.replace('_', ' ')}: "
                    f"{told(took)}, {fast:.2f} clips/s: {fast / plain:.2f} of mfm generate, "
                    f"{fast / safe:.2f} of it with --sandbox",
                    flush=True,
                )
            filled = metric(url, "mfm_windows_total") / metric(url, "mfm_batches_total")
            used = metric(url, "process_resident_memory_bytes") / 2**20
            print(
                f"memory: {used:.0f} MiB, and {memory_of_children(process.pid):.0f} MiB in the "
                f"processes that decode; {filled:.1f} windows in a batch"
            )


if __name__ == "__main__":
    main()

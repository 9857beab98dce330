"""`python -m benchmarks.workers`: workers that share a store beside runs that share nothing.

The rows of one manifest are divided by four workers, with videos, outputs and records in a store
of this machine; and the same rows in four parts by four runs of their own, from and to the disk. A
stand-in takes the place of the networks and keeps a core busy for `--work` milliseconds a clip, so
that both sides have the same work and the rest shows. Like a program of a device it leaves Python
to the other threads meanwhile. Both sides begin with the start of the processes.

The server of the store has the same cores, unless `--server-apart` gives it one of its own and the
workers of both sides the others (on Linux), as a real store takes no time of the machine that asks.
It keeps its objects in files in memory (`/dev/shm`). Without files it would compare each object
that is written with all others, which no real store does, and which takes 6 ms when there are
10,000.
"""

import argparse
import csv
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.hardware import hardware

IN_MEMORY = "/dev/shm"
"""A file system in memory, for the objects of the store."""
VIDEOS = 100
"""Different videos, which the rows name in turn."""
BLOCK = bytes(1 << 16)


def write_inputs(folder: Path, rows: int, parts: int) -> None:
    """Write tiny videos, a manifest of all rows, and one for each part of them."""
    from mfm_jax.media.write import write_frames

    folder.mkdir()
    for i in range(VIDEOS):
        write_frames(iter(np.full((10, 32, 32, 3), 2 * i, np.uint8)), folder / f"{i}.mp4", fps=25)
    lines = [(f"{i % VIDEOS}.mp4", f"{i:05d}.wav", i) for i in range(rows)]
    parted = {f"part{p}.csv": lines[p * rows // parts : (p + 1) * rows // parts]
              for p in range(parts)}  # fmt: skip
    for name, its in {"all.csv": lines, **parted}.items():
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([("file", "output", "seed"), *its])


def work(manifest: str, out: str, milliseconds: float) -> None:
    """Do what `mfm generate` does, with a stand-in for the networks."""
    from mfm_jax.data.decoded import ClipSpec
    from mfm_jax.inference.inputs import expand
    from mfm_jax.inference.pipeline import Made
    from mfm_jax.inference.record import Record
    from mfm_jax.inference.requests import targets
    from mfm_jax.inference.shares import do_together
    from mfm_jax.inference.work import Item, Job, Networks, Work
    from mfm_jax.storage.addresses import StorePath
    from mfm_jax.storage.paths import user_path

    def start(items: Sequence[Item]) -> Made:
        until = time.thread_time() + len(items) * milliseconds / 1e3
        while time.thread_time() < until:
            hashlib.sha256(BLOCK)  # which does not hold Python's lock
        levels = [[[window.seen["cavp"].pixels.mean() / 256]] for _, window in items]
        waves = np.repeat(np.array(levels, np.float32), 6400, axis=2)
        return Made(waves, np.zeros((len(items), 1, 1), np.float32))

    folder = user_path(out)
    requests = expand([manifest])
    jobs = [Job(*pair) for pair in zip(requests, targets(requests, folder, "wav"), strict=True)]
    spec = ClipSpec(
        seconds=0.4, overlap=0.1, cavp_fps=12.5, cavp_size=16, timechat_frames=2, timechat_size=16
    ).windows
    if isinstance(folder, StorePath):
        do_together(Work(jobs, spec), folder, lambda: Networks(start), 4)
    else:
        folder.mkdir(parents=True)
        alone = Work(jobs, spec, record=Record(folder))
        alone.check_targets()
        alone.run(lambda: Networks(start), 4)


class Taken(NamedTuple):
    """Seconds that workers take: by the clock, and of processors."""

    wall: float
    stolen: float
    """Of each of their cores by the machine that hosts this one, which had others to serve."""
    workers: float
    server: float

    @property
    def kept(self) -> float:
        """Seconds in which the cores were this machine's."""
        return self.wall - self.stolen


def timed(commands: Sequence[Sequence[str]], milliseconds: float) -> Taken:
    """Run workers at the same time."""
    begun, lost = time.monotonic(), stolen()
    used, served = processors(), running_processors()
    words = [sys.executable, "-m", "benchmarks.workers", "--work", str(milliseconds), "--as-worker"]
    running = [subprocess.Popen([*words, *command]) for command in commands]
    codes = [process.wait() for process in running]
    if any(codes):
        raise RuntimeError(f"workers ended with {codes}")
    wall = time.monotonic() - begun
    return Taken(wall, stolen() - lost, processors() - used, running_processors() - served)


def stolen() -> float:
    """Return the seconds that this process's cores have lost to other machines, on Linux."""
    if not Path("/proc/stat").exists():
        return 0.0
    mine = os.sched_getaffinity(0)
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    ticks = [int(line[8]) for line in lines if line[0] in {f"cpu{core}" for core in mine}]
    return sum(ticks) / os.sysconf("SC_CLK_TCK") / len(mine)


def processors() -> float:
    """Return the seconds of processors that processes have used which have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def running_processors() -> float:
    """Return the seconds of processors that running children have used: the server, on Linux."""
    ticks = 0
    for told in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = told.read_text().rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print clips a second of both, and their ratio."""
    from tests.store_server import new_bucket, running_server

    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--work", type=float, default=30.0, metavar="MS", help="default: 30")
    parser.add_argument(
        "--server-apart", action="store_true", help="the server has a core that workers do not use"
    )
    parser.add_argument("--as-worker", nargs=2, metavar=("MANIFEST", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.as_worker:
        manifest, out = args.as_worker
        work(manifest, out, args.work)
        return
    memory = IN_MEMORY if os.path.isdir(IN_MEMORY) else None
    if args.server_apart:
        cores = os.sched_getaffinity(0)
        of_server = {max(cores)}
        if cores == of_server:
            parser.error("--server-apart needs a second core")
        os.sched_setaffinity(0, of_server)  # which the server inherits
    with (
        tempfile.TemporaryDirectory() as name,
        tempfile.TemporaryDirectory(dir=memory) as objects,
        running_server(Path(objects)) as url,
    ):
        folder, bucket = Path(name), new_bucket(url, "workers")
        os.environ["MFM_FILES"] = str(folder / "copies")
        if args.server_apart:
            os.sched_setaffinity(0, cores - of_server)  # which the workers inherit
        print(
            f"{hardware(folder)}; {args.rows} rows, {args.workers} workers, {args.work:g} ms each"
            + (", the server on a core of its own" if args.server_apart else "")
        )
        write_inputs(folder / "in", args.rows, args.workers)
        for file in (folder / "in").iterdir():
            (bucket / "in" / file.name).put(file)
        apart = [[str(folder / "in" / f"part{p}.csv"), str(folder / "out" / str(p))]
                 for p in range(args.workers)]  # fmt: skip
        alone = timed(apart, args.work)
        shared = timed([[f"{bucket}/in/all.csv", f"{bucket}/out"]] * args.workers, args.work)
        made = sum(path.name.endswith(".wav") for path in (bucket / "out").files())
        print(
            f"on the disk, each for itself: {args.rows / alone.wall:.1f} clips/s; sharing the "
            f"store: {args.rows / shared.wall:.1f} clips/s, {made} outputs; ratio "
            f"{alone.wall / shared.wall:.2f}. The host of this machine took "
            f"{alone.stolen / alone.wall:.1%} and {shared.stolen / shared.wall:.1%} of the cores; "
            f"without that the ratio is {alone.kept / shared.kept:.2f}. Processors: "
            f"{1e3 * alone.workers / args.rows:.1f} and {1e3 * shared.workers / args.rows:.1f} ms "
            f"a clip (ratio {alone.workers / shared.workers:.2f}), and "
            f"{1e3 * shared.server / args.rows:.1f} ms of the server (with it "
            f"{alone.workers / (shared.workers + shared.server):.2f})"
        )


if __name__ == "__main__":
    main()

"""Run cases in processes with a limit of memory and time."""

import importlib
import multiprocessing
import random
import resource
import signal
import tempfile
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

MEMORY = 4 << 30  # bytes of address space beyond what the process has when it begins
SECONDS = 60


def run(kind: str, seed: int, cases) -> dict[int, str]:
    """Try cases in a process that is replaced whenever one takes it down; return the verdicts."""
    verdicts: dict[int, str] = {}
    left = list(cases)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        while left:
            here, there = spawn.Pipe()
            worker = spawn.Process(target=_work, args=(kind, seed, left, Path(folder), there))
            worker.start()
            there.close()
            _collect(here, worker, left, verdicts)
            worker.join()
    return verdicts


def _collect(here: Connection, worker, left: list[int], verdicts: dict[int, str]) -> None:
    """Take verdicts until the worker has ended; the case that ended it has failed."""
    while left:
        try:
            if not here.poll(SECONDS + 30):
                worker.kill()
            number, verdict = here.recv()
        except EOFError:
            worker.join()
            verdicts[left[0]] = f"FAILED: the process ended with {worker.exitcode}"
            left.pop(0)
            return
        verdicts[number] = verdict
        left.remove(number)


def _work(kind: str, seed: int, cases: list[int], folder: Path, there: Connection) -> None:
    module = importlib.import_module(f"tests.fuzz.{kind}")
    made = folder / "sources"
    if made.exists():
        sources = sorted(made.iterdir())
    else:
        made.mkdir()
        sources = sorted(module.make_sources(made))
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    place = folder / "case"
    place.mkdir(exist_ok=True)
    for number in cases:
        there.send((number, _try(module, f"{seed}/{number}", sources, place)))


def _try(module, seed: str, sources: list[Path], place: Path) -> str:
    rng = random.Random(seed)
    target = place / f"x{rng.randrange(1 << 30)}"
    done = "nothing"
    began = time.monotonic()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        done = module.mutate(rng, sources, target)
        verdict = module.check(target)
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)[-6:]
        where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
        what = f"{type(error).__name__}: {str(error)[:300]} ({where})"
        verdict = f"FAILED: {done}: {what} after {time.monotonic() - began:.0f} s"
    finally:
        signal.alarm(0)
        module.clean(target)
    return verdict


def _too_long(*_) -> None:
    raise TimeoutError(f"more than {SECONDS} s")

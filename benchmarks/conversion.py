"""`python -m benchmarks.conversion`: convert checkpoints of the released sizes, and back.

Every case makes a checkpoint of random weights (`benchmarks.sources`), converts it into a bundle,
verifies and opens that, converts it back, and compares every tensor with the source. A row has the
time, that of `cp` of the same files (both until everything is on the disk), and the peak memory.

    python -m benchmarks.conversion [--only NAME] [--json FILE]
    python -m benchmarks.conversion kill [--times 20]

The second form kills conversions at random moments; each must leave the old or the new bundle. Exit
codes: 0 success, 1 a case failed or the bundle was broken.
"""

import argparse
import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.hardware import hardware
from benchmarks.sources import CASES, Checkpoint
from mfm_jax.bundle import Bundle, BundleError
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.storage.store import digest_file

ROOT = Path(__file__).parents[1]
CONVERT = (sys.executable, "-m", "convert")
MFM = (sys.executable, "-c", "import sys; from mfm_jax.cli import main; sys.exit(main())")
# Loading checks the names and shapes of the weights.
OPEN = """
import sys
from mfm_jax.bundle import Bundle
bundle = Bundle.open(sys.argv[1])
for name in bundle.entries:
    bundle.load(name)
"""
# In a separate process: the measured peak is that of its largest child, and a child inherits the
# peak of the process that forks it.
MEASURE = """
import os, resource, subprocess, sys, time
start = time.perf_counter()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
os.sync()
took = time.perf_counter() - start
print(took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


class Failed(Exception):
    """A case that failed; the message is the reason."""


class Run(NamedTuple):
    """Time and memory of a command."""

    seconds: float  # until everything is on the disk
    peak: int  # bytes of resident memory


@dataclass
class CaseResult:
    """The results of a case; None where it was not reached."""

    network: str
    bytes: int | None = None  # of the source's files
    tensors: int | None = None
    into: Run | None = None
    cp: Run | None = None
    limit: int | None = None  # bytes of memory
    out: Run | None = None
    verified: bool = False
    equal: bool = False
    failures: list[str] = dataclasses.field(default_factory=list)


def run(*command: str | Path) -> str:
    """Run a command and return its output.

    Raises:
        Failed: it did not succeed.
    """
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise Failed(f"exit code {done.returncode}: {said[-1] if said else 'nothing was said'}")
    return done.stdout


def measured(*command: str | Path) -> Run:
    """Run a command after `sync`, and return its time and memory.

    Raises:
        Failed: it did not succeed.
    """
    os.sync()
    seconds, kibibytes = run(sys.executable, "-c", MEASURE, *command).split()
    return Run(float(seconds), int(kibibytes) * 1024)


def there_and_back(row: CaseResult, checkpoint: Checkpoint, work: Path) -> None:
    """Take a checkpoint through all steps and record them in the row.

    Raises:
        Failed: a step did not succeed.
    """
    bundle, back = work / "bundle", work / "back"
    sizes = [t.nbytes for part in checkpoint.parts for t in opened(part.file).values()]
    row.bytes, row.tensors = sum(_sizes(*checkpoint.sources)), len(sizes)
    row.limit = 1_000_000_000 + 3 * max(sizes)
    (work / "copy").mkdir()
    row.cp = measured("cp", "-r", *checkpoint.sources, work / "copy")
    shutil.rmtree(work / "copy")
    given = [*map(str, checkpoint.sources), *checkpoint.options]
    row.into = measured(*CONVERT, checkpoint.model, *given, "-o", bundle)
    run(*MFM, "bundle", "verify", bundle)
    run(sys.executable, "-c", OPEN, bundle)
    row.verified = True
    row.out = measured(*CONVERT, checkpoint.model, bundle, "-o", back, "--to", "torch")
    row.failures += differences(checkpoint, back)
    row.equal = not row.failures
    for way, peak in (("in", row.into.peak), ("out", row.out.peak)):
        if peak > row.limit:
            row.failures.append(f"{way}: {peak / 1e6:.0f} MB is more than the limit")


def _sizes(*paths: Path) -> Iterator[int]:
    """Yield the bytes of each file, those in folders included."""
    for path in paths:
        inside = path.rglob("*") if path.is_dir() else [path]
        yield from (file.stat().st_size for file in inside if file.is_file())


def opened(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file as PyTorch and the safetensors package read it.

    They are memory-mapped, except in the format before zip files.
    """
    if file.suffix == ".safetensors":
        return load_file(file)
    found = torch.load(file, mmap=zipfile.is_zipfile(file), weights_only=True)
    return next((found[name] for name in ("state_dict", "model") if name in found), found)


def differences(checkpoint: Checkpoint, back: Path) -> list[str]:
    """Return how the tensors that came back differ from the source, one line for each kind."""
    wanted = {
        (part.back, name): tensor
        for part in checkpoint.parts
        for key, tensor in opened(part.file).items()
        if (name := part.name(key)) is not None
    }
    files = [str(file.relative_to(back)) for file in back.rglob("*.safetensors")]
    found = {(file, key): t for file in files for key, t in opened(back / file).items()}
    both = sorted(wanted.keys() & found.keys())
    kinds = {
        "lost": sorted(wanted.keys() - found.keys()),
        "added": sorted(found.keys() - wanted.keys()),
        "changed": [key for key in both if not _same(wanted[key], found[key])],
    }
    return [f"{len(k)} tensors {kind}, such as {' '.join(k[0])}" for kind, k in kinds.items() if k]


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether precision, shape and every bit are the same."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    first, second = (t.contiguous().reshape(-1).view(torch.uint8) for t in (one, other))
    return torch.equal(first, second)


HEADS = ["GB", "tensors", "in s", "cp s", "ratio", "peak MB", "limit MB"]
HEADS += ["out s", "out peak MB", "verified", "equal"]


def aligned(first: str, *others: str) -> str:
    """Align the cells of a row of the table."""
    cells = (f"{cell:>{max(6, len(name))}}" for cell, name in zip(others, HEADS, strict=True))
    return "  ".join((f"{first:21}", *cells))


def line(row: CaseResult) -> str:
    """Format a row of the table, with dashes for steps that were not reached."""

    def number(value: float | None, unit: float = 1, digits: int = 1) -> str:
        return "-" if value is None else f"{value / unit:.{digits}f}"

    into, cp, out = row.into, row.cp, row.out
    return aligned(
        row.network,
        number(row.bytes, 1e9, 2),
        number(row.tensors, digits=0),
        number(into and into.seconds),
        number(cp and cp.seconds),
        number(into and cp and into.seconds / cp.seconds),
        number(into and into.peak, 1e6, 0),
        number(row.limit, 1e6, 0),
        number(out and out.seconds),
        number(out and out.peak, 1e6, 0),
        "yes" if row.verified else "no",
        "yes" if row.equal else "no",
    )


def print_table(args: argparse.Namespace, work: Path) -> bool:
    """Run the cases, and return whether all succeeded."""
    print(header := hardware(work))
    print(aligned("network", *HEADS), flush=True)
    rows = []
    for name in args.only or CASES:
        rows.append(row := CaseResult(name))
        (work / name / "source").mkdir(parents=True)
        try:
            there_and_back(row, CASES[name](work / name / "source", args.small), work / name)
        except Exception as error:  # of any type: the other cases go on
            row.failures.append(f"{type(error).__name__}: {error}")
        print(line(row), *row.failures, sep="\n    ", flush=True)
        if not args.keep:
            shutil.rmtree(work / name)
    if args.json:
        told = {"hardware": header, "rows": [_told(row) for row in rows]}
        args.json.write_text(json.dumps(told, indent=1) + "\n")
    return not any(row.failures for row in rows)


def _told(row: CaseResult) -> dict[str, Any]:
    runs = {"into": row.into, "cp": row.cp, "out": row.out}
    return dataclasses.asdict(row) | {name: run and run._asdict() for name, run in runs.items()}


DTYPES = "float32", "bfloat16", "float16"
"""Precisions of the killed conversions; each uses another one than the bundle has."""
KILLED = "cavp"


class State(NamedTuple):
    """The stored component, without the parts that differ between equal conversions."""

    config: Any
    arrays: dict[str, tuple[str, str]]  # dtype and SHA-256
    kept: dict[str, tuple[int, str]]  # size and SHA-256 of the files beside the arrays


def state(bundle: Bundle) -> State:
    """Return the state of the component that is converted."""
    store = bundle.store(KILLED)
    arrays = {name: (listed.dtype, listed.sha256) for name, listed in store.arrays.items()}
    kept = {name: said for name, said in store.files.items() if not name.startswith("part-")}
    return State(bundle.config(KILLED), arrays, kept)


def dtype_of(bundle: Bundle) -> str:
    """Return the precision of the component's weights."""
    return next(iter(state(bundle).arrays.values()))[0]


def contents(bundle: Bundle, *, without: str | None = None) -> dict[str, str]:
    """Return the SHA-256 of every file of the bundle, or of all components but one."""
    folders = [bundle.path / e.folder for name, e in bundle.entries.items() if name != without]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    files += [bundle.path / "bundle.json"] if without is None else []
    return {str(file.relative_to(bundle.path)): digest_file(file) for file in files}


def leftovers(bundle: Bundle) -> list[str]:
    """List what is in the bundle's folder and does not belong to it."""
    known = {"bundle.json", *(entry.folder for entry in bundle.entries.values())}
    return sorted(path.name for path in bundle.path.iterdir() if path.name not in known)


def attempt(
    path: Path, command: tuple[str, ...], moment: float | None, new: State
) -> tuple[str, list[str]]:
    """Run a conversion, killed after `moment` seconds if given, and judge the bundle."""
    old = Bundle.open(path)
    before = contents(old)
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    with suppress(subprocess.TimeoutExpired):
        process.wait(moment)
    running = process.poll() is None
    process.kill()
    code = process.wait()
    found, problems = judged(path, old, before, new)
    if not running and (code or found != "the new one"):
        problems.append(f"it ended by itself, with exit code {code}")
    return f"{'killed' if running else 'ended'}, {found}", problems


def judged(path: Path, old: Bundle, before: dict[str, str], new: State) -> tuple[str, list[str]]:
    """Return which bundle there is now, and a list of its problems.

    Args:
        old: the bundle before; its files may be gone.
        before: its `contents`.
        new: the state after a complete conversion.
    """
    try:
        bundle = Bundle.open(path)
        problems = [problem for name in bundle.entries for problem in bundle.damages(name)]
        if (now := contents(bundle)) == before:
            return "the old one", problems
        others = [(b.settings, {**b.entries, KILLED: None}) for b in (old, bundle)]
        untouched = contents(bundle, without=KILLED).items() <= before.items()
        if state(bundle) == new and others[0] == others[1] and untouched:
            return "the new one", problems
    except BundleError as error:
        return "a broken one", [str(error)]
    differing = sorted(name for name in before | now if before.get(name) != now.get(name))
    return "neither", [*problems, f"differs from the old one in {', '.join(differing)}"]


def print_kills(args: argparse.Namespace, work: Path) -> bool:
    """Kill conversions into one bundle, and return whether it always was the old or the new one."""
    (work / "source").mkdir()
    path = work / "bundle"
    shutil.copytree(TINY_BUNDLE, path)
    checkpoint = CASES[KILLED](work / "source", args.small)
    given = *map(str, checkpoint.sources), *checkpoint.options, "-o", str(path)
    command = (*CONVERT, checkpoint.model, *given, "--precision")
    complete, seconds = {}, {}
    for dtype in DTYPES:
        start = time.perf_counter()
        run(*command, dtype)
        seconds[dtype] = time.perf_counter() - start
        complete[dtype] = state(Bundle.open(path))
    print(hardware(work))
    print(", ".join(f"{d} takes {s:.1f} s" for d, s in seconds.items()), flush=True)
    rng, good = np.random.default_rng(args.seed), True
    for number in range(args.times):
        dtype = [d for d in DTYPES if d != dtype_of(Bundle.open(path))][number % 2]
        moment = rng.uniform(0, seconds[dtype])
        found, problems = attempt(path, (*command, dtype), moment, complete[dtype])
        told = f"{number + 1:3}  {dtype:8}  {moment:6.2f} s  {found}"
        print(told, *problems, sep="\n     ", flush=True)
        good &= not problems
    found, problems = attempt(path, (*command, DTYPES[0]), None, complete[DTYPES[0]])
    left = leftovers(Bundle.open(path))
    print(f"not killed: {found}", *problems, sep="\n     ")
    print(f"left over: {', '.join(left) or 'nothing'}")
    return good and not problems and not left


def main() -> int:
    """Run one of the two forms in a temporary folder."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.conversion")
    parser.add_argument("form", nargs="?", choices=("table", "kill"), default="table")
    parser.add_argument("--only", action="append", choices=CASES, metavar="NAME", help="one case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the table goes as well")
    parser.add_argument("--workdir", type=Path, help="where the work folder is made")
    parser.add_argument("--keep", action="store_true", help="keep the work folder")
    parser.add_argument("--small", action="store_true", help="small networks, to try the program")
    parser.add_argument("--times", type=int, default=20, help="how often to kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    args = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every file it opens
    work = Path(tempfile.mkdtemp(prefix="conversion-", dir=args.workdir))
    try:
        good = (print_kills if args.form == "kill" else print_table)(args, work)
    except (BundleError, Failed) as error:
        print(error)
        good = False
    finally:
        if args.keep:
            print(f"kept: {work}")
        else:
            shutil.rmtree(work)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

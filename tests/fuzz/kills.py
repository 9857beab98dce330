"""Kill commands at random moments and while they write: `python -m tests.fuzz.kills --kills 60`.

After each kill nothing wrong may lie under a final name. After three kills the command runs to its
end: its output must be that of an unbroken run, and no temporary file may be left.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mfm_jax.bundle import Bundle
from mfm_jax.errors import UserError
from mfm_jax.foley.world import World, write_clip
from mfm_jax.inference.record import NAME
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.storage.store import digest_file
from tests.bundles import untrained_bundle
from tests.feature_folder import write_features
from tests.train.small_mapper import SHAPES

ROOT = Path(__file__).parents[2]
IN_A_ROW = 3
CLIPS = 4
UNFINISHED = "unfinished.json"
"""What a data set is going to be; it is renamed when the set is whole."""

State = Mapping[str, str]


@dataclass(frozen=True)
class Work:
    """A command that writes to a folder, and what is compared of it."""

    name: str
    command: Callable[[Path], list[str]]
    state: Callable[[Path], State]


def files_in(folder: Path) -> State:
    """Return the digest of every file under its final name."""
    return {
        str(path.relative_to(folder)): digest_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not _is_temporary(path, folder)
    }


def outputs_in(folder: Path) -> State:
    """Return the digest of every output under its final name, each of which is recorded once.

    The record itself has the times at which the outputs were made. A file may lie there and not be
    recorded yet; it is made again.
    """
    found = files_in(folder)
    if found.pop(NAME, None) is not None:
        recorded = [json.loads(line)["output"] for line in (folder / NAME).open()]
        assert len(recorded) == len(set(recorded)), "an output is recorded twice"
        assert set(recorded) <= found.keys(), "what is recorded is not there"
    return found


def bundle_in(folder: Path) -> State:
    """Return the digests of the arrays of a bundle's mapper, which must be undamaged."""
    try:
        bundle = Bundle.open(folder)
    except UserError:
        return {}
    if "mapper" not in bundle.entries:
        return {}
    assert bundle.damages("mapper") == []
    return {name: listed.sha256 for name, listed in bundle.store("mapper").arrays.items()}


def _is_temporary(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def temporaries(folder: Path) -> list[str]:
    """List temporary files and folders in and beside an output; locks are no such files."""
    found = [name for name in _listed(folder.parent) if name.startswith(".")]
    for _, folders, files in os.walk(folder):  # which bears with what disappears meanwhile
        found += [name for name in (*folders, *files) if name.startswith(".")]
    # A component is written into a folder of its own, which the bundle then names.
    components = [name for name in _listed(folder) if name.startswith("mapper-")]
    if len(components) > 1:
        found += components
    return [name for name in found if not name.endswith(".lock")]


def _listed(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def works(made: Path) -> list[Work]:
    """Make the inputs; return the commands."""
    clips = made / "clips"
    clips.mkdir()
    for seed in range(CLIPS):
        write_clip(World(), seed, clips)
    bundle = untrained_bundle(made / "bundle")
    for part, count in (("train", 20), ("heldout", 9)):
        write_features(bundle, made / "features" / part, count, SHAPES)
    mfm = [sys.executable, "-m", "mfm_jax.cli"]
    export = made / "export"
    subprocess.run(
        [*mfm, "convert", "mapper", str(TINY_BUNDLE), "-o", str(export), "--to", "torch"],
        check=True,
        capture_output=True,
    )
    train = [sys.executable, "train.py", "--config", "tests/train/small_mapper.py"]
    train += ["--set", f"recipe.bundle={made / 'bundle'}", f"recipe.source={made / 'features'}"]
    train += ["steps=40", "save_every=3", "eval_every=20"]
    few = ["--steps", "2", "--batch", "2"]
    return [
        Work(
            "generate",
            lambda out: [*mfm, "generate", str(clips), "-o", str(out), *few],
            outputs_in,
        ),
        Work(
            "extract",
            lambda out: [
                *mfm, "extract", str(clips), "-o", str(out), "--shard", "1", "--batch", "2"
            ],
            files_in,
        ),
        Work(
            "convert to torch",
            lambda out: [
                *mfm, "convert", "mapper", str(TINY_BUNDLE), "-o", str(out), "--to", "torch"
            ],
            files_in,
        ),
        Work(
            "convert from torch",
            lambda out: [*mfm, "convert", "mapper", str(export), "-o", str(out)],
            bundle_in,
        ),
        Work("train", lambda out: [*train, "--workdir", str(out)], bundle_in),
    ]  # fmt: skip


def environment(programs: Path, *, killed: bool) -> dict[str, str]:
    """Return an environment that shares compiled programs, to which killed processes add none."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000000" if killed else "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def run_to_end(work: Work, out: Path, programs: Path) -> float:
    """Run a command to its end; return the seconds it took."""
    began = time.monotonic()
    done = subprocess.run(
        work.command(out),
        cwd=ROOT,
        env=environment(programs, killed=False),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{work.name}: {done.stderr[-2000:]}"
    return time.monotonic() - began


def kill_once(
    work: Work, out: Path, programs: Path, rng: random.Random, seconds: float, *, writing: bool
) -> bool:
    """Start a command and kill it; return whether it was writing a file."""
    process = subprocess.Popen(
        work.command(out),
        cwd=ROOT,
        env=environment(programs, killed=True),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    before = set(temporaries(out))
    until = time.monotonic() + rng.uniform(0.2, 1.0) * seconds
    skip = rng.choice([0, 0, 1, 3])  # how many temporary files are let go
    seen: set[str] = set()
    while process.poll() is None:
        if writing:
            fresh = set(temporaries(out)) - before
            seen |= fresh
            if fresh and len(seen) > skip:
                break
        elif time.monotonic() > until:
            break
        time.sleep(0.001 if writing else 0.02)
    process.kill()
    process.wait()
    return bool(set(temporaries(out)) - before)


def main() -> int:
    """Kill; return 1 if something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", help="one command alone, by its name")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        programs = made / "programs"
        chosen = [w for w in works(made) if args.work in (None, w.name)]
        each = -(-args.kills // len(chosen))
        for work in chosen:
            whole = made / "whole" / work.name
            whole.parent.mkdir(exist_ok=True)
            run_to_end(work, whole, programs)  # compiles
            shutil.rmtree(whole)
            seconds, expected = run_to_end(work, whole, programs), work.state(whole)
            assert expected, f"{work.name} leaves nothing"
            out = made / "broken" / work.name / "out"
            out.parent.mkdir(parents=True)
            struck = 0
            for number in range(each):
                writing = number % 2 == 1
                struck += kill_once(work, out, programs, rng, seconds, writing=writing)
                faults += _wrong(work, out, expected)
                if number % IN_A_ROW == IN_A_ROW - 1 or number == each - 1:
                    if work.name != "convert to torch" or not out.exists():  # it never overwrites
                        run_to_end(work, out, programs)
                    if work.state(out) != expected:
                        faults.append(f"{work.name}: after the rerun it differs")
                    if left := temporaries(out):
                        faults.append(f"{work.name}: after the rerun there are {left}")
                    shutil.rmtree(out)
            print(f"{work.name}: {each} kills, {struck} while a file was written", flush=True)
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults")
    return bool(faults)


def _wrong(work: Work, out: Path, expected: State) -> list[str]:
    """Return what lies under a final name and should not."""
    if not out.exists():
        return []
    if work.state is bundle_in:
        found = bundle_in(out)
        partial = work.name != "train" and found not in ({}, expected)
        return [f"{work.name}: half a bundle"] if partial else []
    return [
        f"{work.name}: {name} is wrong"
        for name, digest in work.state(out).items()
        if expected.get(name) != digest and name != UNFINISHED
    ]


if __name__ == "__main__":
    sys.exit(main())

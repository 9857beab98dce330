"""Where the time of a run with kills goes: `python -m benchmarks.goodput`.

Trains the tiny mapper on drawn features, on the CPU, in a process that is killed (SIGKILL)
`--kills` times while it steps and started again each time. Prints the seconds that the run booked
by phase, and checks their sum against a clock outside of it, within a hundredth.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mfm_jax.train.goodput import PHASES
from tests.bundles import untrained_bundle
from tests.feature_folder import write_features

ROOT = Path(__file__).parents[1]
CLIPS = {"train": 64, "heldout": 8}
STEPS = 1500
SETTINGS = ["batch=16", "save_every=100", "eval_every=500", "log_every=10", f"steps={STEPS}"]


def steps_of(workdir: Path) -> int:
    """Return the step of the last report; 0 before the first."""
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def train(folder: Path, kills: int) -> float:
    """Train until the end; return the seconds from the first start on until the summary."""
    workdir = folder / "run"
    words = [sys.executable, "train.py", "--config", "tiny", "--workdir", str(workdir), "--set"]
    words += [f"recipe.bundle={folder / 'bundle'}", f"recipe.source={folder / 'features'}"]
    began = time.time()
    for number in range(kills + 1):
        last = steps_of(workdir)
        process = subprocess.Popen(
            [*words, *SETTINGS], cwd=ROOT, stdout=subprocess.DEVNULL,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )  # fmt: skip
        due = last + random.randint(STEPS // kills // 2, STEPS // kills) if kills else STEPS
        while process.poll() is None:
            if number < kills and steps_of(workdir) >= due:
                process.kill()
                process.wait()
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit("the run has failed")
    return (workdir / "summary.json").stat().st_mtime - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = untrained_bundle(folder / "bundle")
        for part, clips in CLIPS.items():
            write_features(bundle, folder / "features" / part, clips)
        outside = train(folder, args.kills)
        found = json.loads((folder / "run" / "summary.json").read_text())["goodput"]
    print(f"{STEPS} steps, {args.kills} kills: goodput {found['goodput']:.2f}")
    print("| seconds | share | for |\n| --- | --- | --- |")
    for phase, seconds in found["seconds"].items():
        print(f"| {seconds:.1f} | {seconds / found['wall_seconds']:.1%} | {PHASES[phase]} |")
    print(f"| {found['wall_seconds']:.1f} | 100% | all; {outside:.1f} s by a clock outside |")
    if abs(found["wall_seconds"] - outside) > 0.01 * outside:
        raise SystemExit("they differ by more than a hundredth")


if __name__ == "__main__":
    main()

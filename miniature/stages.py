"""Train every network of the miniature, in an order that each finds what it learns from."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jax import numpy as jnp

from mfm_jax.bundle import Bundle, write_bundle
from mfm_jax.errors import UserError
from mfm_jax.storage.files import new_folder, write_text

ROOT = Path(__file__).parents[1]


class StageError(UserError):
    """A stage did not end well; the message names its log."""


@dataclass(frozen=True)
class Stage:
    """One run of `train.py`, after the stages that it needs."""

    name: str
    config: str  # file of configs/
    needs: tuple[str, ...] = ()
    # Fields of the recipe and the folders of the stages' workdir that they name.
    places: tuple[tuple[str, str], ...] = (
        ("bundle", "bundle"), ("clips", "clips"), ("media", "media")
    )  # fmt: skip
    changes: tuple[str, ...] = ()  # of the config's recipe, as `field=value`


FEATURES = (("bundle", "bundle"), ("clips", "clips"))
"""Of a stage that learns from features, which lie in its own workdir."""
SECOND = (("bundle", "mapper"), ("clips", "clips"), ("features", "mapper/features"))
"""Of the second stage of the mapper, which goes on from what the first one left."""

BASE = (
    Stage("audiomae", "tiny_audiomae"),
    Stage("vae", "tiny_vae"),
    Stage("unet", "tiny_unet", ("audiomae", "vae"), FEATURES),
    Stage("timechat", "tiny_timechat"),
    Stage("cavp", "tiny_cavp"),
    Stage("vocoder", "tiny_vocoder"),
    Stage("listener", "tiny_listener"),
    Stage(
        "mapper",
        "tiny",
        ("audiomae", "vae", "unet", "timechat", "cavp", "vocoder", "listener"),
        FEATURES,
    ),
    Stage("stage2", "tiny_stage2", ("mapper",), SECOND),
)
"""The longest first among those that are free to begin."""

SOUND = ("audiomae", "vae", "unet", "vocoder", "listener")
"""Networks of the base grade that the hard one uses as they are."""

HARD = (
    Stage("cavp", "hard_cavp"),
    Stage("timechat", "hard_timechat"),
    Stage("mapper", "hard", ("cavp", "timechat"), FEATURES),
    Stage("stage2", "hard_stage2", ("mapper",), SECOND),
)
"""On the hard grade of the world; the networks that make sound are those of a base bundle."""

HARD_FAST = (
    Stage("cavp", "hard_fast_cavp"),
    Stage("timechat", "hard_timechat", changes=("spec.cavp_fps=12.5",)),  # the media are CAVP's
    Stage("mapper", "hard_fast", ("cavp", "timechat"), FEATURES),
    Stage("stage2", "hard_stage2", ("mapper",), SECOND),
)
"""The same with CAVP at 12.5 frames a second instead of 4."""


def share_sound(base: Path, bundle: Path) -> None:
    """Let `bundle` begin as a copy of `base`, whose networks that make sound it keeps.

    Raises:
        StageError: it began as a copy of another one.
    """
    if not bundle.exists():
        with new_folder(bundle) as folder:
            shutil.copytree(base, folder, dirs_exist_ok=True)
        return
    entries, wanted = Bundle.open(bundle).entries, Bundle.open(base).entries
    if others := [n for n in SOUND if entries[n].checksum != wanted[n].checksum]:
        raise StageError(
            f"{bundle} has another {', '.join(others)} than {base}: remove {bundle.parent} and "
            "train anew"
        )


def run_stages(workdir: Path, stages: Sequence[Stage], *, jobs: int) -> None:
    """Run what is not done yet, `jobs` at a time, each on a share of the cores.

    A stage that was stopped goes on from its checkpoint. What each reported and how long it took
    is in `STAGE/done.json`; its output in `STAGE.log`.

    Raises:
        StageError: a stage failed; those that do not need it are finished first.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    waiting = [stage for stage in stages if not _done(workdir, stage).exists()]
    finished = {stage.name for stage in stages} - {stage.name for stage in waiting}
    running: dict[Future, Stage] = {}
    failed: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            ready = [s for s in waiting if finished >= set(s.needs)]
            for stage in ready[: jobs - len(running)]:
                waiting.remove(stage)
                print(f"{stage.name}: begins, see {workdir / stage.name}.log", flush=True)
                running[pool.submit(_run, workdir, stage, jobs)] = stage
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage = running.pop(future)
                print(f"{stage.name}: {future.result()}", flush=True)
                (finished.add if _done(workdir, stage).exists() else failed.append)(stage.name)
    if failed:
        logs = ", ".join(str(workdir / f"{name}.log") for name in failed)
        raise StageError(f"{', '.join(failed)} failed, see the end of {logs}")


def _done(workdir: Path, stage: Stage) -> Path:
    return workdir / stage.name / "done.json"


def command(workdir: Path, stage: Stage) -> list[str]:
    """What trains a stage; its networks, clips and caches lie in folders of `workdir`."""
    # What is written into the bundle about its making names no folder of this machine.
    top = Path(os.path.relpath(workdir, ROOT))
    places = [f"--config.recipe.{field}={top / folder}" for field, folder in stage.places]
    changes = [f"--config.recipe.{change}" for change in stage.changes]
    config = f"configs/{stage.config}.py"
    return ["train.py", "--config", config, "--workdir", str(top / stage.name), *places, *changes]


def _run(workdir: Path, stage: Stage, jobs: int) -> str:
    """Train one stage to its end; what to say about it."""
    cores = max(1, (os.cpu_count() or 1) // jobs)
    environment = dict(os.environ, OMP_NUM_THREADS=str(cores))
    if cores == 1:
        one = "--xla_cpu_multi_thread_eigen=false"
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {one}"
    with (workdir / f"{stage.name}.log").open("a") as log:
        code = subprocess.run(
            [sys.executable, *command(workdir, stage)],
            cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
        ).returncode  # fmt: skip
    if code:
        return f"failed with exit code {code}"
    return settle(workdir, stage)


def settle(workdir: Path, stage: Stage) -> str:
    """Write `STAGE/done.json` if a run that ended well is at its end; what to say about it.

    A run that a signal stopped ends well, too, but goes on when the stages are run again.
    """
    done = summary(workdir, stage)
    if done["steps"] < json.loads((workdir / stage.name / "config.json").read_text())["steps"]:
        return f"was stopped at step {done['steps']}"
    write_text(_done(workdir, stage), json.dumps(done) + "\n")
    values = (f"{name} {value:.4g}" for name, value in done["heldout"].items())
    return f"{done['steps']} steps in {done['minutes']:.1f} min, {', '.join(values)}"


def summary(workdir: Path, stage: Stage) -> dict[str, Any]:
    """What trained a finished stage, for how long, and what its last evaluation said."""
    folder = workdir / stage.name
    every = json.loads((folder / "config.json").read_text())["log"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # Counted by steps, since a run may have been stopped and gone on.
    minutes = sum(line.get("seconds", 0) for line in lines) * every / 60
    prefix = "heldout_"
    last = lines[-1]
    return {
        "command": " ".join(["python", *command(workdir, stage)]),
        "steps": last["step"],
        "minutes": minutes,
        "heldout": {k.removeprefix(prefix): v for k, v in last.items() if k.startswith(prefix)},
    }


def write_report(
    workdir: Path, stages: Sequence[Stage], results: Path, prefix: str, *, command: str
) -> None:
    """Put `training.json`, and the config and all metrics of each stage, into `results`."""
    logs = results / f"{prefix}training"
    logs.mkdir(parents=True, exist_ok=True)
    rows = []
    for stage in stages:
        done = json.loads(_done(workdir, stage).read_text())
        for kept, name in (
            ("config.json", f"{stage.name}.json"),
            ("metrics.jsonl", f"{stage.name}.jsonl"),
        ):
            shutil.copyfile(workdir / stage.name / kept, logs / name)
        shown = (f"{name.replace('_', ' ')} {value:.3g}" for name, value in done["heldout"].items())
        rows.append([stage.name, done["steps"], round(done["minutes"], 1), ", ".join(shown)])
    columns = ["network", "steps", "minutes", "held-out clips"]
    table = {"title": "Training", "columns": columns, "rows": rows}
    write_text(
        results / f"{prefix}training.json",
        json.dumps({"command": command, "tables": [table]}, indent=1) + "\n",
    )


def pack(trained: Path, target: Path) -> None:
    """Write the float16 copy of a trained bundle to `target`, in place of what is there."""
    bundle = Bundle.open(trained)
    components = {
        name: (entry.config, bundle.load(name), entry.source)
        for name, entry in bundle.entries.items()
    }
    with new_folder(target.with_name(f"{target.name}.new")) as folder:
        write_bundle(folder, components, settings=bundle.settings, dtype=jnp.float16)
    shutil.rmtree(target, ignore_errors=True)
    target.with_name(f"{target.name}.new").rename(target)

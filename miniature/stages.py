"""Trains every network of the miniature, each after the networks that it depends on."""

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
from mfm_jax.runtime import signals
from mfm_jax.storage.files import new_folder, write_text


class StageError(UserError):
    """A stage failed; the message names its log."""


@dataclass(frozen=True)
class Stage:
    """One run of `mfm train`, which starts when the stages that it needs are done."""

    name: str
    config: str  # name in configs/
    needs: tuple[str, ...] = ()
    # Fields of the recipe that name folders, and the folders, relative to the stages' workdir.
    folders: tuple[tuple[str, str], ...] = (
        ("bundle", "bundle"), ("source.folder", "")
    )  # fmt: skip
    overrides: tuple[str, ...] = ()  # of the recipe, as `field=value`


STAGE2_FOLDERS = (("bundle", "mapper"), ("source.path", "mapper/features"))
"""Folders of the mapper's second stage, which starts from the bundle of the first one."""

SYNC_FOLDERS = (("bundle", "stage2"), ("source.path", "mapper/features"))
"""Folders of the adapter, which is trained behind both stages of the mapper."""

BASE = (
    Stage("audiomae", "tiny_audiomae"),
    Stage("vae", "tiny_vae"),
    Stage("unet", "tiny_unet", ("audiomae", "vae")),
    Stage("timechat", "tiny_timechat"),
    Stage("cavp", "tiny_cavp"),
    Stage("vocoder", "tiny_vocoder"),
    Stage("listener", "tiny_listener"),
    Stage(
        "mapper",
        "tiny",
        ("audiomae", "vae", "unet", "timechat", "cavp", "vocoder", "listener"),
    ),
    Stage("stage2", "tiny_stage2", ("mapper",), STAGE2_FOLDERS),
    Stage("sync", "tiny_sync", ("stage2",), SYNC_FOLDERS),
)
"""Stages of the base grade; among those that can run at the same time, the longest are first."""

SOUND = ("audiomae", "vae", "unet", "vocoder", "listener")
"""Networks of the base grade that the hard grade uses unchanged."""

HARD = (
    Stage("cavp", "hard_cavp"),
    Stage("timechat", "hard_timechat"),
    Stage("mapper", "hard", ("cavp", "timechat")),
    Stage("stage2", "hard_stage2", ("mapper",), STAGE2_FOLDERS),
)
"""Stages of the hard grade; the networks that make sound come from a bundle of the base grade."""

HARD_FAST = (
    Stage("cavp", "hard_fast_cavp"),
    Stage("timechat", "hard_timechat", overrides=("spec.cavp_fps=12.5",)),  # shares CAVP's clips
    Stage("mapper", "hard_fast", ("cavp", "timechat")),
    Stage("stage2", "hard_stage2", ("mapper",), STAGE2_FOLDERS),
)
"""Stages of the hard grade with CAVP at 12.5 frames per second instead of 4."""


def copy_sound_networks(base: Path, bundle: Path, names: Sequence[str] = SOUND) -> None:
    """Copy `base` to `bundle` unless `bundle` exists, and check that both make sound alike.

    Args:
        names: networks that have to be the same.

    Raises:
        StageError: `bundle` has others.
    """
    if not bundle.exists():
        with new_folder(bundle) as folder:
            shutil.copytree(base, folder, dirs_exist_ok=True)
        return
    entries, wanted = Bundle.open(bundle).entries, Bundle.open(base).entries
    if others := [n for n in names if entries[n].checksum != wanted[n].checksum]:
        raise StageError(
            f"{bundle} has another {', '.join(others)} than {base}: remove {bundle.parent} and "
            "train again"
        )


def run_stages(workdir: Path, stages: Sequence[Stage], *, jobs: int) -> None:
    """Run the stages that are not done, `jobs` at a time, each on an equal share of the cores.

    A stage that was stopped continues from its checkpoint. `STAGE/done.json` has the final metrics
    and the time of a stage, `STAGE.log` its output.

    Raises:
        StageError: a stage failed. Stages that do not depend on it are finished first.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    waiting = [stage for stage in stages if not _done_file(workdir, stage).exists()]
    finished = {stage.name for stage in stages} - {stage.name for stage in waiting}
    running: dict[Future, Stage] = {}
    failed: list[str] = []
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            ready = [s for s in waiting if finished >= set(s.needs)]
            for stage in ready[: jobs - len(running)]:
                waiting.remove(stage)
                print(f"{stage.name}: started, see {workdir / stage.name}.log", flush=True)
                running[pool.submit(_run, workdir, stage, jobs)] = stage
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                stage = running.pop(future)
                print(f"{stage.name}: {future.result()}", flush=True)
                (finished.add if _done_file(workdir, stage).exists() else failed.append)(stage.name)
    if failed:
        logs = ", ".join(str(workdir / f"{name}.log") for name in failed)
        raise StageError(f"{', '.join(failed)} failed, see the end of {logs}")


def _done_file(workdir: Path, stage: Stage) -> Path:
    return workdir / stage.name / "done.json"


def command(workdir: Path, stage: Stage) -> list[str]:
    """Return the command that trains a stage in a folder of `workdir`."""
    # The bundle records the command, so its paths are relative.
    top = Path(os.path.relpath(workdir))
    folders = [f"recipe.{field}={top / folder}" for field, folder in stage.folders]
    overrides = [f"recipe.{override}" for override in stage.overrides]
    words = ["mfm", "train", "--config", stage.config, "--workdir", str(top / stage.name)]
    return [*words, "--set", *folders, *overrides]


def _run(workdir: Path, stage: Stage, jobs: int) -> str:
    """Train one stage and return a line about how it ended."""
    cores = max(1, (os.cpu_count() or 1) // jobs)
    environment = dict(os.environ, OMP_NUM_THREADS=str(cores))
    if cores == 1:
        one = "--xla_cpu_multi_thread_eigen=false"
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {one}"
    with (
        (workdir / f"{stage.name}.log").open("a") as log,
        subprocess.Popen(
            [sys.executable, "-m", "mfm_jax.cli", *command(workdir, stage)[1:]],
            env=environment, stdout=log, stderr=subprocess.STDOUT,
        ) as process,
        signals.undone(process.terminate),
    ):  # fmt: skip
        code = process.wait()
    if code:
        return f"failed with exit code {code}"
    return record_completion(workdir, stage)


def record_completion(workdir: Path, stage: Stage) -> str:
    """Write `STAGE/done.json` if a run reached its last step; return a line about it.

    A run that a signal stopped exits without error as well. It continues when the stages are run
    again.
    """
    done = summary(workdir, stage)
    if done["steps"] < json.loads((workdir / stage.name / "config.json").read_text())["steps"]:
        return f"was stopped at step {done['steps']}"
    write_text(_done_file(workdir, stage), json.dumps(done) + "\n")
    values = (f"{name} {value:.4g}" for name, value in done["heldout"].items())
    return f"{done['steps']} steps in {done['minutes']:.1f} min, {', '.join(values)}"


def summary(workdir: Path, stage: Stage) -> dict[str, Any]:
    """Return the command of a finished stage, its time and its final metrics."""
    folder = workdir / stage.name
    every = json.loads((folder / "config.json").read_text())["log_every"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    # Step times are summed, since a run may have been interrupted.
    minutes = sum(line.get("seconds", 0) for line in lines) * every / 60
    prefix = "heldout_"
    last = lines[-1]
    return {
        "command": " ".join(command(workdir, stage)),
        "steps": last["step"],
        "minutes": minutes,
        "heldout": {k.removeprefix(prefix): v for k, v in last.items() if k.startswith(prefix)},
    }


def write_report(
    workdir: Path, stages: Sequence[Stage], results: Path, prefix: str, *, command: str
) -> None:
    """Write `training.json`, and the config and all metrics of each stage, to `results`."""
    keep_logs(workdir, results / f"{prefix}training", [stage.name for stage in stages])
    write_table(workdir, stages, results, prefix, command=command)


def keep_logs(workdir: Path, results: Path, names: Sequence[str] = ()) -> None:
    """Copy the config and the metrics of trainings in folders of `workdir` to `results`.

    Args:
        names: of the folders; all that are there if not given.
    """
    results.mkdir(parents=True, exist_ok=True)
    for name in names or [file.parent.name for file in workdir.glob("*/config.json")]:
        shutil.copyfile(workdir / name / "config.json", results / f"{name}.json")
        shutil.copyfile(workdir / name / "metrics.jsonl", results / f"{name}.jsonl")


def write_table(
    workdir: Path, stages: Sequence[Stage], results: Path, prefix: str, *, command: str
) -> None:
    """Write `training.json`, a table of the stages, to `results`."""
    rows = []
    for stage in stages:
        done = json.loads(_done_file(workdir, stage).read_text())
        shown = (f"{name.replace('_', ' ')} {value:.3g}" for name, value in done["heldout"].items())
        rows.append([stage.name, done["steps"], round(done["minutes"], 1), ", ".join(shown)])
    columns = ["network", "steps", "minutes", "held-out clips"]
    table = {"title": "Training", "columns": columns, "rows": rows}
    write_text(
        results / f"{prefix}training.json",
        json.dumps({"command": command, "tables": [table]}, indent=1) + "\n",
    )


def pack(trained: Path, target: Path) -> None:
    """Write a float16 copy of a trained bundle to `target`, replacing what is there."""
    bundle = Bundle.open(trained)
    components = {
        name: (entry.config, bundle.load(name), entry.source)
        for name, entry in bundle.entries.items()
    }
    with new_folder(target.with_name(f"{target.name}.new")) as folder:
        write_bundle(folder, components, settings=bundle.settings, dtype=jnp.float16)
    shutil.rmtree(target, ignore_errors=True)
    target.with_name(f"{target.name}.new").rename(target)

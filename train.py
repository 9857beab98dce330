"""Train one network: `python train.py --config configs/NAME.py --workdir DIR [--set a.b=v ...]`.

A config says which recipe is trained and with what numbers; any field can be set from the command
line. A run that is started again in the same DIR goes on from its newest usable checkpoint, and
ends with the same weights as one that was never stopped.
"""

import sys

from mfm_jax.runtime import signals

if __name__ == "__main__":
    signals.catch("python train.py")  # before the other imports, which take seconds

import signal
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from mfm_jax.cli.train import main as run_command_line
from mfm_jax.data.loader import batches, clips_of
from mfm_jax.errors import SettingError
from mfm_jax.runtime import distributed
from mfm_jax.runtime.sharding import Layout, fetch, make_mesh
from mfm_jax.storage.checkpoints import Checkpoints
from mfm_jax.storage.files import report_full_disk
from mfm_jax.storage.weights import initialise, with_weights
from mfm_jax.train.goodput import Goodput
from mfm_jax.train.log import Metrics
from mfm_jax.train.recipe import TrainConfig, TrainSetup
from mfm_jax.train.speed import Profile, StepTimer
from mfm_jax.train.step import TrainState
from mfm_jax.train.stop import Stop
from mfm_jax.train.workdir import CHECKPOINTS, claimed, record, tell


def train(
    config: TrainConfig,
    workdir: Path,
    command: str,
    *,
    profile: int = 0,
    began: float | None = None,
) -> int:
    """Train to the end, put the network into its bundle, and return the exit code.

    All processes of a run call this together, with a `workdir` that all of them see.

    Args:
        command: what started the run, for the bundle's provenance.
        profile: steps to trace.
        began: from when on time is booked, as unix time; now by default.
    """
    config.recipe.check(workdir)
    with (
        report_full_disk(workdir),
        claimed(workdir, config) as changes,
        closing(Goodput(workdir, began)) as goodput,
    ):
        return run(config, workdir, command, changes, profile, goodput)


def run(
    config: TrainConfig,
    workdir: Path,
    command: str,
    changes: Mapping[str, Any],
    profile: int,
    goodput: Goodput,
) -> int:
    """Train in a folder that is claimed; `changes` are those of the config since the run began."""
    recipe = config.recipe
    layout = Layout(make_mesh(config.mesh))
    share = layout.share(config.batch)
    setup = TrainSetup.of(config, layout)
    step = setup.step()
    counted = setup.counted_step(step)

    # The newest checkpoint that can be read, else the one before, else a fresh start.
    checkpoints = Checkpoints(workdir / CHECKPOINTS, keep=config.keep, say=distributed.say)
    with goodput.on("restore"):
        restored = checkpoints.restore(setup.abstract_state().items())
    dataset, heldout = recipe.prepare(workdir)
    if restored is None:
        module = initialise(recipe.build, config.seed, shapes_only=recipe.loaded)
        state = setup.init_state(recipe.warm_start(module, dataset))
    else:
        state = TrainState.of(restored)
    if jax.process_index() == 0:
        record(workdir, config)
    start = int(state.step)
    goodput.resume(start)
    steps = max(start, config.steps)
    for line in tell(changes, config, start) if start else ():
        distributed.say(line)
    data = batches(
        dataset,
        batch=config.batch, seed=config.seed, train=True,
        transform=recipe.transform, first=start, share=share,
    )  # fmt: skip

    def clips(step: int) -> list[str]:
        numbers = clips_of(len(dataset), batch=config.batch, seed=config.seed, number=step - 1)
        return [dataset.id_of(number) for number in numbers]

    timer = StepTimer.of(config.batch, jax.devices())
    with (
        checkpoints,
        Stop(lambda: checkpoints.complete, distributed.say) as stop,
        jax.set_mesh(layout.mesh),
        closing(
            Metrics(
                workdir,
                timer,
                goodput,
                start=start,
                steps=steps,
                every=config.log_every,
                clips=clips,
            )
        ) as metrics,
        closing(Profile(workdir / "profile", start=start, count=profile)) as trace,
    ):
        goodput.enter("step")
        for done in range(start, steps + 1):
            last, score = done == steps, None
            if last or done % config.eval_every == 0:
                metrics.flush()
                with goodput.on("evaluation"):
                    scores = recipe.evaluate(setup.averaged_module(state), heldout, config.batch)
                metrics.write(done, {f"heldout_{name}": value for name, value in scores.items()})
                score = score_of(scores, config.best)
            if config.sample_every and (last or done % config.sample_every == 0):
                metrics.flush()
                with goodput.on("evaluation"):
                    metrics.sounds(done, recipe.sounds(setup.averaged_module(state), heldout))
            stopped = stop.at(done)
            due = done % config.save_every == 0 or checkpoints.would_be_best(score)
            if last or stopped or (due and done > start):
                metrics.flush()
                with goodput.on("save"):
                    checkpoints.save(done, state.items(), score=score)
                goodput.write(done)
            if last or stopped:
                break
            if trace.due(done):
                metrics.flush()
                trace.toggle()
            timer.start()
            with goodput.on("input"):
                batch = layout.put_batch(next(data), config.batch)
            timer.count_flops(counted, state, batch)
            with (
                jax.profiler.StepTraceAnnotation("train", step_num=done + 1),
                jax.transfer_guard_host_to_device("disallow"),
                jax.transfer_guard_device_to_host("disallow"),
            ):
                state, measured = step(state, batch)
            metrics.add(done + 1, measured)
        with goodput.on("save"):
            if not stopped:
                state = best_state(checkpoints, state)
            checkpoints.close()

    goodput.enter("finish")
    if stopped:
        goodput.write(done)
        distributed.say(f"stopped at step {done}: the same command continues from there")
        return 128 + (stop.signal or signal.SIGTERM)  # JAX takes the signals of several processes
    finish(setup, state, metrics, workdir, command)
    goodput.write(done)
    return 0


def best_state(checkpoints: Checkpoints, state: TrainState) -> TrainState:
    """Return the state with the weights of the best checkpoint, if one was chosen and is whole."""
    found = checkpoints.restore_best(state.averaged_items())
    if found is None and checkpoints.best is not None:
        distributed.say("the run ends with its last weights")
    return state._replace(**(found or {}))


def finish(
    setup: TrainSetup, state: TrainState, metrics: Metrics, workdir: Path, command: str
) -> None:
    """Put the trained network into its bundle and report; all processes call this together."""
    weights = fetch(state.weights(averaged=True))
    if jax.process_index() == 0:
        module = with_weights(setup.abstract_module, jax.device_put(weights))
        bundle = setup.config.recipe.finish(module, workdir, command)
        metrics.summarise(bundle, setup.config.best)
    multihost_utils.sync_global_devices("finished")


def score_of(scores: Mapping[str, float], name: str) -> float | None:
    """Return the metric that chooses the best checkpoint, if `name` is set.

    Raises:
        SettingError: the evaluation has no such metric.
    """
    if name and name not in scores:
        raise SettingError(f"best: the evaluation has no {name!r}; it has {', '.join(scores)}")
    return scores[name] if name else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, which is that of `mfm train`, and train; return the exit code."""
    return run_command_line(train, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())

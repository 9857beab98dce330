"""Train one network: `python train.py --config configs/NAME.py --workdir DIR [--config.a.b=v ...]`.

A config says which recipe is trained and with what numbers; any field can be set from the command
line. A run that is started again in the same DIR goes on from its newest usable checkpoint, and
ends with the same weights as one that was never stopped.
"""

import argparse
import json
import logging
import runpy
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from mfm_jax.bundle import BundleError
from mfm_jax.checkpoints import CheckpointError, Checkpoints
from mfm_jax.data.clips import DataError
from mfm_jax.data.foley_world import WorldError
from mfm_jax.data.loader import batches
from mfm_jax.paths import MediaError, write_text
from mfm_jax.settings import SettingError, override, to_json
from mfm_jax.train.log import Metrics, NonFinite
from mfm_jax.train.optimizer import build_optimizer, factors
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.step import TrainState, begin, make_step, trainable
from mfm_jax.weights import abstract, initialise, with_weights

KNOWN = (
    BundleError, CheckpointError, DataError, MediaError, NonFinite, SettingError, WorldError
)  # fmt: skip
"""Errors that a user can cause; each is one line that says what to do."""


def train(config: TrainConfig, workdir: Path, command: str) -> int:
    """Train to the end and put the network into its bundle; returns the exit code."""
    recipe = config.recipe
    skeleton = abstract(recipe.build)
    factor = factors(config.optimizer.rates, trainable(skeleton))
    write_text(workdir / "config.json", json.dumps(to_json(config), indent=1) + "\n")

    source, heldout = recipe.prepare(workdir)
    data = batches(
        source, batch=config.batch, seed=config.seed, train=True, transform=recipe.transform
    )
    tx = build_optimizer(config.optimizer, config.steps, factor)
    step = make_step(skeleton, recipe.loss, tx, ema=config.ema)

    def fresh() -> TrainState:
        module = recipe.begin(initialise(recipe.build, config.seed), source)
        return begin(module, tx, factor, ema=config.ema, seed=config.seed)

    # The newest checkpoint that can be read, else the one before, else a fresh start.
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.keep)
    state = fresh()
    restored = checkpoints.restore(state.items(), data)
    state = state if restored is None else TrainState.of(restored)
    start = int(state.step)

    stop = Stop()
    metrics = Metrics(workdir / "metrics.jsonl", every=config.log)
    for done in range(start, max(start, config.steps) + 1):
        last = done >= config.steps
        if last or done % config.evaluate == 0:
            metrics.settle()
            module = with_weights(skeleton, state.weights(averaged=True))
            scores = recipe.evaluate(module, heldout, config.batch)
            metrics.write(done, {f"heldout_{name}": value for name, value in scores.items()})
        if last or stop.signal or (done % config.save == 0 and done > start):
            metrics.settle()
            checkpoints.save(done, state.items(), data)
        if last or stop.signal:
            break
        batch = jax.device_put(next(data))
        with jax.transfer_guard("disallow"):
            state, measured = step(state, batch)
        metrics.add(done + 1, measured)
    checkpoints.close()

    if stop.signal:
        print(f"stopped at step {done}: the same command goes on from there", flush=True)
        return 130 if stop.signal == signal.SIGINT else 0
    recipe.finish(with_weights(skeleton, state.weights(averaged=True)), workdir, command)
    return 0


class Stop:
    """Turns the first SIGTERM or SIGINT into a wish to stop after the current step."""

    def __init__(self) -> None:
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, number: int, _) -> None:
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second one stops at once


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and train; returns the exit code."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every file it opens
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="train.py",
        description="Train one network.",
        epilog="Any field of the config can be set: --config.optimizer.rate=1e-3",
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, required=True, help="a file of configs/")
    parser.add_argument("--workdir", type=Path, required=True, help="checkpoints and metrics")
    args, others = parser.parse_known_args(arguments)
    for other in others:
        if not other.startswith("--config.") or "=" not in other:
            parser.error(f"{other!r} is not understood: fields are set with --config.a.b=value")
    if not args.config.is_file():
        parser.error(f"there is no config {args.config}")
    command = shlex.join(["python", "train.py", *arguments])
    try:
        config = runpy.run_path(str(args.config))["get_config"]()
        config = override(config, (other.removeprefix("--config.") for other in others))
        return train(config, args.workdir, command)
    except KNOWN as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1 if isinstance(error, NonFinite) else 2


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks.steps --config configs/base.py`: time the training step of a config.

It is the step of `train.py`, with random weights and one batch of noise, on the devices of this
machine. `--released` uses the sizes of the released networks instead of a bundle.
"""

import argparse
import runpy
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import jax
from jax import numpy as jnp

from benchmarks.hardware import hardware
from mfm_jax.cost import flops
from mfm_jax.cost.chips import peak_flops
from mfm_jax.plan.released import write_released
from mfm_jax.runtime.config import override
from mfm_jax.runtime.memory import keep_freed_memory
from mfm_jax.runtime.sharding import Layout, make_mesh
from mfm_jax.storage.weights import initialise
from mfm_jax.train.recipe import TrainConfig, TrainSetup
from mfm_jax.train.speed import peak_memory
from mfm_jax.train.step import Batch


@dataclass(frozen=True)
class Measured:
    """Times and operations of a training step."""

    clips: int
    compiling: float  # seconds to the end of the first step
    seconds: float  # of a later step
    operations: int  # of all devices, without recomputation


def random_batch(config: TrainConfig) -> Batch:
    """Return a batch of noise."""
    keys = jax.random.split(jax.random.key(0), len(config.recipe.element_spec()))
    return {
        name: jax.random.normal(key, (config.batch, *spec.shape)).astype(spec.dtype)
        for key, (name, spec) in zip(keys, config.recipe.element_spec().items(), strict=True)
    }


def measure(config: TrainConfig, *, rounds: int, steps: int) -> Measured:
    """Time the step: the median of `rounds`, each of `steps` in a row."""
    layout = Layout(make_mesh(config.mesh))
    setup = TrainSetup.of(config, layout)
    with jax.set_mesh(layout.mesh):
        step = setup.step()
        once = setup.step(replace(config.compute, remat="none"))
        state = setup.init_state(initialise(config.recipe.build, 0))
        batch = jax.device_put(random_batch(config), layout.batch(config.batch))
        operations = flops.count_flops(once, state, batch)
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        compiling, spent = time.perf_counter() - start, []
        for _ in range(1 + rounds):  # the first round warms up
            start = time.perf_counter()
            for _ in range(steps):
                state, metrics = step(state, batch)
            if not jnp.isfinite(metrics["loss"]):
                raise SystemExit("the loss is not finite")
            spent.append((time.perf_counter() - start) / steps)
    return Measured(config.batch, compiling, statistics.median(spent[1:]), operations)


def main() -> None:
    """Print a line per batch size."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.steps", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="a file of configs/")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--released", action="store_true", help="the released sizes: no bundle")
    parser.add_argument("--batch", type=int, nargs="+", help="clips in a step; default: config's")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds")
    parser.add_argument("--steps", type=int, default=10, help="steps in a round")
    args = parser.parse_args()
    keep_freed_memory()
    config = override(runpy.run_path(str(args.config))["get_config"](), args.set)
    kind, devices = jax.devices()[0].device_kind, len(jax.devices())
    peak = peak_flops(kind)
    print(f"{hardware(Path())}; {devices} x {kind}; jax {jax.__version__}; {args.config}")
    print("clips  compile s       ms  clips/s  TFLOP/step  TFLOP/s     MFU  peak GB", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if args.released:
            bundle = str(write_released(Path(folder) / "bundle"))
            config = replace(config, recipe=replace(config.recipe, bundle=bundle))
        for clips in args.batch or [config.batch]:
            found = measure(replace(config, batch=clips), rounds=args.rounds, steps=args.steps)
            rate, memory = found.operations / found.seconds / devices, peak_memory()
            print(
                f"{clips:5}  {found.compiling:9.1f}  {1e3 * found.seconds:7.1f}  "
                f"{clips / found.seconds:7.0f}  {found.operations / 1e12:10.2f}  "
                f"{rate / 1e12:7.1f}  {'' if peak is None else format(rate / peak, '.1%'):>6}  "
                f"{'' if memory is None else format(memory / 1e9, '.1f'):>7}",
                flush=True,
            )


if __name__ == "__main__":
    main()

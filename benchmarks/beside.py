"""Runs a network of ours and PyTorch's by turns, on one device, and tells how long each takes."""

import argparse
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import torch

from benchmarks.hardware import hardware
from benchmarks.sizes import SIZES, Sizes
from mfm_jax.bundle import COMPONENTS
from mfm_jax.cost import flops
from mfm_jax.cost.chips import peak_flops
from mfm_jax.runtime.memory import keep_freed_memory
from mfm_jax.storage.weights import cast, initialise
from mfm_jax.train.speed import peak_memory
from mfm_jax.typing import Float

N = TypeVar("N", bound=torch.nn.Module)

TORCH = ("eager", "compile")
"""How PyTorch runs its networks."""

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Setting:
    """The sizes, precision and batch that both sides are measured with."""

    sizes: Sizes
    precision: str  # of weights and arithmetic
    batch: int  # clips at once
    ways: tuple[str, ...]  # of `TORCH`
    part: bool  # a part of the ViT, whose time is multiplied

    @property
    def device(self) -> torch.device:
        """PyTorch's device: of the kind that JAX computes on."""
        return torch.device("cuda" if jax.default_backend() == "gpu" else "cpu")

    @property
    def dtype(self) -> torch.dtype:
        """PyTorch's name of the precision."""
        return getattr(torch, self.precision)

    def draw(self, build: Callable[..., Any]) -> Any:
        """Return a network of ours with drawn weights, in the precision and on the device."""
        return jax.device_put(cast(initialise(build, 0), self.precision), jax.devices()[0])

    def component(self, name: str) -> Any:
        """Return a component of a bundle with drawn weights."""
        return self.draw(partial(COMPONENTS[name].build, self.sizes.configs[name]))

    def theirs(self, network: N) -> N:
        """Return a network of theirs in the precision and on the device."""
        return network.to(self.device, self.dtype).eval()

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """Return an input for PyTorch; floating-point numbers get the precision."""
        tensor = torch.tensor(np.ascontiguousarray(array), device=self.device)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def numbers(*shape: int, seed: int = 0) -> Float[np.ndarray, "..."]:
    """Return normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@dataclass(frozen=True)
class Stage:
    """A network, or a part of one, on both sides; or a step of ours without a counterpart."""

    name: str
    ours: Callable[..., Any]  # compiled, if a network; takes `arguments`
    arguments: tuple[Any, ...]
    times: float  # how often it runs for a clip
    network: torch.nn.Module | None = None
    theirs: Callable[[Any], Any] = lambda network: None  # calls the network, compiled or not

    @property
    def operations(self) -> int | None:
        """Floating-point operations of ours; None for a step that is no network."""
        return flops.count_flops(self.ours, *self.arguments) if self.network is not None else None


@dataclass(frozen=True)
class Measured:
    """Seconds of a stage on both sides, the medians over rounds, and its operations."""

    name: str
    times: float
    ours: float
    theirs: dict[str, float]  # by way, of those that could be measured
    operations: int | None

    def ratio(self, way: str) -> float:
        """Return our time over theirs."""
        return self.ours / self.theirs[way]


def measure(stage: Stage, setting: Setting, rounds: int) -> Measured:
    """Time all sides by turns, after a call of each that compiles."""
    sides = {"ours": lambda: jax.block_until_ready(stage.ours(*stage.arguments))}
    if stage.network is not None:
        sides |= {
            way: _their_side(stage.network, stage.theirs, setting, way) for way in setting.ways
        }
    spent = by_turns(first_calls(sides), rounds)
    ours = spent.pop("ours")
    return Measured(stage.name, stage.times, ours, spent, stage.operations)


def first_calls(
    sides: Mapping[str, Callable[[], Any]],
    until: float = float("inf"),
    told: Callable[[str, float, Any], None] = lambda name, seconds, result: None,
) -> dict[str, Callable[[], Any]]:
    """Call every side once, which compiles, and return those that can be measured.

    PyTorch's sides that raise an exception, or for which there is no time left, are left out.

    Args:
        until: when no other side is called, by `time.monotonic`.
        told: is called with the name, the seconds and the result of each call.
    """
    ready: dict[str, Callable[[], Any]] = {}
    for name, run in sides.items():
        if ready and time.monotonic() > until:
            print(f"{name}: not measured, the time is over", flush=True)
            continue
        begun = time.perf_counter()
        try:
            result = run()
        except Exception as error:
            if name not in TORCH:
                raise
            print(f"{name}: not measured, {str(error).strip().splitlines()[0]}", flush=True)
            continue
        told(name, time.perf_counter() - begun, result)
        ready[name] = run
    return ready


def by_turns(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Run all sides by turns, and return the median seconds of each."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            spent[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in spent.items()}


def _their_side(
    network: torch.nn.Module, call: Callable[[Any], Any], setting: Setting, way: str
) -> Callable[[], Any]:
    theirs: Any = setting.theirs(network)
    if way == "compile":
        theirs = torch.compile(theirs)

    def run() -> None:
        call(theirs)
        wait(setting)

    return run


def wait(setting: Setting) -> None:
    """Wait until PyTorch's device is done."""
    if setting.device.type == "cuda":
        torch.cuda.synchronize()


def measured(
    stages: Iterable[Callable[[Setting], Stage]], setting: Setting, rounds: int, until: float
) -> Iterator[Measured]:
    """Measure stages one after another and print a row for each at once.

    Args:
        until: when no other stage is begun, by `time.monotonic`.
    """
    print(head(setting), flush=True)
    for build in stages:
        if time.monotonic() > until:
            print("the time is over: other stages are not measured", flush=True)
            return
        stage = build(setting)
        found = measure(stage, setting, rounds)
        del stage
        print(row(found, setting), flush=True)
        yield found


def head(setting: Setting) -> str:
    """Return the head of the table."""
    torch_columns = "".join(f"  {way + ' ms':>10}  {'ratio':>5}" for way in setting.ways)
    return f"{'stage':36}  {'ours ms':>9}{torch_columns}  {'GFLOP/s':>8}  {'of peak':>7}"


def row(one: Measured, setting: Setting) -> str:
    """Return a row of the table."""
    cells = [f"{one.name:36}  {one.ours * 1e3:9.1f}"]
    for way in setting.ways:
        theirs, ratio = "", ""
        if way in one.theirs:
            theirs, ratio = f"{one.theirs[way] * 1e3:.1f}", f"{one.ratio(way):.2f}"
        cells.append(f"{theirs:>10}  {ratio:>5}")
    if one.operations is not None:
        rate, share = speed(one.operations, one.ours)
        cells.append(f"{rate:>8}  {share:>7}")
    return "  ".join(cells).rstrip()


def speed(operations: float, seconds: float) -> tuple[str, str]:
    """Return GFLOP/s, and the share of the device's peak; empty where it is not known."""
    peak, rate = peak_flops(jax.devices()[0].device_kind), operations / seconds
    return f"{rate / 1e9:.0f}", "" if peak is None else f"{rate / peak:.1%}"


def total(name: str, found: Sequence[Measured], setting: Setting) -> str:
    """Say what a clip takes, each stage as often as it runs."""
    ours = sum(one.ours * one.times for one in found)
    operations = sum((one.operations or 0) * one.times for one in found)
    words = [f"{name}: {ours:.4g} s, {operations / 1e12:.4g} TFLOP"]
    for way in setting.ways:
        both = [one for one in found if way in one.theirs]
        mine = sum(one.ours * one.times for one in both)
        theirs = sum(one.theirs[way] * one.times for one in both)
        if both:
            words.append(f"torch {way} {theirs:.4g} s, ratio of its stages {mine / theirs:.2f}")
    return "; ".join(words)


def memory() -> str:
    """Say how much memory was used at most."""
    words = [f"process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"]
    if (ours := peak_memory()) is not None:
        words.append(f"device {ours / 2**30:.1f} GiB ours")
    if torch.cuda.is_available():
        words.append(f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB torch")
    return f"peak memory: {', '.join(words)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a benchmark beside PyTorch."""
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each side")
    parser.add_argument("--size", choices=SIZES, default="released", help="of all networks")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="clips at once")
    parser.add_argument(
        "--torch", nargs="*", choices=TORCH, default=["eager"], help="how PyTorch's side runs"
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), help="default: what JAX finds")
    parser.add_argument(
        "--part",
        action=argparse.BooleanOptionalAction,
        help="two blocks of the ViT for four frames, multiplied; default: on a CPU",
    )
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="after which nothing new is begun"
    )


def prepare(args: argparse.Namespace) -> Setting:
    """Choose the device, say what the benchmark runs on, and return what is measured.

    The batch is the last one that is asked for.
    """
    if args.device is not None:
        jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[args.device])
    # Both sides share a GPU, most of which JAX would take for itself.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.55")
    keep_freed_memory()
    on_cpu = jax.default_backend() == "cpu"
    part = on_cpu and args.size == "released" if args.part is None else args.part
    setting = Setting(
        SIZES[args.size](), args.precision, args.batch[-1], tuple(dict.fromkeys(args.torch)), part
    )
    threads = f" with {torch.get_num_threads()} threads" if setting.device.type == "cpu" else ""
    print(
        f"{hardware(Path())}; jax {jax.__version__} on {jax.devices()[0].device_kind}, "
        f"torch {torch.__version__} on {setting.device}{threads}; {args.size} sizes, "
        f"{args.precision}, batch {' and '.join(map(str, args.batch))}",
        flush=True,
    )
    return setting

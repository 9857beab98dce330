"""`python -m benchmarks.training`: time a step of stage 1 in JAX and in PyTorch, and the loader.

Both train the same mapper, with the same weights and batch: ours, and the program of
docs/mapper_in_pytorch.md with Hugging Face's `GPT2Model` and AdamW. Their losses are compared
before anything is timed. Scheduled sampling and the contrastive term are off. The loader reads
features of the same sizes from the disk.

Both run on the GPU if JAX finds one. There PyTorch has `torch.compile` (`--compiled`), autocast
(`--precision bfloat16`) and the fused AdamW.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from jax import numpy as jnp

from benchmarks.documented import program
from benchmarks.hardware import hardware
from convert.__main__ import main as convert
from mfm_jax.bundle import Source, write_bundle
from mfm_jax.cost import flops
from mfm_jax.cost.chips import peak_flops
from mfm_jax.data.clips import Clip
from mfm_jax.data.loader import batches
from mfm_jax.data.records import DatasetWriter, Field, RecordSource
from mfm_jax.mapper import MapperConfig
from mfm_jax.runtime.memory import keep_freed_memory
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh
from mfm_jax.storage.weights import abstract, initialise, parameter_count
from mfm_jax.train.optimizer import OptimizerConfig, build_optimizer, lr_multipliers
from mfm_jax.train.recipes.mapper import MapperRecipe
from mfm_jax.train.step import PRECISIONS, Batch, ComputeConfig, init_state, make_step, trainable

SIZES = {"base": MapperConfig.base, "tiny": MapperConfig.tiny}
OPTIMIZER = OptimizerConfig(learning_rate=1e-4, warmup_steps=0, weight_decay=0.05)
STEPS = 1000
"""Length of the learning rate schedule; the timed steps are near its start."""


TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}
"""Relative tolerance of the losses of the first two steps."""


class Pair(NamedTuple):
    """Our training step and theirs, each with its own weights.

    They return the loss without waiting for it; `float` waits.
    """

    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    operations: int  # of a step


def random_batch(config: MapperConfig, clips: int) -> dict[str, np.ndarray]:
    """Return a batch of noise with the sizes of features."""
    rng = np.random.default_rng(0)
    batch = {}
    for name, tokens, width in config.encoders:
        batch[name] = rng.standard_normal((clips, tokens, width)).astype(np.float16)
        seconds = np.linspace(0, 10, tokens, dtype=np.float32)
        batch[f"{name}_seconds"] = np.tile(seconds, (clips, 1))
    loa = (clips, config.loa.tokens, config.loa_width)
    return {**batch, "loa": rng.standard_normal(loa).astype(np.float32)}


def our_step(
    recipe: MapperRecipe, module: Any, batch: Batch, precision: str
) -> tuple[Callable[[], jax.Array], int]:
    """Return the step of `train.py`, and its number of operations."""
    layout = Layout(make_mesh(MeshConfig(), jax.devices()[:1]))
    abstract_module = abstract(recipe.build)
    multiplier = lr_multipliers((), trainable(abstract_module))
    tx = build_optimizer(OPTIMIZER, STEPS, multiplier)
    compute = ComputeConfig(precision=precision)
    step = make_step(
        abstract_module, recipe.loss, tx, ema_decay=None, layout=layout, compute=compute
    )
    state = init_state(module, tx, multiplier, ema=False, seed=0, layout=layout)
    operations = flops.count_flops(step, state, batch)

    def run() -> jax.Array:
        nonlocal state
        state, metrics = step(state, batch)
        return metrics["loss"]

    return run, operations


def their_step(
    folder: Path, config: MapperConfig, batch: dict, *, precision: str, compiled: bool
) -> Callable[[], torch.Tensor]:
    """Return the same step in PyTorch."""
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    module = program()
    mapper = module.Mapper(folder, device)
    mapper.gpt2.train()
    for layer in mapper.gpt2.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    fixed = {"loa_mean", "loa_std"}
    learned = [t.requires_grad_() for n, t in mapper.weights.items() if n not in fixed]
    # GPT2Model also has word embeddings, which are not used here.
    learned += [p for n, p in mapper.gpt2.named_parameters() if not n.startswith("wte")]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": OPTIMIZER.weight_decay},
            {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=OPTIMIZER.learning_rate,
        betas=(OPTIMIZER.b1, OPTIMIZER.b2),
        fused=device == "cuda",
    )
    streams = {
        name: module.Stream(
            torch.tensor(batch[name]).float().to(device),
            torch.tensor(batch[f"{name}_seconds"]).to(device),
            torch.ones(batch[name].shape[:2], dtype=torch.bool, device=device),
        )
        for name, _, _ in config.encoders
    }
    loa = torch.tensor(batch["loa"]).to(device)
    if "loa_std" in mapper.weights:
        loa = (loa - mapper.weights["loa_mean"]) / mapper.weights["loa_std"]

    def loss_of(streams: dict, loa: torch.Tensor) -> torch.Tensor:
        prefix, _ = mapper.prefix(streams)
        width = prefix.shape[-1]
        known = mapper.linear("loa_in", loa[:, :-1]) if config.head else loa[:, :-1]
        last = prefix[:, -1:] + module.time_embedding(mapper.times[:1], width)
        read = [prefix[:, :-1], last, known + module.time_embedding(mapper.times[1:], width)]
        hidden = mapper.gpt2(inputs_embeds=torch.cat(read, 1), use_cache=False).last_hidden_state
        hidden = hidden[:, prefix.shape[1] - 1 :]
        predicted = mapper.linear("loa_out", hidden) if config.head else hidden
        return torch.nn.functional.mse_loss(predicted.float(), loa)

    loss_of = torch.compile(loss_of) if compiled else loss_of
    half = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")

    def run() -> torch.Tensor:
        with half:
            loss = loss_of(streams, loa)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, OPTIMIZER.clip_norm)
        optimizer.step()
        return loss.detach()

    return run


def pair(config: MapperConfig, clips: int, folder: Path, *, precision: str, compiled: bool) -> Pair:
    """Return both steps, starting from the same weights."""
    recipe = MapperRecipe(network=config, scheduled_sampling=0.0, contrast_weight=0.0)
    module = initialise(recipe.build, 0)
    bundle = write_bundle(folder / "bundle", {"mapper": (config, module, Source("x", "none"))})
    if convert(["mapper", str(bundle.path), "--to", "torch", "-o", str(folder / "torch")]):
        raise SystemExit("the mapper was not converted")
    batch = random_batch(config, clips)
    arrays = {k: jnp.asarray(v) for k, v in batch.items()}
    ours, operations = our_step(recipe, module, arrays, precision)
    theirs = their_step(folder / "torch", config, batch, precision=precision, compiled=compiled)
    return Pair(ours, theirs, operations)


def seconds(run: Callable[[], Any], steps: int) -> float:
    """Return the time of one step, when `steps` are run without waiting for each."""
    start = time.perf_counter()
    for _ in range(steps):
        loss = run()
    float(loss)
    return (time.perf_counter() - start) / steps


def compared(both: Pair, rounds: int, steps: int, tolerance: float) -> tuple[float, float]:
    """Check that the losses agree, and return the median seconds of both steps."""
    for number in range(2):  # the first step compiles
        ours, theirs = float(both.ours()), float(both.theirs())
        print(f"loss of step {number}: ours {ours:.6f}, theirs {theirs:.6f}", flush=True)
        np.testing.assert_allclose(ours, theirs, rtol=tolerance)
    spent = [(seconds(both.ours, steps), seconds(both.theirs, steps)) for _ in range(rounds)]
    ours, theirs = (statistics.median(times) for times in zip(*spent, strict=True))
    return ours, theirs


def loaded(config: MapperConfig, clips: int, folder: Path) -> float:
    """Return the batches of features per second that the loader reads from the disk."""
    recipe = MapperRecipe(network=config)
    (rows, columns), width = config.loa.grid, config.loa_width
    element = {name: array[0] for name, array in random_batch(config, 1).items() if name != "loa"}
    element["audiomae"] = np.zeros((1 + rows * columns, width), np.float16)
    fields = {name: Field(array.shape, array.dtype.name) for name, array in element.items()}
    named = [Clip(f"{i:05d}", Path(f"{i}.mp4")) for i in range(512)]
    writing = DatasetWriter.open(folder / "features", "about.json", {"of": "noise"}, fields, named)
    for shard in writing.missing():
        writing.write(shard, (element for _ in writing.shards[shard]))
    writing.finish()

    class Read:
        """The source as a recipe reads it, without keeping it in memory."""

        def __init__(self) -> None:
            self.source = RecordSource(folder / "features", "about.json")

        def __len__(self) -> int:
            return len(self.source)

        def __getitem__(self, index: int) -> dict:
            return recipe.read(self.source[index])

    loader = batches(Read(), batch=clips, seed=0, train=True)
    for _ in islice(loader, 8):
        pass
    start, many = time.perf_counter(), max(8, 1024 // clips)
    for _ in islice(loader, many):
        pass
    return many / (time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="base", help="of the mapper")
    parser.add_argument("--batch", type=int, default=4, help="clips in a step")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each")
    parser.add_argument("--steps", type=int, default=1, help="steps in a round")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--compiled", action="store_true", help="torch.compile what PyTorch runs")
    args = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every file it opens
    keep_freed_memory()
    config, device = SIZES[args.size](), jax.devices()[0]
    parameters = parameter_count(abstract(partial(MapperRecipe(network=config).build)))
    print(
        f"{hardware(Path())}; {device.device_kind}; jax {jax.__version__}, torch "
        f"{torch.__version__}{' compiled' if args.compiled else ''}; {args.precision}"
    )
    print(
        f"stage 1, {args.size} mapper, {parameters / 1e6:.0f} M parameters, {args.batch} clips of "
        f"{sum(n for _, n, _ in config.encoders)} + {config.loa.tokens} tokens"
    )
    how = {"precision": args.precision, "compiled": args.compiled}
    with tempfile.TemporaryDirectory() as folder:
        both = pair(config, args.batch, Path(folder), **how)
        ours, theirs = compared(both, args.rounds, args.steps, TOLERANCE[args.precision])
        rate = loaded(config, args.batch, Path(folder))
    print(f"step: ours {1e3 * ours:.1f} ms, torch {1e3 * theirs:.1f}, ratio {ours / theirs:.2f}")
    if (peak := peak_flops(device.device_kind)) is not None:
        shares = (both.operations / (time * peak) for time in (ours, theirs))
        print("MFU of {:.0f} TFLOP/s: ours {:.1%}, torch {:.1%}".format(peak / 1e12, *shares))
    print(f"loader: {rate:.1f} batches/s, {rate * ours:.1f} times what our step takes")


if __name__ == "__main__":
    main()

"""`python -m benchmarks.training`: a step of stage 1 beside PyTorch's, and the loader beside it.

The same mapper, with the same weights and batch, teaches itself the same LOA: ours, and the program
of docs/mapper_in_pytorch.md with Hugging Face's `GPT2Model` and AdamW. The losses of both are
compared before anything is timed. Own outputs are not fed and nothing is contrasted, which both
could do. The loader reads features of the same sizes from the disk.
"""

import argparse
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

from benchmarks.conversion import hardware
from benchmarks.documented import program
from convert.__main__ import main as convert
from mfm_jax.bundle import Source, write_bundle
from mfm_jax.data.clips import Clip
from mfm_jax.data.loader import batches
from mfm_jax.data.records import Field, RecordSource, Writing
from mfm_jax.mapper import MapperConfig
from mfm_jax.sharding import Layout, MeshConfig, make_mesh
from mfm_jax.train.optimizer import OptimizerConfig, build_optimizer, factors
from mfm_jax.train.recipes.mapper import MapperRecipe, tiny_mapper
from mfm_jax.train.step import Batch, begin, make_step, trainable
from mfm_jax.weights import abstract, count, initialise

SIZES = {"base": MapperConfig.base, "tiny": tiny_mapper}
OPTIMIZER = OptimizerConfig(rate=1e-4, warmup=0, decay=0.05)
STEPS = 1000
"""Of the schedule; all that are timed are near its beginning."""


class Pair(NamedTuple):
    """A step of ours and one of theirs, which each change their own weights; they give losses."""

    ours: Callable[[], float]
    theirs: Callable[[], float]


def drawn(config: MapperConfig, clips: int) -> dict[str, np.ndarray]:
    """A batch of noise, of the sizes of features."""
    rng = np.random.default_rng(0)
    batch = {}
    for name, tokens, width in config.encoders:
        batch[name] = rng.standard_normal((clips, tokens, width)).astype(np.float16)
        seconds = np.linspace(0, 10, tokens, dtype=np.float32)
        batch[f"{name}_seconds"] = np.tile(seconds, (clips, 1))
    loa = (clips, config.loa.tokens, config.loa_width)
    return {**batch, "loa": rng.standard_normal(loa).astype(np.float32)}


def our_step(recipe: MapperRecipe, module: Any, batch: Batch) -> Callable[[], float]:
    """A step of `train.py`."""
    layout = Layout(make_mesh(MeshConfig(), jax.devices()[:1]))
    skeleton = abstract(recipe.build)
    factor = factors((), trainable(skeleton))
    tx = build_optimizer(OPTIMIZER, STEPS, factor)
    step = make_step(skeleton, recipe.loss, tx, ema=None, layout=layout)
    state = begin(module, tx, factor, ema=None, seed=0, layout=layout)

    def run() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        return float(metrics["loss"])

    return run


def their_step(folder: Path, config: MapperConfig, batch: dict) -> Callable[[], float]:
    """The same in PyTorch."""
    module = program()
    mapper = module.Mapper(folder)
    mapper.gpt2.train()
    for layer in mapper.gpt2.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    fixed = {"loa_mean", "loa_std"}
    learned = [t.requires_grad_() for n, t in mapper.weights.items() if n not in fixed]
    # GPT2Model has a table of words as well, which nothing here reads.
    learned += [p for n, p in mapper.gpt2.named_parameters() if not n.startswith("wte")]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in learned if p.ndim > 1], "weight_decay": OPTIMIZER.decay},
            {"params": [p for p in learned if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=OPTIMIZER.rate,
        betas=(OPTIMIZER.b1, OPTIMIZER.b2),
    )
    streams = {
        name: module.Stream(
            torch.tensor(batch[name]).float(),
            torch.tensor(batch[f"{name}_seconds"]),
            torch.ones(batch[name].shape[:2], dtype=torch.bool),
        )
        for name, _, _ in config.encoders
    }
    loa = torch.tensor(batch["loa"])
    if "loa_std" in mapper.weights:
        loa = (loa - mapper.weights["loa_mean"]) / mapper.weights["loa_std"]

    def run() -> float:
        prefix, _ = mapper.prefix(streams)
        width = prefix.shape[-1]
        known = mapper.linear("loa_in", loa[:, :-1]) if config.head else loa[:, :-1]
        last = prefix[:, -1:] + module.clock(mapper.times[:1], width)
        read = [prefix[:, :-1], last, known + module.clock(mapper.times[1:], width)]
        hidden = mapper.gpt2(inputs_embeds=torch.cat(read, 1), use_cache=False).last_hidden_state
        hidden = hidden[:, prefix.shape[1] - 1 :]
        predicted = mapper.linear("loa_out", hidden) if config.head else hidden
        loss = torch.nn.functional.mse_loss(predicted, loa)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, OPTIMIZER.clip)
        optimizer.step()
        return float(loss.detach())

    return run


def pair(config: MapperConfig, clips: int, folder: Path) -> Pair:
    """Both steps from the same weights."""
    recipe = MapperRecipe(network=config, own=0.0, contrast=0.0)
    module = initialise(recipe.build, 0)
    bundle = write_bundle(folder / "bundle", {"mapper": (config, module, Source("x", "none"))})
    if convert(["mapper", str(bundle.path), "--to", "torch", "-o", str(folder / "torch")]):
        raise SystemExit("the mapper was not converted")
    batch = drawn(config, clips)
    ours = our_step(recipe, module, {k: jnp.asarray(v) for k, v in batch.items()})
    return Pair(ours, their_step(folder / "torch", config, batch))


def compared(steps: Pair, rounds: int) -> tuple[float, float]:
    """Median seconds of each over alternating runs; their losses go along together."""
    for number in range(2):  # the first one compiles
        ours, theirs = steps.ours(), steps.theirs()
        print(f"loss of step {number}: ours {ours:.6f}, theirs {theirs:.6f}")
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    spent: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for run, times in zip(steps, spent, strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return statistics.median(spent[0]), statistics.median(spent[1])


def loaded(config: MapperConfig, clips: int, folder: Path) -> float:
    """Batches of features a second that the loader gives, read from the disk each time."""
    recipe = MapperRecipe(network=config)
    (rows, columns), width = config.loa.grid, config.loa_width
    element = {name: array[0] for name, array in drawn(config, 1).items() if name != "loa"}
    element["audiomae"] = np.zeros((1 + rows * columns, width), np.float16)
    fields = {name: Field(array.shape, array.dtype.name) for name, array in element.items()}
    named = [Clip(f"{i:05d}", Path(f"{i}.mp4")) for i in range(512)]
    writing = Writing.begin(folder / "features", "about.json", {"of": "noise"}, fields, named)
    for shard in writing.missing():
        writing.write(shard, (element for _ in writing.shards[shard]))
    writing.finish()

    class Read:
        """The source as a recipe reads it, nothing kept in memory."""

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
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each")
    args = parser.parse_args()
    config = SIZES[args.size]()
    parameters = count(abstract(partial(MapperRecipe(network=config).build)))
    print(
        f"{hardware(Path())}; jax {jax.__version__} on {jax.devices()[0].device_kind}, "
        f"torch {torch.__version__} on cpu with {torch.get_num_threads()} threads, float32"
    )
    print(
        f"stage 1, {args.size} mapper, {parameters / 1e6:.0f} M parameters, {args.batch} clips of "
        f"{sum(n for _, n, _ in config.encoders)} + {config.loa.tokens} tokens"
    )
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = compared(pair(config, args.batch, Path(folder)), args.rounds)
        rate = loaded(config, args.batch, Path(folder))
    print(f"step: ours {1e3 * ours:.0f} ms, torch {1e3 * theirs:.0f} ms, ratio {ours / theirs:.2f}")
    print(f"loader: {rate:.1f} batches/s, {rate * ours:.1f} times what our step takes")


if __name__ == "__main__":
    main()

"""`python -m benchmarks.extract`: extraction of features beside PyTorch, by stages and end to end.

The stages are those of a clip of 10.24 s with sound at released sizes: decoding a file, each
encoder (drawn weights, beside PyTorch by turns), and writing what they made. End to end, the
shipped miniature extracts the features of many short clips, twice: the first time compiles.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks import beside
from benchmarks.beside import Setting, Stage
from benchmarks.sizes import small_sizes
from benchmarks.stages import EXTRACTION
from benchmarks.whole import make_clip, sizes_bundle
from mfm_jax.bundle import Bundle
from mfm_jax.data.clips import Clip
from mfm_jax.data.features import DESCRIPTION, bundled
from mfm_jax.data.records import DatasetWriter, Field
from mfm_jax.inference.extract import Preparation, element_fields, extract
from mfm_jax.runtime.throughput import Throughput
from mfm_jax.storage.paths import TINY_BUNDLE

WRITTEN = 16
"""Clips in the file that is written."""


@contextmanager
def host_stages(setting: Setting) -> Iterator[list[Stage]]:
    """Yield the stages without a network: decoding a clip and writing features."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundle = stack.enter_context(sizes_bundle(setting.sizes))
        clip = Clip("clip", make_clip(folder / "clip.mp4", setting.sizes, sound=True))
        preparation = Preparation.of(bundle, bundled(bundle), "video")
        fields = element_fields(preparation)
        size = f"{setting.sizes.width} x {setting.sizes.height}"
        yield [
            Stage(f"decoding, {size}", preparation.clip, (clip,), 1),
            Stage(f"writing, {WRITTEN} clips", partial(write, fields, folder), (), 1 / WRITTEN),
        ]


def write(fields: Mapping[str, Field], folder: Path) -> None:
    """Write a file of features, which are zeros."""
    element = {name: np.zeros(its.shape, its.dtype) for name, its in fields.items()}
    clips = [Clip(f"{i:04d}", Path(f"{i}.mp4")) for i in range(WRITTEN)]
    features = folder / "features"
    writer = DatasetWriter.open(features, DESCRIPTION, {"of": "zeros"}, fields, clips)
    for shard in writer.missing():
        writer.write(shard, (element for _ in writer.shards[shard]))
    writer.finish()
    shutil.rmtree(features)


def end_to_end(setting: Setting, count: int) -> None:
    """Extract the features of `count` short clips with the shipped miniature, and print rates."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = make_clip(folder / "0.mp4", small_sizes(), sound=True)
        for i in range(1, count):
            shutil.copy(first, folder / f"{i}.mp4")
        clips = [Clip(f"{i:05d}", folder / f"{i}.mp4") for i in range(count)]
        for run in ("first", "second"):
            done: list[float] = []  # when each clip was done

            def progress(clips: int, done: list[float] = done) -> None:
                done.extend([time.perf_counter()] * clips)

            throughput, began = Throughput(count), time.perf_counter()
            failed = extract(
                Bundle.open(TINY_BUNDLE), clips, folder / run, batch=8 * setting.batch,
                precision=setting.precision, progress=progress, throughput=throughput,
            )  # fmt: skip
            spent = time.perf_counter() - began
            print(
                f"{run} extraction of {count} clips of 2.56 s, miniature, {setting.precision}: "
                f"{spent:.1f} s, first record after {done[0] - began:.1f} s, {len(failed)} failed; "
                f"after the first batch: {throughput}",
                flush=True,
            )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.extract", description=__doc__)
    beside.add_arguments(parser)
    parser.add_argument("--clips", type=int, default=64, help="short clips, end to end")
    args = parser.parse_args()
    until = time.monotonic() + args.seconds
    setting = beside.prepare(args)
    with torch.inference_mode(), host_stages(setting) as host:
        stages = [*((lambda _, stage=stage: stage) for stage in host), *EXTRACTION]
        found = list(beside.measured(stages, setting, args.rounds, until))
    if len(found) == len(stages):
        seconds = setting.sizes.settings.seconds
        print(beside.total(f"a clip of {seconds:g} s, from the stages", found, setting))
    if args.clips:
        end_to_end(setting, args.clips)
    print(beside.memory())


if __name__ == "__main__":
    main()

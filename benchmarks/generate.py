"""`python -m benchmarks.generate`: generation beside PyTorch, by stages and as a whole.

Both sides have drawn weights of released sizes, the same inputs, precision and threads, and run by
turns. The stages are multiplied by how often they run for a clip of 10.24 s: 96 frames, all blocks,
ten steps with guidance. `--whole` measures the whole: a file in, a waveform out, all networks
loaded once; with `--clips N`, also N files to mp4 in one run, which PyTorch has no counterpart for.
"""

import argparse
import time

import torch

from benchmarks import beside
from benchmarks.stages import GENERATION, STEPS
from benchmarks.whole import measure_whole

BY_NAME = {stage.__name__: stage for stage in GENERATION}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generate", description=__doc__)
    beside.add_arguments(parser)
    parser.add_argument("--only", nargs="*", choices=BY_NAME, help="of the stages; default: all")
    parser.add_argument("--whole", action="store_true", help="the whole; stages if --only has any")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the sampler, of the whole")
    parser.add_argument("--clips", type=int, default=0, help="files to mp4, after the whole")
    args = parser.parse_args()
    until = time.monotonic() + args.seconds
    setting = beside.prepare(args)
    chosen = [] if args.whole and args.only is None else args.only
    stages = list(GENERATION) if chosen is None else [BY_NAME[name] for name in chosen]
    with torch.inference_mode():
        if stages:
            found = list(beside.measured(stages, setting, args.rounds, until))
            if len(found) == len(GENERATION):
                name = f"a clip of {setting.sizes.settings.seconds:g} s, {STEPS} steps, from stages"
                print(beside.total(name, found, setting))
        if args.whole:
            measure_whole(
                setting, args.batch, steps=args.steps, rounds=args.rounds, clips=args.clips,
                until=until,
            )  # fmt: skip
    print(beside.memory())


if __name__ == "__main__":
    main()

"""Try damaged files, each under a limit of memory and time: `python -m tests.fuzz KIND`.

Prints what was done to each file that is not refused in one line or read consistently, and exits
with 1 if there is one. A case is repeated by its number: `--seed S --only N`.
"""

import argparse
import collections
import sys

from tests.fuzz.runner import run

KINDS = ("media", "bundles", "checkpoints")


def main() -> int:
    """Try the cases; return 1 if one fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this case alone, in detail")
    args = parser.parse_args()
    cases = range(args.cases) if args.only is None else [args.only]
    verdicts = run(args.kind, args.seed, cases)
    failed = {n: v for n, v in verdicts.items() if v.startswith("FAILED")}
    for number, verdict in failed.items():
        print(f"case {number}: {verdict}")
    if args.only is not None:
        print(verdicts)
    counts = collections.Counter(v.split(":")[0].split(",")[0][:24] for v in verdicts.values())
    refused = sum(v for k, v in counts.items() if k.startswith("refused"))
    print(
        f"{args.kind}: {len(verdicts)} cases, {refused} refused in one line, "
        f"{len(verdicts) - refused - len(failed)} read, {len(failed)} failed"
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

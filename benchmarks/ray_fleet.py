"""`python -m benchmarks.ray_fleet`: a Ray cluster of two nodes, of which one is killed halfway.

The nodes are processes of this machine. `mfm generate --on ray` gives short clips sound with the
shipped miniature; once half of the outputs are there, the second node and all its processes get
SIGKILL. What is there in the end is compared with what the same command makes without Ray.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.hardware import hardware
from benchmarks.jobs import compare, count, make_clips


def generate(clips: Path, out: Path, *options: str) -> float:
    """Give clips sound; return the seconds that it takes."""
    command = [sys.executable, "-m", "mfm_jax.cli", "generate", str(clips), "-o", str(out)]
    begun = time.monotonic()
    subprocess.run([*command, "--format", "wav", *options], check=True)
    return time.monotonic() - begun


def main() -> None:
    """Print what was made, and whether it is what one run makes."""
    from ray.cluster_utils import Cluster

    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_fleet", description=__doc__)
    parser.add_argument("--clips", type=int, default=200)
    args = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips, alone, out = folder / "clips", folder / "alone", folder / "out"
        print(f"{hardware(folder)}; {args.clips} clips", flush=True)
        make_clips(clips, args.clips, 0)
        seconds = generate(clips, alone)
        print(f"without Ray: {count(alone)} in {seconds:.0f} s", flush=True)
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
        )
        second = cluster.add_node(num_cpus=2)
        os.environ["RAY_ADDRESS"] = cluster.address

        def kill() -> None:
            while (made := len(list(out.glob("*.wav")))) < args.clips // 2:
                time.sleep(0.02)
            status = [sys.executable, "-m", "mfm_jax.cli", "status", str(out)]
            print(subprocess.run(status, capture_output=True, text=True).stdout.strip())
            cluster.remove_node(second, allow_graceful=False)
            print(f"the second node is killed at {made} outputs", flush=True)

        killer = threading.Thread(target=kill)
        killer.start()
        seconds = generate(clips, out, "--on", "ray")
        killer.join()
        print(f"on Ray: {count(out)} in {seconds:.0f} s: {compare(alone, out)}")
        cluster.shutdown()


if __name__ == "__main__":
    main()

"""The whole way from a checkpoint to sounds, with every path in one place: a disk or a store.

`python -m tests.journey --kills 20` goes it in a store of its own, killing commands at random, and
compares what comes out with what an unbroken run on a disk makes. `--kills 0 --delay 0.02 --failing
0.05 --cut 60` does so with a store that is slow, fails, and is cut off for a minute.
"""

import argparse
import json
import os
import random
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
import transformers

from mfm_jax.bundle import Bundle
from mfm_jax.data.features import FeatureSource
from mfm_jax.foley.world import World, write_world
from mfm_jax.inference.record import FAILED, read_record
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.files import publish
from mfm_jax.storage.store import digest_file
from mfm_jax.storage.weights import named_weights
from tests.bundles import CONFIGS, untrained_bundle
from tests.forked import Forked
from tests.journey_worker import worker
from tests.ports import free_port
from tests.randomise import randomise
from tests.store_proxy import Proxy
from tests.store_server import new_bucket, running_server, use

CLIPS = {"train": 6, "heldout": 2, "new": 7}
SMALL = {
    "convert": [],
    "extract": ["--batch", "2", "--shard", "2"],
    "tiny": ["batch=4", "log_every=1", "save_every=2", "eval_every=4", "steps=8"],
    "tiny_stage2": ["batch=2", "log_every=1", "save_every=2", "eval_every=2", "steps=2"],
    "generate": ["--batch", "2", "--format", "wav"],
}
"""What the commands of the page get, so that they are small."""


def commands(place: Path) -> list[list[str]]:
    """Return the commands of docs/pod.md that need no released weights, small, and at `place`."""
    page = (Path(__file__).parents[1] / "docs" / "pod.md").read_text().replace("\\\n", " ")
    found = []
    for line in page.splitlines():
        words = shlex.split(line)[1:] if line.startswith("mfm ") else []
        if not words or (words[0] == "convert" and words[1] != "gpt2"):
            continue
        words = [word.replace("gs://BUCKET", str(place)) for word in words]
        kind = words[0]
        if kind == "train":
            words.remove("--distributed")
            place_of = words.index("--config") + 1
            words[place_of] = kind = words[place_of].replace("base", "tiny")
        found.append([*words, *SMALL[kind]])
    return found


def prepare(folder: Path) -> None:
    """Write what a user comes with: a PyTorch checkpoint, a bundle of the networks, and clips."""
    config = CONFIGS["mapper"].gpt2
    sizes = {"n_embd": config.width, "n_layer": config.depth, "n_head": config.heads}
    gpt2 = transformers.GPT2Config(
        vocab_size=11, n_positions=config.positions, attn_implementation="eager", **sizes
    )
    randomise(transformers.GPT2Model(gpt2), seed=0).save_pretrained(folder / "gpt2")
    untrained_bundle(folder / "bundle")
    first = 0
    for part, clips in CLIPS.items():
        write_world(World(seconds=1.6), range(first, first + clips), folder / "clips" / part)
        first += clips


Trigger = Callable[[], bool]


@dataclass
class Journey:
    """The commands, one after the other, at `place`.

    In a store each has processes of its own. On a disk they are what the others are compared with,
    and those that one process can do share one.
    """

    place: Path
    programs: Path  # compiled ones, for all processes
    kill: Callable[[Sequence[str]], Trigger | None] = lambda words: None
    """Returns what tells when one of the processes of a command is killed, if one is."""
    kills: int = field(default=0, init=False)

    def go(self) -> None:
        """Run everything."""
        several = isinstance(self.place, StorePath)
        alone: list[list[str]] = []
        for words in commands(self.place):
            kind = words[0]
            if kind == "train" and "tiny" in words:  # of two processes, also on a disk
                self.run(*alone)
                alone = []
                self.run(words, workers=2, together=True)
            elif not several:
                alone.append(words)
            elif kind == "generate":
                self.run(words, workers=3)
            elif kind == "extract" and words[1].endswith("train"):
                self.run(words, workers=2)
            else:
                self.run(words)
        self.run(*alone)

    def run(self, *words: Sequence[str], workers: int = 1, together: bool = False) -> None:
        """Run commands, one after the other, in several processes.

        These begin anew where they are killed.
        """
        if not words:
            return
        due = self.kill(words[0])
        todo = self._started(words, workers, together, due is not None)
        while todo:
            if (done := next((p for p in todo if p.poll() is not None), None)) is not None:
                done.result()
                todo.remove(done)
            elif due is not None and due():
                self.kills += 1
                for process in [*todo] if together else [random.choice(todo)]:
                    process.kill()
                    todo.remove(process)
                due = self.kill(words[0])
                todo += self._started(words, workers if together else 1, together, due is not None)
            else:
                time.sleep(0.02)

    def _started(
        self, words: Sequence[Sequence[str]], workers: int, together: bool, killed: bool
    ) -> list[Forked]:
        address = f"127.0.0.1:{free_port()}" if together else None
        options = {
            "jax_default_matmul_precision": jax.config.jax_default_matmul_precision,
            "jax_compilation_cache_dir": str(self.programs),
            "jax_persistent_cache_min_entry_size_bytes": -1,
            # A process that is killed while it writes would leave half a program.
            "jax_persistent_cache_min_compile_time_secs": 1e6 if killed else 0.0,
        }
        return [Forked(worker, words, i, address, workers, options=options) for i in range(workers)]


def result(place: Path) -> dict[str, str]:
    """Return digests of everything that a journey is for; each output is there once."""
    found = {}
    for part in ("train", "heldout"):
        source = FeatureSource(place / "features" / part)
        for i in range(len(source)):
            for name, array in source[i].items():
                found[f"{part} {source.id_of(i)} {name}"] = str(hash(array.tobytes()))
    for stage in ("stage1", "stage2"):
        for name, weight in named_weights(Bundle.open(place / stage).load("mapper")).items():
            found[f"{stage} {name}"] = str(hash(np.asarray(weight).tobytes()))
    record = read_record(place / "out")
    wavs = {p.name: digest_file(p) for p in (place / "out").iterdir() if p.suffix == ".wav"}
    assert {name: entry["sha256"] for name, entry in record.items()} == wavs
    assert not (place / "out" / FAILED).exists()
    return found | wavs


def upload(folder: Path, bucket: StorePath) -> None:
    """Put what a user comes with into the store."""
    for name in ("gpt2", "bundle", "clips"):
        publish(folder / name, bucket / name)


def differences(some: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """Return the names of what is not the same in both."""
    return sorted(n for n in {**some, **others} if some.get(n) != others.get(n))


def main() -> None:
    """Go the way on a disk, and in a store with kills."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=5.0, help="before a kill, on average")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--delay", type=float, default=0.0, help="of each answer of the store, s")
    parser.add_argument("--failing", type=float, default=0.0, help="share of requests")
    parser.add_argument("--cut", type=float, default=0.0, help="seconds a round without it")
    args = parser.parse_args()
    random.seed(args.seed)
    with tempfile.TemporaryDirectory() as name, running_server() as url, Proxy(url) as proxy:
        folder, programs = Path(name) / "here", Path(name) / "programs"
        os.environ["MFM_FILES"] = f"{name}/copies"
        prepare(folder)
        began = time.monotonic()
        bucket = new_bucket(url, "journey")
        use(proxy.url)
        Journey(folder, programs).go()
        print(f"on a disk: {time.monotonic() - began:.0f} s", flush=True)
        expected, kills, rounds = result(folder), 0, 0
        while rounds == 0 or kills < args.kills:
            rounds, began = rounds + 1, time.monotonic()
            at = bucket / str(rounds)
            upload(folder, at)
            journey = Journey(at, programs, Kills(args.kills - kills, args.seconds).of)
            proxy.delay, proxy.failing = args.delay, args.failing
            cutting = threading.Timer(20, cut, (proxy, args.cut))
            cutting.start()
            journey.go()
            cutting.join()
            proxy.delay = proxy.failing = 0.0
            kills += journey.kills
            different = differences(result(at), expected)
            print(
                f"round {rounds}, {time.monotonic() - began:.0f} s: {journey.kills} kills; "
                f"{proxy.requests} requests, {proxy.failed} of them failed; "
                f"differing: {different or 'nothing'}",
                flush=True,
            )
            assert not different
    print(json.dumps({"kills": kills, "rounds": rounds}))


@dataclass
class Kills:
    """Processes are killed after random times, as often as is left."""

    left: int
    seconds: float
    """Before a kill, on average."""

    def of(self, words: Sequence[str]) -> Trigger | None:
        """Return what tells when a process of a command is killed, if one is."""
        if not self.left or random.random() < 0.3:
            return None
        self.left -= 1
        due = time.monotonic() + random.expovariate(1 / self.seconds)
        return lambda: time.monotonic() > due


def cut(proxy: Proxy, seconds: float) -> None:
    """Let nothing through for a while."""
    with proxy.cut_off():
        time.sleep(seconds)


if __name__ == "__main__":
    sys.exit(main())

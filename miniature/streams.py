"""Streams of video on the hard grade: what a third one adds where CAVP sees 4 frames a second.

The UNet knows AudioLDM2's grid of LOA alone, as that of `timing`, and is frozen. For each system a
mapper is trained and then the adapter, and whole videos are scored. What all of them start from is
trained first: the video encoders, on the hard grade, and the UNet.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.cli import arguments as options
from mfm_jax.data.features import DESCRIPTION
from mfm_jax.data.records import digest, read_about
from mfm_jax.data.sources import ClipFiles
from mfm_jax.foley.clips import GRADES, FoleyClips
from mfm_jax.foley.contacts import count_hits, detect_contacts
from mfm_jax.foley.scores import WIDE
from mfm_jax.foley.world import SPLITS, read_events, write_world
from mfm_jax.inference.extract import extract
from mfm_jax.mapper import MapperConfig
from mfm_jax.media.audio import log_mel
from mfm_jax.models.listener import Listener
from mfm_jax.runtime.config import to_json
from mfm_jax.storage.files import write_text
from mfm_jax.storage.locks import one_at_a_time
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipes.mapper import MapperRecipe
from mfm_jax.train.recipes.sync import ONLY_ADAPTER, SyncRecipe
from miniature.claims import add_running
from miniature.measures import Line, counts_by_clip
from miniature.report import print_tables
from miniature.routes import COARSE
from miniature.runs import (
    Workspace,
    enable_compilation_cache,
    feature_description,
    keep_logs,
    run_all,
    train_bundle,
    training_config,
    weight_digests,
)
from miniature.scores import Waves, hear, open_clips
from miniature.sounds import KnownClip, Synthesiser, without_adapter
from miniature.stages import SOUND, Stage, copy_sound_networks, run_stages, write_report
from miniature.stream_report import report
from miniature.systems import CEILING, ENCODERS, PAPER, STEMS, SYSTEMS, Budget, System

WIDTH = 48
"""Width inside the adapter."""
POSITIONS = 256
"""Tokens that a mapper has room for: those of all streams, and LOA."""
MAPPER_RATE, ADAPTER_RATE = 1.5e-3, 2e-3
"""Learning rates."""
LINEAR_RATE, LINEAR_STEPS_FACTOR = 1e-2, 3
"""Learning rate of linear mappers, and how many times the steps they get, since they are cheap."""

BASE_CLIPS = (("bundle", "bundle"), ("source.folder", "../tiny"))
"""Folders of a stage that learns from the clips of the base grade."""
ONE_GRID = ("pools=[[8,8]]", "pool_probs=[1.0]")
STAGES = (
    Stage("synchformer", "tiny_synchformer", folders=BASE_CLIPS),
    Stage("cavp", "hard_cavp"),
    Stage("timechat", "hard_timechat"),
    Stage("backbone", "tiny_unet", folders=BASE_CLIPS, overrides=ONE_GRID),
)
"""The networks that all systems start from; the last one is the UNet as AudioLDM2's was trained."""


@dataclass(frozen=True)
class Study:
    """Trains a mapper and an adapter for each system, each once."""

    workdir: Path  # beside the folder `tiny` of the base grade's clips
    budget: Budget

    @property
    def start(self) -> Path:
        """The bundle that every training starts from."""
        return self.workdir / "bundle"

    def prepare(self, jobs: int) -> None:
        """Train the networks of `STAGES` that are not trained yet, `jobs` at a time.

        Raises:
            StageError: a training failed, or was stopped; the same call continues from there.
        """
        copy_sound_networks(TINY_BUNDLE, self.start, [n for n in SOUND if n != "unet"])
        run_stages(self.workdir, STAGES, jobs=jobs)

    @property
    def features(self) -> Path:
        """Features of the windows of training and held-out videos, extracted if missing."""
        folder = self.workdir / "features"
        with one_at_a_time(folder):
            source = FoleyClips(
                str(self.workdir), grade="hard", train=self.budget.clips, heldout=64
            )
            every = source.clips(self.workdir)
            for part in ("train", "heldout"):
                names = (*ENCODERS, "audiomae", "vae")
                extract(
                    Bundle.open(self.start), getattr(every, part), folder / part,
                    batch=16, encoders=names, licence=source.data_licence,
                )  # fmt: skip
        return folder

    def encoders(self, streams: Sequence[str]) -> tuple[tuple[str, int, int], ...]:
        """Return the streams with the tokens of a window and their width."""
        fields = read_about(self.features / "train" / DESCRIPTION)["fields"]
        return tuple((name, *fields[name][0]) for name in streams)

    def trained(self, system: System, seed: int) -> Path:
        """Return the bundle with the mapper and the adapter of a system."""
        name, streams, is_linear = f"{system.folder}-{seed}", system.streams, system.kind != "gpt2"
        tiny = MapperConfig.tiny()
        network = replace(
            tiny, encoders=self.encoders(streams), loa=COARSE, kind=system.kind,
            gpt2=replace(tiny.gpt2, positions=POSITIONS),
            stems=tuple(n for n in STEMS if n in streams),
        )  # fmt: skip
        steps = round(system.share * self.budget.mapper) * (LINEAR_STEPS_FACTOR if is_linear else 1)
        source = ClipFiles(str(self.features), licence="Apache-2.0")
        config = training_config(
            MapperRecipe(bundle=str(self.start), source=source, network=network),
            OptimizerConfig(
                learning_rate=LINEAR_RATE if is_linear else MAPPER_RATE, warmup_steps=30
            ),
            steps=steps, batch=32, seed=seed,
        )  # fmt: skip
        mapper = train_bundle(config, self.workdir / f"mapper-{name}")
        config = training_config(
            SyncRecipe(bundle=str(mapper), source=source, width=WIDTH),
            OptimizerConfig(
                learning_rate=ADAPTER_RATE, warmup_steps=30, lr_multipliers=ONLY_ADAPTER
            ),
            steps=round(system.share * self.budget.adapter), batch=16, seed=seed,
        )  # fmt: skip
        return train_bundle(config, self.workdir / f"adapter-{name}")


@dataclass(frozen=True)
class StreamRun:
    """One system with one seed; without a system, the ceiling."""

    system: System | None
    seed: int
    study: Study

    @property
    def part(self) -> str:
        """The part of the experiment."""
        return "streams" if self.system else "ceiling"

    @property
    def name(self) -> str:
        """The system as tables show it."""
        return self.system.name if self.system else CEILING

    def key(self, workspace: Workspace) -> str:
        """Return a digest of what the scores depend on."""
        study = self.study
        names = (*ENCODERS, "audiomae", "unet", "vae", "vocoder", "listener")
        bundle = study.start if self.system else TINY_BUNDLE
        features = feature_description(study.features / "train")
        described = [self.name, self.seed, to_json(study.budget), features]
        return digest([*described, weight_digests(bundle, names)])[:16]


def hear_streams(run: StreamRun, workspace: Workspace) -> Line:
    """Train a system, make the sound of the test videos, and record the counts.

    Raises:
        Stopped: a signal came; the same call continues from there.
        UserError: training or scoring failed.
    """
    start, study = time.monotonic(), run.study
    bundle = study.trained(run.system, run.seed) if run.system else TINY_BUNDLE
    trained = time.monotonic()
    synthesiser = Synthesiser.open(bundle)
    if not run.system:
        synthesiser = replace(synthesiser, model=without_adapter(synthesiser.model))
    sampling = synthesiser.sampling._replace(steps=study.budget.sampler_steps)
    synthesiser = replace(synthesiser, sampling=sampling)
    clips, listener = _test(study)
    waves = list(synthesiser.sounds(clips, "video" if run.system else "loa"))
    counts = counts_by_clip(hear(listener, clips, waves)) | recalled(clips, waves)
    line: dict[str, Any] = {
        "key": run.key(workspace), "part": run.part, "name": run.name, "seed": run.seed,
        "counts": counts,
        "seconds": round(time.monotonic() - start, 1),
        "training_seconds": round(trained - start, 1),
    }  # fmt: skip
    if run.system == PAPER:
        others = waves[1:] + waves[:1]
        line["shuffled"] = counts_by_clip(hear(listener, clips, others)) | recalled(clips, others)
    workspace.append(line)
    return line


@lru_cache(maxsize=1)
def _test(study: Study) -> tuple[list[KnownClip], Listener]:
    """Return the test videos, made if they are missing, and the listener."""
    folder, start, count = study.workdir / "test_clips", SPLITS["test"].start, study.budget.sounds
    with one_at_a_time(folder):
        write_world(GRADES["hard"], range(start, start + count), folder, processes=2)
    return open_clips(folder, count), Bundle.open(TINY_BUNDLE).load("listener", jnp.float32)


def recalled(clips: Sequence[KnownClip], waves: Waves) -> dict[str, list[int]]:
    """Return how many visible and how many hidden contacts are heard within 100 ms, by clip."""
    counts: dict[str, list[int]] = {n: [] for n in ("seen", "seen_hit", "hidden", "hidden_hit")}
    for clip, wave in zip(clips, waves, strict=True):
        found = detect_contacts(np.asarray(log_mel(np.asarray(wave, np.float32))))
        events = read_events(clip.path)
        for part in ("seen", "hidden"):
            its = [event.time for event in events if event.hidden == (part == "hidden")]
            hits = count_hits(found, np.array(its), WIDE)
            counts[part].append(hits.true)
            counts[f"{part}_hit"].append(hits.hits)
    return counts


def add_streams(parser: argparse.ArgumentParser) -> None:
    """Add the options of `streams`."""
    parser.add_argument("--seeds", type=int, default=3, help="training runs of each system")
    parser.add_argument("--count", type=int, default=128, help="test videos that are scored")
    parser.add_argument(
        "--sets", type=int, nargs="+", choices=range(len(SYSTEMS)), default=range(len(SYSTEMS)),
        metavar="N", help="only these systems: "
        + "; ".join(f"{i} {system.name}" for i, system in enumerate(SYSTEMS)),
    )  # fmt: skip
    parser.add_argument(
        "--workdir",
        type=options.path,
        default=Path("runs"),
        help="folder of the base grade's clips (tiny) and of what is trained here (streams)",
    )
    add_running(parser)
    parser.set_defaults(run=run_streams)


def run_streams(args: argparse.Namespace) -> None:
    """Run what is missing, then write the report."""
    runs_folder = args.workdir
    enable_compilation_cache(str((runs_folder / "tiny" / "cache").absolute()))
    budget = Budget(sounds=args.count)
    study = Study(runs_folder / "streams", budget)
    study.prepare(args.jobs)
    workspace = Workspace(study.workdir, args.output / "streams.jsonl", "streams", study.start)
    study.features  # noqa: B018 - extracted first, by one process
    runs = [StreamRun(SYSTEMS[i], seed, study) for seed in range(args.seeds) for i in args.sets]
    runs.append(StreamRun(None, 0, study))
    lines = run_all(runs, workspace, jobs=args.jobs, execute=hear_streams)
    write_report(study.workdir, STAGES, args.output, "streams_", command=args.command_line)
    keep_logs(study.workdir, args.output / "streams_training")
    found = {"command": args.command_line, "sounds": args.count, **report(lines, budget)}
    write_text(args.output / "streams.json", json.dumps(found, indent=1) + "\n")
    print_tables(found["tables"])

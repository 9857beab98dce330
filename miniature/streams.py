"""Streams of video on the hard grade: what a third one adds where CAVP sees 4 frames a second.

The UNet knows AudioLDM2's grid of LOA alone, as that of `timing`, and is frozen. For each set of
streams a mapper is trained and then the adapter, and whole videos are scored. What all of them
start from is trained first: the video encoders, on the hard grade, and the UNet.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.cli import arguments as options
from mfm_jax.data.records import digest
from mfm_jax.foley.clips import GRADES, make_clips
from mfm_jax.foley.contacts import count_hits, detect_contacts
from mfm_jax.foley.scores import WIDE
from mfm_jax.foley.world import read_events
from mfm_jax.media.audio import log_mel
from mfm_jax.models.listener import Listener
from mfm_jax.runtime.config import to_json
from mfm_jax.storage.files import write_text
from mfm_jax.storage.paths import TINY_BUNDLE
from miniature.claims import add_running
from miniature.measures import SCORES, Line, counts_by_clip
from miniature.report import (
    Table,
    by_name,
    compare,
    gap_table,
    print_tables,
    shown,
    summary,
)
from miniature.runs import Workspace, enable_compilation_cache, run_all, weight_digests
from miniature.scores import Waves, hear, open_clips
from miniature.sounds import KnownClip, Synthesiser, without_adapter
from miniature.study import ENCODERS, PAPER_ENCODERS, Budget, Study, told

LABELS = {
    "cavp": "CAVP",
    "timechat": "TimeChat",
    "synchformer": "Synchformer",
    "motion": "motion",
    "moving": "what moves",
}
SETS = (
    PAPER_ENCODERS,
    ("cavp", "timechat", "synchformer"),
    ("cavp", "timechat", "motion"),
    ENCODERS,
    ("timechat", "motion"),
    ("cavp", "motion"),
    ("motion",),
    ("cavp", "timechat", "motion", "moving"),
    ("cavp", "timechat", "moving"),
)
"""The streams that are read; the first set is what the paper has."""
CEILING = "true LOA on (1, 8), the miniature's own UNet"


def label(streams: Sequence[str]) -> str:
    """Return a set of streams as tables show it."""
    return ", ".join(LABELS[name] for name in streams)


PAPER = label(SETS[0])
"""The set that all others are compared with."""


@dataclass(frozen=True)
class StreamRun:
    """One set of streams with one seed; without streams, the ceiling."""

    streams: tuple[str, ...]
    seed: int
    study: Study

    @property
    def part(self) -> str:
        """The part of the experiment."""
        return "streams" if self.streams else "ceiling"

    @property
    def name(self) -> str:
        """The set as tables show it."""
        return label(self.streams) or CEILING

    def key(self, workspace: Workspace) -> str:
        """Return a digest of what the scores depend on."""
        study, budget = self.study, self.study.budget
        sound = ("audiomae", "unet", "vae", "vocoder", "listener")
        if not self.streams:  # nothing is trained for it
            described = [self.name, budget.sounds, budget.sampler_steps]
            return digest([*described, weight_digests(TINY_BUNDLE, sound)])[:16]
        weights = weight_digests(study.start, (*self.streams, *sound))
        described = [self.name, self.seed, to_json(budget), study.described(self.streams)]
        return digest([*described, weights])[:16]


def hear_streams(run: StreamRun, workspace: Workspace) -> Line:
    """Train what a set of streams needs, make the sound of the test videos, and record the counts.

    Raises:
        Stopped: a signal came; the same call continues from there.
        UserError: training or scoring failed.
    """
    start, study = time.monotonic(), run.study
    bundle = study.trained(run.streams, run.seed) if run.streams else TINY_BUNDLE
    trained = time.monotonic()
    synthesiser = Synthesiser.open(bundle)
    if not run.streams:
        synthesiser = replace(synthesiser, model=without_adapter(synthesiser.model))
    sampling = synthesiser.sampling._replace(steps=study.budget.sampler_steps)
    synthesiser = replace(synthesiser, sampling=sampling)
    clips, listener = _test(study)
    waves = list(synthesiser.sounds(clips, "video" if run.streams else "loa"))
    counts = counts_by_clip(hear(listener, clips, waves)) | recalled(clips, waves)
    line: dict[str, Any] = {
        "key": run.key(workspace), "part": run.part, "name": run.name, "seed": run.seed,
        "counts": counts,
        "seconds": round(time.monotonic() - start, 1),
        "training_seconds": round(trained - start, 1),
    }  # fmt: skip
    if run.streams:
        others = waves[1:] + waves[:1]
        line["shuffled"] = counts_by_clip(hear(listener, clips, others)) | recalled(clips, others)
    workspace.append(line)
    return line


@lru_cache(maxsize=1)
def _test(study: Study) -> tuple[list[KnownClip], Listener]:
    """Return the test videos, made if they are missing, and the listener."""
    make_clips(GRADES["hard"], study.test_seeds, study.test_videos)
    clips = open_clips(study.test_videos, len(study.test_seeds))
    return clips, Bundle.open(TINY_BUNDLE).load("listener", jnp.float32)


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


def report(lines: Sequence[Line], budget: Budget) -> dict[str, Any]:
    """Return the contents of `streams.json`, without the command that made it."""
    found = by_name(lines)
    ceiling = found.pop(CEILING)
    floor = [{**line, "counts": line["shuffled"]} for line in lines if "shuffled" in line]
    rows = {
        name: {"seeds": [line["seed"] for line in its], **_measured(its, floor, ceiling)}
        for name, its in found.items()
    }
    paper = found.get(PAPER)
    gaps = {n: compare(its, paper) for n, its in found.items() if paper and n != PAPER}
    ablation = _ablation(found, gaps)
    bounds = {"shuffled": _measured(floor), CEILING: _measured(ceiling)}
    return {
        "budget": to_json(budget), "rows": rows, "bounds": bounds, "differences": gaps,
        "ablation": ablation,
        "tables": _tables(rows, bounds, gaps, ablation),
    }  # fmt: skip


def _measured(lines: Sequence[Line], *bounds: Sequence[Line]) -> dict[str, Any]:
    recall = {part: _recall(lines, part) for part in ("seen", "hidden")}
    return {"scores": summary(lines, *bounds), "recall": recall}


def _recall(lines: Sequence[Line], part: str) -> float:
    hits, every = (sum(sum(line["counts"][n]) for line in lines) for n in (f"{part}_hit", part))
    return hits / max(every, 1)


def _ablation(lines: Mapping[str, Sequence[Line]], from_paper: Mapping[str, Any]) -> dict[str, Any]:
    """Return what each stream adds: a set with it minus the set without, of those that ran.

    Args:
        from_paper: the differences of sets from the paper's, which are not computed again.
    """
    found = {}
    for streams in SETS:
        for name in streams:
            less = tuple(other for other in streams if other != name)
            more, fewer = label(streams), label(less)
            if less in SETS and {more, fewer} <= lines.keys():
                gap = from_paper[more] if fewer == PAPER else compare(lines[more], lines[fewer])
                found[f"{LABELS[name]}, beside {fewer}"] = gap
    return found


def _tables(
    rows: Mapping[str, Any],
    bounds: Mapping[str, Any],
    gaps: Mapping[str, Any],
    ablation: Mapping[str, Any],
) -> list[Table]:
    names = list(next(iter(rows.values()))["scores"])
    labels = [SCORES[name].label for name in names]
    scores = [
        [
            name,
            f"{row['scores']['event_f1']['normalised']:.2f}" if name in rows else "",
            *(shown(row["scores"][n]) for n in names),
            *(f"{row['recall'][part]:.2f}" for part in ("seen", "hidden")),
        ]
        for name, row in {**rows, **bounds}.items()
    ]
    head = ["streams", "event F1, normalised", *labels, "seen contacts", "hidden contacts"]
    one_more = {label(s) for s in SETS if {*SETS[0]} < {*s} and len(s) == len(SETS[0]) + 1}
    others = {name: gap for name, gap in gaps.items() if name not in one_more}
    tables = [
        {"title": "Streams", "columns": head, "rows": scores},
        gap_table(f"Differences from {PAPER} [95 %]", "streams", names, others),
        gap_table("What a stream adds [95 %]", "stream", names, ablation),
    ]
    return [table for table in tables if table["rows"]]


def add_streams(parser: argparse.ArgumentParser) -> None:
    """Add the options of `streams`."""
    parser.add_argument("--seeds", type=int, default=3, help="training runs of each set")
    parser.add_argument("--count", type=int, default=128, help="test videos that are scored")
    parser.add_argument(
        "--steps", type=int, default=Budget.adapter, help="training steps of each adapter"
    )
    parser.add_argument("--width", type=int, default=Budget.width, help="width inside each adapter")
    parser.add_argument(
        "--dilations", type=int, nargs="+", default=[1, 1], metavar="N",
        help="rows between those that each of an adapter's convolutions reads",
    )  # fmt: skip
    parser.add_argument(
        "--start", type=int, default=0, metavar="STEPS",
        help="steps in which an adapter's features predict latents, before the UNet uses them",
    )  # fmt: skip
    parser.add_argument(
        "--video-only", type=float, default=0.0, metavar="SHARE",
        help="of the clips, which adapters see without LOA",
    )  # fmt: skip
    parser.add_argument(
        "--clips", type=int, default=Budget.clips,
        help="videos that mappers and adapters are trained on",
    )  # fmt: skip
    parser.add_argument(
        "--kind",
        choices=("features", "attention"),
        default="features",
        help="what the adapter adds: (d) or (e) of timing",
    )
    parser.add_argument(
        "--sets", type=int, nargs="+", choices=range(len(SETS)), default=range(len(SETS)),
        metavar="N", help=f"only these sets, from 0 to {len(SETS) - 1}",
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
    budget = Budget(
        adapter=args.steps, width=args.width, sounds=args.count, kind=args.kind,
        dilations=tuple(args.dilations), start=args.start, video_only=args.video_only,
        clips=args.clips,
    )  # fmt: skip
    sets = [SETS[i] for i in args.sets]
    study = Study.reading(runs_folder / "streams", budget, sets)
    study.prepare(args.jobs)
    workspace = Workspace(study.workdir, args.output / "streams.jsonl", "streams", study.start)
    study.features  # noqa: B018 - extracted first, by one process
    if any(told(streams) != streams for streams in sets):
        study.further  # noqa: B018 - as well
    runs = [StreamRun(streams, seed, study) for seed in range(args.seeds) for streams in sets]
    runs.append(StreamRun((), 0, study))
    lines = run_all(runs, workspace, jobs=args.jobs, execute=hear_streams)
    name = "streams" if budget.name == Budget.kind else f"streams_{budget.name}"
    study.keep(args.output, name, command=args.command_line)
    found = {"command": args.command_line, "sounds": args.count, **report(lines, budget)}
    write_text(args.output / f"{name}.json", json.dumps(found, indent=1) + "\n")
    print_tables(found["tables"])

"""The right moment: routes to timing where the UNet is frozen and knows AudioLDM2's grid alone."""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.cli import arguments as options
from mfm_jax.data.features import FeatureSource
from mfm_jax.data.records import digest
from mfm_jax.data.sources import ClipFiles
from mfm_jax.foley.world import KINDS
from mfm_jax.mapper import MapperConfig, Streams, build_mapper
from mfm_jax.models.adapters import AdaptedUNet
from mfm_jax.models.audiomae import LOA
from mfm_jax.runtime.config import to_json
from mfm_jax.storage.files import new_folder, write_text
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.storage.weights import abstract, parameter_count
from mfm_jax.train.lora import LoRA
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipes.mapper import MapperRecipe
from mfm_jax.train.recipes.stage2 import WITH_LORA, Stage2Recipe
from mfm_jax.train.recipes.sync import ONLY_ADAPTER, SyncRecipe
from mfm_jax.typing import Float
from miniature.claims import add_running, prepare_features, prepare_test
from miniature.measures import SCORES, Line, Scorer, counts_by_clip, true_loa
from miniature.report import (
    Table,
    by_name,
    compare,
    gap_table,
    print_tables,
    shown,
    summary,
)
from miniature.routes import (
    COARSE,
    FINE,
    TRAINED,
    Backbone,
    GridSync,
    loa_stream,
    video_streams,
)
from miniature.runs import (
    Workspace,
    enable_compilation_cache,
    feature_description,
    predicted,
    run_all,
    train_bundle,
    train_once,
    training_config,
    weight_digests,
)
from miniature.scores import hear, open_clips
from miniature.sounds import Synthesiser
from miniature.stages import keep_logs

MAPPER_RATE, STAGE2_RATE, ADAPTER_RATE = 1.5e-3, 3e-4, 2e-3
"""Learning rates of stage 1, of stage 2 with LoRA, and of adapters."""
WIDTH = 48
"""Width inside an adapter of the tiny UNet."""
LORA_RANK, LORA_TARGETS = 8, ("*.attn2.?.kernel",)
TEST_CLIPS = 512


@dataclass(frozen=True)
class Budget:
    """The size of the experiment, the same for all routes."""

    backbone: int = 3600  # steps of the UNet
    mapper: int = 1000  # steps of stage 1, of every mapper
    steps: int = 600  # of what a route trains behind it
    sounds: int = 128  # test clips that are heard
    sampler_steps: int = 10


@dataclass(frozen=True)
class Made:
    """The networks of a route that make sound, and the LOA that they read of the test clips."""

    bundle: Path  # that the UNet comes from
    unet: Any
    mapper: Any  # its config has the times of LOA
    loa: Float[np.ndarray, "N L E"]
    parameters: int = 0  # trained behind stage 1, but for the mapper's
    streams: Streams | None = None  # that the adapter reads


@dataclass(frozen=True)
class Lab:
    """Trains the networks of routes, each once, and keeps each in a bundle of its own."""

    workdir: Path
    features: Path  # folders `train` and `heldout`
    test: Path  # features of the test clips
    videos: Path  # those clips
    budget: Budget

    @property
    def backbone(self) -> Path:
        """The bundle whose UNet knows one grid, trained if it is missing."""
        folder = self.workdir / "backbone"
        if not folder.exists():
            with new_folder(folder) as new:
                shutil.copytree(TINY_BUNDLE, new, dirs_exist_ok=True)
        optimizer = OptimizerConfig(learning_rate=1.5e-3, weight_decay=0.01, warmup_steps=100)
        recipe, steps = Backbone(source=self._source), self.budget.backbone
        config = training_config(recipe, optimizer, steps=steps, batch=16, seed=0)
        train_once(replace(config, ema_decay=0.998, eval_every=600), folder, TRAINED)
        return folder

    def mapper(self, name: str, loa: LOA, seed: int) -> Path:
        """Return the bundle with a mapper of these grids after stage 1."""
        network = replace(MapperConfig.tiny(), loa=loa)
        recipe = MapperRecipe(bundle=str(self.backbone), source=self._source, network=network)
        optimizer = OptimizerConfig(learning_rate=MAPPER_RATE, warmup_steps=30)
        return self._trained(name, recipe, optimizer, self.budget.mapper, 32, seed)

    def adapter(self, reads: str, kind: str, seed: int) -> Path:
        """Return the bundle with an adapter that reads the "video" or LOA's finer "grid"."""
        recipe = {"video": SyncRecipe, "grid": GridSync}[reads](
            bundle=str(self.mapper("coarse", COARSE, seed)),
            source=self._source,
            kind=kind,
            width=WIDTH,
        )
        optimizer, steps = self._behind(ONLY_ADAPTER, ADAPTER_RATE)
        return self._trained(f"{reads}-{kind}", recipe, optimizer, steps, 16, seed)

    def lora(self, seed: int) -> Path:
        """Return the bundle of stage 2 with LoRA, for the finer grid."""
        start = self.mapper("fine", FINE, seed)
        recipe = Stage2Recipe(bundle=str(start), source=self._source, lora_rank=LORA_RANK)
        optimizer, steps = self._behind(WITH_LORA, STAGE2_RATE)
        return self._trained("lora", recipe, optimizer, steps, 16, seed)

    @property
    def _source(self) -> ClipFiles:
        return ClipFiles(str(self.features), licence="Apache-2.0")

    def _behind(self, trained: Any, rate: float) -> tuple[OptimizerConfig, int]:
        optimizer = OptimizerConfig(learning_rate=rate, warmup_steps=30, lr_multipliers=trained)
        return optimizer, self.budget.steps

    def _trained(
        self, name: str, recipe: Any, optimizer: OptimizerConfig, steps: int, batch: int, seed: int
    ) -> Path:
        config = training_config(recipe, optimizer, steps=steps, batch=batch, seed=seed)
        return train_bundle(config, self.workdir / f"{name}-{seed}")


def of_mapper(lab: Lab, mapper: Path, unet: Path, parameters: int = 0) -> Made:
    """Return a route whose LOA comes from the mapper of one bundle, for the UNet of another."""
    network, sound = Bundle.open(mapper).load("mapper", jnp.float32), Bundle.open(unet)
    loa = predicted(network, MapperRecipe(bundle=str(mapper), network=network.config), lab.test)
    return Made(unet, sound.load("unet", jnp.float32), network, loa, parameters)


def coarse(lab: Lab, seed: int) -> Made:
    """LOA on the grid that the UNet knows: what the paper's description gives."""
    return of_mapper(lab, lab.mapper("coarse", COARSE, seed), lab.backbone)


def fine(lab: Lab, seed: int) -> Made:
    """A finer grid into the UNet as it is."""
    return of_mapper(lab, lab.mapper("fine", FINE, seed), lab.backbone)


def lora(lab: Lab, seed: int) -> Made:
    """The finer grid, and stage 2 with LoRA on the attention that reads it."""
    bundle = lab.lora(seed)
    factors = partial(LoRA, Bundle.open(bundle).abstract("unet"), LORA_TARGETS, LORA_RANK)
    return of_mapper(lab, bundle, bundle, parameter_count(abstract(factors)))


def adapted(made: Made, bundle: Path, streams: Streams) -> Made:
    """Return a route with the adapter of a bundle, and what it reads."""
    adapter = Bundle.open(bundle).load("adapter", jnp.float32)
    unet = AdaptedUNet(made.unet, adapter)
    count = parameter_count(adapter)
    return replace(made, bundle=bundle, unet=unet, parameters=count, streams=streams)


def video(kind: str, lab: Lab, seed: int) -> Made:
    """An adapter that reads the tokens of the video encoders; LOA is that of `coarse`."""
    streams = video_streams(lab.test, MapperConfig.tiny().streams)
    return adapted(coarse(lab, seed), lab.adapter("video", kind, seed), streams)


def grid(kind: str, lab: Lab, seed: int) -> Made:
    """An adapter that reads LOA of the finer grid, from a mapper of its own."""
    streams = loa_stream(fine(lab, seed).loa)
    return adapted(coarse(lab, seed), lab.adapter("grid", kind, seed), streams)


def true(loa: LOA, kind: str, lab: Lab, seed: int) -> Made:
    """LOA of the true sound in place of a mapper's: what the route reaches with a perfect one."""
    unet = Bundle.open(lab.backbone).load("unet", jnp.float32)
    network = build_mapper(replace(MapperConfig.tiny(), loa=loa), rngs=nnx.Rngs(0))
    made = Made(lab.backbone, unet, network, true_loa(lab.test, loa))
    if not kind:
        return made
    adapter = lab.adapter("grid", kind, seed)
    return replace(adapted(made, adapter, loa_stream(true_loa(lab.test, FINE))), parameters=0)


ROUTES: Mapping[str, Callable[[Lab, int], Made]] = {
    "(a) mapper on (8, 8)": coarse,
    "(b) mapper on (1, 8)": fine,
    "(c) (b) with LoRA": lora,
    "(d) features of the video": partial(video, "features"),
    "(e) attention to the video": partial(video, "attention"),
    "(f) features of LOA on (1, 8)": partial(grid, "features"),
    "(g) attention to LOA on (1, 8)": partial(grid, "attention"),
}
"""The routes by the names that tables show."""
CEILINGS: Mapping[str, Callable[[Lab, int], Made]] = {
    "true LOA, (8, 8)": partial(true, COARSE, ""),
    "true LOA, (1, 8)": partial(true, FINE, ""),
    "true LOA, (f)": partial(true, COARSE, "features"),
    "true LOA, (g)": partial(true, COARSE, "attention"),
}
PAPER = "(a) mapper on (8, 8)"
"""The route that all others are compared with."""


@dataclass(frozen=True)
class RouteRun:
    """One route with one seed."""

    name: str
    seed: int
    lab: Lab
    part: str = "routes"  # or "ceiling"

    def key(self, workspace: Workspace) -> str:
        """Return a digest of what the scores depend on."""
        features = [feature_description(f) for f in (self.lab.features / "train", self.lab.test)]
        return digest([self.name, self.seed, to_json(self.lab.budget), features])[:16]


def hear_route(run: RouteRun, workspace: Workspace) -> Line:
    """Train what a route needs, make the sound of the test clips, and record what is heard.

    Raises:
        Stopped: a signal came; the same call continues from there.
        UserError: training or scoring failed.
    """
    start, lab = time.monotonic(), run.lab
    made = {**ROUTES, **CEILINGS}[run.name](lab, run.seed)
    trained = time.monotonic()
    scorer = _scorer(lab)
    synthesiser = scorer.synthesiser
    networks = synthesiser.model.networks._replace(unet=made.unet, mapper=made.mapper)
    model = replace(synthesiser.model, networks=networks)
    scorer = replace(scorer, synthesiser=replace(synthesiser, model=model))
    waves = scorer.sounds(made.loa, made.streams)
    unet = [weight_digests(bundle, ("unet",)) for bundle in (made.bundle, lab.backbone)]
    line = {
        "key": run.key(workspace), "part": run.part, "name": run.name, "seed": run.seed,
        "parameters": made.parameters, "unet_unchanged": unet[0] == unet[1],
        "counts": counts_by_clip(hear(scorer.listener, scorer.clips, waves)),
        "kinds": [clip.kind for clip in scorer.clips],
        "seconds": round(time.monotonic() - start, 1),
        "training_seconds": round(trained - start, 1),
    }  # fmt: skip
    workspace.append(line)
    return line


@lru_cache(maxsize=1)
def _scorer(lab: Lab) -> Scorer:
    """Return what makes and hears the sound of the test clips, with the backbone's networks."""
    synthesiser = Synthesiser.open(lab.backbone)
    source, clips = FeatureSource(lab.test), open_clips(lab.videos)
    by_name = {clip.path.stem: clip for clip in clips}
    count = min(lab.budget.sounds, len(source))
    nothing = np.zeros(0, np.float32)
    return Scorer(
        replace(
            synthesiser, sampling=synthesiser.sampling._replace(steps=lab.budget.sampler_steps)
        ),
        Bundle.open(lab.backbone).load("listener", jnp.float32),
        [by_name[source.id_of(i)] for i in range(count)],
        nothing, nothing, nothing,  # LOA is not scored here
    )  # fmt: skip


def report(lines: Sequence[Line], budget: Budget) -> dict[str, Any]:
    """Return the contents of `timing.json`, without the command that made it."""
    found = by_name(lines)
    rows = {
        name: {
            "parameters": its[0]["parameters"],
            "seeds": [line["seed"] for line in its],
            "unet_unchanged": all(line["unet_unchanged"] for line in its),
            "scores": summary(its),
        }
        for name, its in found.items()
    }
    gaps = {
        name: compare(its, found[PAPER])
        for name, its in found.items()
        if name in ROUTES and name != PAPER and PAPER in found
    }
    return {
        "budget": to_json(budget), "rows": rows, "differences": gaps,
        "tables": [*_tables(rows, gaps), _by_kind(found)],
    }  # fmt: skip


def _tables(rows: Mapping[str, Any], gaps: Mapping[str, Any]) -> list[Table]:
    """Return the tables of scores, and of differences from what the paper describes."""
    names = list(next(iter(rows.values()))["scores"])
    labels = [SCORES[name].label for name in names]
    scores = [
        [name, row["parameters"] or "", "yes" if row["unet_unchanged"] else "no"]
        + [shown(row["scores"][n]) for n in names]
        for name, row in rows.items()
    ]
    head = ["route", "parameters", "UNet unchanged"]
    return [
        {"title": "Routes", "columns": [*head, *labels], "rows": scores},
        gap_table(f"Differences from {PAPER} [95 %]", "route", names, gaps),
    ]  # fmt: skip


def _by_kind(found: Mapping[str, Sequence[Line]]) -> Table:
    """Return the table of event F1 by the motion of the first body."""
    rows = []
    for name, lines in found.items():
        row: list[Any] = [name]
        for kind in KINDS:
            here = np.array([k == kind for k in lines[0]["kinds"]])
            hits, heard, true = (
                sum(np.array(line["counts"][count])[here].sum() for line in lines)
                for count in ("event_hits", "found", "true")
            )
            row.append(f"{2 * hits / max(heard + true, 1):.3f}")
        rows.append(row)
    return {"title": "Event F1 by motion", "columns": ["route", *KINDS], "rows": rows}


def add_timing(parser: argparse.ArgumentParser) -> None:
    """Add the options of `timing`."""
    parser.add_argument("--seeds", type=int, default=3, help="training runs of each route")
    parser.add_argument("--count", type=int, default=128, help="test clips whose sound is scored")
    parser.add_argument(
        "--routes", nargs="+", metavar="LETTER", help="only these, such as a e, and no ceilings"
    )
    parser.add_argument(
        "--workdir",
        type=options.path,
        default=Path("runs"),
        help="folder of clips and features (tiny) and of the routes (timing)",
    )
    add_running(parser)
    parser.set_defaults(run=run_timing)


def run_timing(args: argparse.Namespace) -> None:
    """Run what is missing, then write the report."""
    tiny = args.workdir / "tiny"
    enable_compilation_cache(str(tiny.absolute() / "cache"))
    workspace = Workspace(tiny, args.output / "timing.jsonl", "timing")
    prepare_features(workspace)
    budget = Budget(sounds=args.count)
    test = prepare_test(workspace, TEST_CLIPS)
    lab = Lab(args.workdir / "timing", workspace.features, test, tiny / "test_clips", budget)
    lab.backbone  # noqa: B018 - trained first, by all threads
    wanted = [n for n in ROUTES if not args.routes or n[1] in args.routes]
    runs = [RouteRun(name, seed, lab) for seed in range(args.seeds) for name in wanted]
    if not args.routes:
        runs += [RouteRun(name, 0, lab, "ceiling") for name in CEILINGS]
    name = "_".join(["timing", *sorted(args.routes or [])])
    lines = run_all(runs, workspace, jobs=args.jobs, execute=hear_route)
    keep_logs(lab.workdir, args.output / "timing_training")
    found = {"command": args.command_line, "sounds": args.count, **report(lines, budget)}
    write_text(args.output / f"{name}.json", json.dumps(found, indent=1) + "\n")
    print_tables(found["tables"])

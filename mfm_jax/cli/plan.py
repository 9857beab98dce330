"""`mfm plan`: what a training step or generation needs on TPUs that are not attached."""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mfm_jax.cli import arguments as options
from mfm_jax.cli import toplevel
from mfm_jax.errors import SettingError, UsageError

FAR = "DCN MB"
"""The column of bytes between slices, which a table of single slices leaves out."""
COLUMNS = (
    "slice", "program", "chips", "clips", "PFLOP", "GFLOP/chip", "alike", "GB/chip", "FLOP/B",
    "sent MB", FAR, "peak GB", "free", "ms", "bound by", "scaling",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Compile a training step (--config) or generation for slices of TPUs that are not "
        "attached. The table shows memory, arithmetic, communication and a bound on the time."
    )
    options.add_config(parser, "a training step: a file, or the name of a shipped config")
    parser.add_argument(
        "--topology",
        nargs="+",
        required=True,
        metavar="SLICE",
        help="such as v5e:4x4, v5p:4x4x4 or v6e:16x16",
    )
    parser.add_argument(
        "--slices",
        type=options.at_least_one,
        default=1,
        metavar="N",
        help="so many slices of each kind, with a network between them (DCN); default: 1",
    )
    options.add_bundle(parser)
    parser.add_argument(
        "--released", action="store_true", help="the sizes of the released networks: no bundle"
    )
    parser.add_argument(
        "--batch", type=options.at_least_one, help="clips in a step; default: the config's, or 64"
    )
    parser.add_argument(
        "--per-chip",
        type=options.at_least_one,
        help="clips per chip in place of --batch: the table shows scaling",
    )
    parser.add_argument(
        "--only", nargs="+", metavar="PROGRAM", help="programs of generation, such as mapper"
    )
    parser.add_argument(
        "--json", type=options.path, metavar="FILE", help="also write the table there"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table; return 1 where a program does not fit."""
    import jax

    from mfm_jax.bundle import Bundle
    from mfm_jax.plan.roofline import SPARE, DoesNotFit, Estimate, estimate
    from mfm_jax.runtime.progress import Progress
    from mfm_jax.storage.files import check_folder, check_target, write_text

    if args.json is not None:
        check_folder(args.json.parent)
        if args.json.parent.exists():
            check_target(args.json)
    config = None if args.config is None else toplevel.read_config(args.config, args.set)
    if config is None and not args.released:
        Bundle.open(args.bundle)
    # Nothing runs: JAX need not take this machine's accelerators, or their memory.
    jax.config.update("jax_platforms", "cpu")
    rows: list[dict[str, Any]] = []
    tight = []
    with tempfile.TemporaryDirectory() as folder, Progress(None, "programs") as progress:
        for name in args.topology:
            programs, layout, chip, clips = _programs(args, config, name, Path(folder) / "bundle")
            for program in programs:
                row: dict[str, Any] = {"slice": name, "slices": args.slices, "clips": clips}
                try:
                    found: Estimate = estimate(program, layout, chip)
                    row |= found.to_json()
                    if found.memory.free < SPARE:
                        free = f"{program.name} leaves {found.memory.free:.0%} free"
                        tight.append(f"{_slices(row)}: {free}")
                except DoesNotFit as error:
                    row |= {"program": program.name, "does_not_fit": str(error)}
                rows.append(row)
                progress.advance()
                _scale(rows)
                if args.json is not None:  # after each program, because one takes minutes
                    write_text(args.json, json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    for line in tight:
        print(f"{line} of a chip's memory: less than {SPARE:.0%}")
    return 1 if any("does_not_fit" in row for row in rows) else 0


def _programs(args: argparse.Namespace, config: Any, topology: str, folder: Path):
    """Return the programs to compile for a slice, its layout, its chip and the clips in a step."""
    from mfm_jax.bundle import Bundle
    from mfm_jax.cost.chips import chip_of
    from mfm_jax.inference.programs import generation
    from mfm_jax.plan.programs import tpu_slices, training
    from mfm_jax.plan.released import write_released
    from mfm_jax.plan.scores import desync
    from mfm_jax.runtime.config import override
    from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh

    devices = tpu_slices(topology, args.slices)
    chip = chip_of(devices[0].device_kind)
    if chip is None:
        raise SettingError(f"no figures of a {devices[0].device_kind}: add it to cost/chips.py")
    batch = args.batch if args.per_chip is None else args.per_chip * len(devices)
    if args.released and not folder.exists():
        write_released(folder)
    if config is None:
        bundle = Bundle.open(folder if args.released else args.bundle)
        fields = override(MeshConfig(), (item.removeprefix("mesh.") for item in args.set))
        layout = Layout(make_mesh(fields, devices))
        programs = generation(bundle, layout, batch=batch or 64)
        if "synchformer" in bundle.entries:
            programs.append(desync(bundle, layout, batch=batch or 64))
        return _chosen(programs, args.only), layout, chip, batch or 64
    if args.only is not None:
        raise UsageError("--only chooses among the programs of generation: leave out --config")
    if args.released:
        config = replace(config, recipe=replace(config.recipe, bundle=str(folder)))
    if batch is not None:
        config = replace(config, batch=batch)
    layout = Layout(make_mesh(config.mesh, devices))
    return [training(config, layout)], layout, chip, config.batch


def _chosen(programs: list[Any], only: Sequence[str] | None) -> list[Any]:
    """Return the programs of these names, or all."""
    names = [program.name for program in programs]
    for name in only or ():
        if name not in names:
            raise UsageError(f"--only: there is no program {name!r}, but {', '.join(names)}")
    return [program for program in programs if only is None or program.name in only]


def _scale(rows: Sequence[dict[str, Any]]) -> None:
    """Add to each row its speed per chip relative to the first slice of its kind."""
    first: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if "seconds" not in row:
            continue
        kind = row["slice"].split(":")[0]
        base = first.setdefault((row["program"], kind), row)
        alike = row["clips"] * base["devices"] == base["clips"] * row["devices"]
        if row is not base and alike:
            base["scaling"] = 1.0
            row["scaling"] = base["seconds"]["slowest"] / row["seconds"]["slowest"]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table, and below it the programs that do not fit."""
    several = any(row["slices"] > 1 for row in rows)
    shown = [i for i, column in enumerate(COLUMNS) if several or column != FAR]
    lines = [f"| {' | '.join(COLUMNS[i] for i in shown)} |", f"|{' --- |' * len(shown)}"]
    lines += [f"| {' | '.join(cells[i] for i in shown)} |" for cells in map(_cells, rows)]
    lines += [f"{_slices(row)}: {row['does_not_fit']}" for row in rows if "does_not_fit" in row]
    return "\n".join(lines)


def _slices(row: dict[str, Any]) -> str:
    return row["slice"] if row["slices"] == 1 else f"{row['slices']} x {row['slice']}"


def _cells(row: dict[str, Any]) -> list[str]:
    if "does_not_fit" in row:
        head = [_slices(row), row["program"], "", str(row["clips"]), "does not fit"]
        return head + [""] * (len(COLUMNS) - len(head))
    from mfm_jax.cost.hlo import BETWEEN_SLICES

    seconds, sent = row["seconds"], row["sent_bytes"]
    far = sum(size for kind, size in sent.items() if kind.startswith(BETWEEN_SLICES))
    return [
        _slices(row),
        row["program"],
        str(row["devices"]),
        str(row["clips"]),
        f"{row['flops'] / 1e15:.3g}",
        f"{row['flops_per_device'] / 1e9:.0f}",
        f"{row['flops_alike']:.1%}",
        f"{row['bytes_per_device'] / 1e9:.2f}",
        f"{row['flops_per_byte']:.0f}",
        f"{(sum(sent.values()) - far) / 1e6:.0f}",
        f"{far / 1e6:.0f}" if row["slices"] > 1 else "",
        f"{row['peak_bytes'] / 1e9:.2f}",
        f"{row['memory_free']:.0%}",
        f"{seconds['fastest'] * 1e3:.1f} to {seconds['slowest'] * 1e3:.1f}",
        row["bound_by"],
        f"{row['scaling']:.1%}" if "scaling" in row else "",
    ]

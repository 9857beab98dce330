"""Turns the lines of `streams` into a report."""

from collections.abc import Mapping, Sequence
from typing import Any

from mfm_jax.runtime.config import to_json
from miniature.measures import SCORES, Line
from miniature.report import Table, by_name, compare, gap_table, shown, summary
from miniature.systems import CEILING, CLAIMS, LABELS, PAPER, SYSTEMS, Budget, System


def report(lines: Sequence[Line], budget: Budget) -> dict[str, Any]:
    """Return the contents of `streams.json`, without the command that made it."""
    found = by_name(lines)
    ceiling = found.pop(CEILING)
    floor = [{**line, "counts": line["shuffled"]} for line in found[PAPER.name]]
    rows = {
        name: {
            "seeds": [line["seed"] for line in its],
            "scores": summary(its, floor, ceiling),
            "recall": {part: _recall(its, part) for part in ("seen", "hidden")},
        }
        for name, its in found.items()
    }
    gaps = {
        name: compare(its, found[PAPER.name]) for name, its in found.items() if name != PAPER.name
    }
    ablation, claims = _ablation(found), _claims(found)
    bounds = {"shuffled": summary(floor), CEILING: summary(ceiling)}
    return {
        "budget": to_json(budget), "rows": rows, "bounds": bounds, "differences": gaps,
        "ablation": ablation, "claims": claims,
        "tables": _tables(rows, bounds, gaps, ablation, claims),
    }  # fmt: skip


def _recall(lines: Sequence[Line], part: str) -> float:
    hits, every = (sum(sum(line["counts"][n]) for line in lines) for n in (f"{part}_hit", part))
    return hits / max(every, 1)


def _ablation(lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
    """Return what each stream adds: a system with it minus the one without, of those that ran."""
    plain = {system.streams: system.name for system in SYSTEMS if system == System(system.streams)}
    found = {}
    for streams, ours in plain.items():
        for name in streams:
            less = tuple(other for other in streams if other != name)
            if less in plain and {ours, plain[less]} <= lines.keys():
                gap = compare(lines[ours], lines[plain[less]])
                found[f"{LABELS[name]}, beside {plain[less]}"] = gap
    return found


def _claims(lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
    """Return the comparisons that the paper's claims are about, of those that ran."""
    return {
        f"({claim}) {ours.name} minus {theirs.name}": compare(lines[ours.name], lines[theirs.name])
        for claim, ours, theirs in CLAIMS
        if {ours.name, theirs.name} <= lines.keys()
    }


def _tables(
    rows: Mapping[str, Any],
    bounds: Mapping[str, Any],
    gaps: Mapping[str, Any],
    ablation: Mapping[str, Any],
    claims: Mapping[str, Any],
) -> list[Table]:
    names = list(next(iter(rows.values()))["scores"])
    labels = [SCORES[name].label for name in names]
    scores = [
        [
            name, f"{row['scores']['event_f1']['normalised']:.2f}",
            *(shown(row["scores"][n]) for n in names),
            *(f"{row['recall'][part]:.2f}" for part in ("seen", "hidden")),
        ]
        for name, row in rows.items()
    ]  # fmt: skip
    scores += [[name, "", *(shown(its[n]) for n in names), "", ""] for name, its in bounds.items()]
    head = ["system", "event F1, normalised", *labels, "seen contacts", "hidden contacts"]
    tables = [
        {"title": "Streams", "columns": head, "rows": scores},
        gap_table(f"Differences from {PAPER.name} [95 %]", "system", names, gaps),
        gap_table("What a stream adds [95 %]", "stream", names, ablation),
        gap_table("The claims with three encoders [95 %]", "comparison", names, claims),
    ]
    return [table for table in tables if table["rows"]]

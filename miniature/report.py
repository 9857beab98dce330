"""From the lines of runs to what is said of them: means, differences, verdicts, tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from miniature.measures import SCORES, Line, ratio, scored
from miniature.runs import Run, by_place
from miniature.scores import normalised
from miniature.statistics import difference, smallest_share

OURS, SINGLE = "dual, gpt2", ("cavp", "timechat")
LINEAR = ("linear_pooled", "linear_flat")
HEADLINES = {
    "a": [(OURS, f"{one}{twice}, gpt2") for twice in ("", " twice") for one in SINGLE],
    "b": [(OURS, f"dual, {kind}") for kind in LINEAR],
}
"""Pairs (ours, theirs) that a claim is about."""
BESIDES = {
    "a": [(f"dual, {kind}", f"{one}, {kind}") for kind in LINEAR for one in SINGLE],
    "b": [(f"{one}, gpt2", f"{one}, {kind}") for one in SINGLE for kind in LINEAR],
}
"""The same asked of other mappers and encoders."""
CURVES = ("event_f1", "onset_f1_100", "material", "loa_error")
"""The scores of claim (c)."""

Lines = Sequence[Line]
Table = dict[str, Any]


def tidy(value: float) -> float | None:
    """Five digits; JSON has no number for what is none."""
    return round(float(value), 5) if math.isfinite(value) else None


def summary(lines: Lines, floor: Lines = (), ceiling: Lines = ()) -> dict[str, dict[str, Any]]:
    """Of each score the mean over seeds, the deviation, and the share of floor to ceiling."""
    found = {}
    for name in scored(lines[0]):
        values = ratio(lines, name).values
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        found[name] = {"mean": tidy(values.mean()), "spread": tidy(spread)}
        if floor and ceiling:
            ends = [float(ratio(end, name).values.mean()) for end in (floor, ceiling)]
            found[name]["normalised"] = tidy(normalised(float(values.mean()), *ends))
    return found


def compare(ours: Lines, theirs: Lines) -> dict[str, dict[str, Any]]:
    """Of each score ours less theirs, over the seeds that both have."""
    seeds = sorted({x["seed"] for x in ours} & {x["seed"] for x in theirs})
    pairs = [[next(x for x in side if x["seed"] == s) for s in seeds] for side in (ours, theirs)]
    found = {}
    for name in scored(ours[0]):
        gap = difference(ratio(pairs[0], name), ratio(pairs[1], name))
        found[name] = {
            "difference": tidy(gap.value),
            "low": tidy(gap.low),
            "high": tidy(gap.high),
            "verdict": gap.verdict(higher=SCORES[name].higher),
        }
    return found


def together(verdicts: Sequence[str]) -> str:
    """Of a claim that makes several comparisons: it holds if all do and fails if one does."""
    if "fails" in verdicts:
        return "fails"
    return "holds" if all(v == "holds" for v in verdicts) else "undecided"


def claim(name: str, systems: Mapping[str, Lines]) -> dict[str, Any]:
    """Claim "a" or "b": its comparisons, and the verdict of each score over the first of them."""

    def compared(pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        return [
            {"ours": x, "theirs": y, "scores": compare(systems[x], systems[y])} for x, y in pairs
        ]

    main = compared(HEADLINES[name])
    verdicts = {
        score: together([pair["scores"][score]["verdict"] for pair in main])
        for score in main[0]["scores"]
    }
    return {"verdicts": verdicts, "comparisons": main, "besides": compared(BESIDES[name])}


def training_needed(found: Mapping[tuple, Lines]) -> dict[str, Any]:
    """Claim "c": curves of ours, and the smallest share that is as good as the earlier mapper.

    The target is the mean of the better of the two linear mappers of CAVP alone, at its full
    budget. The claim holds for a score if ours is better with less than all of the training,
    beyond doubt, and fails if it is worse even with all of it.
    """
    earlier = {kind: found["systems", f"cavp, {kind}", 1.0] for kind in LINEAR}
    result: dict[str, Any] = {"targets": {}, "curves": {}, "smallest": {}, "verdicts": {}}
    for name in CURVES:
        higher = SCORES[name].higher
        means = {kind: float(ratio(lines, name).values.mean()) for kind, lines in earlier.items()}
        best = (max if higher else min)(means, key=lambda kind: means[kind])
        result["targets"][name] = {**{k: tidy(v) for k, v in means.items()}, "best": best}
        for part in ("clips", "steps"):
            curve = _curve(found, part, name, earlier[best])
            result["curves"].setdefault(part, {})[name] = curve
            values = {point["share"]: point["mean"] for point in curve}
            shares = {
                kind: smallest_share(values, target, higher=higher)
                for kind, target in (means | {"best": means[best]}).items()
            }
            result["smallest"].setdefault(part, {})[name] = {
                kind: None if share is None else round(100 * share, 2)
                for kind, share in shares.items()
            }
            result["verdicts"].setdefault(part, {})[name] = _less_is_enough(curve)
    return result


def _curve(
    found: Mapping[tuple, Lines], part: str, name: str, earlier: Lines
) -> list[dict[str, Any]]:
    """A point for each share: the score of ours, and how it differs from the earlier mapper."""
    points = []
    for share in sorted(share for its, _, share in found if its == part):
        lines = found[part, OURS, share]
        values = ratio(lines, name).values
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        point = {"share": share, "number": lines[0][part], "mean": float(values.mean())}
        points.append({**point, "spread": tidy(spread), **compare(lines, earlier)[name]})
    return points


def _less_is_enough(curve: Sequence[Mapping[str, Any]]) -> str:
    if any(p["verdict"] == "holds" and p["share"] < 1 for p in curve):
        return "holds"
    return "fails" if curve[-1]["verdict"] == "fails" else "undecided"


def claims_report(runs: Sequence[Run], lines: Lines) -> dict[str, Any]:
    """All of `claims.json` but what it was made from."""
    found = by_place(runs, lines)
    systems = {name: its for (part, name, _), its in found.items() if part == "systems"}
    ceiling = found["ceiling", "true LOA", 1.0]
    floor = [{"seed": x["seed"], "counts": x["shuffled"]} for x in systems[OURS]]
    about = {
        name: {
            **{field: its[0][field] for field in ("parameters", "rate", "steps")},
            "seeds": [x["seed"] for x in its],
            "scores": summary(its, floor, ceiling),
        }
        for name, its in systems.items()
    }
    ends = {"shuffled": summary(floor), "true LOA": summary(ceiling)}
    claims = {name: claim(name, systems) for name in ("a", "b")}
    claims["c"] = training_needed(found)
    tables = [*_system_tables(about, ends), *_claim_tables(claims), *_training_tables(claims["c"])]
    seconds = sum(x["seconds"] for x in {x["key"]: x for x in lines}.values())
    return {
        "seconds": round(seconds, 1), "systems": about, "ends": ends,
        "claims": claims, "tables": tables,
    }  # fmt: skip


def shown(score: Mapping[str, Any]) -> str:
    """A mean with its deviation."""
    return f"{score['mean']:.3f} ± {score['spread']:.3f}"


def shown_gap(gap: Mapping[str, Any]) -> str:
    """A difference with its interval and, if it is of a claim, the verdict."""
    text = (
        f"{gap['difference']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}] {gap.get('verdict', '')}"
    )
    return text.rstrip()


def share_shown(share: float | None) -> str:
    """A normalised score; empty where floor and ceiling are the same."""
    return "" if share is None else f"{share:.3f}"


def _system_tables(about: Mapping[str, Any], ends: Mapping[str, Any]) -> list[Table]:
    names = list(next(iter(about.values()))["scores"])
    labels = [SCORES[name].label for name in names]
    rows = [
        [name, its["parameters"], its["rate"], its["steps"]]
        + [shown(its["scores"][n]) for n in names]
        for name, its in about.items()
    ]
    rows += [[name, "", "", "", *(shown(its[n]) for n in names)] for name, its in ends.items()]
    shares = [
        [name, *(share_shown(its["scores"][n]["normalised"]) for n in names)]
        for name, its in about.items()
    ]
    head = ["encoders, mapper", "parameters", "rate", "steps"]
    return [
        {"title": "Systems", "columns": [*head, *labels], "rows": rows},
        {"title": "From shuffled (0) to true LOA (1)", "columns": [head[0], *labels],
         "rows": shares},
    ]  # fmt: skip


def _claim_tables(claims: Mapping[str, Any]) -> list[Table]:
    titles = {
        "a": "Claim (a): two encoders beat one",
        "b": "Claim (b): GPT-2 beats a linear mapper",
    }
    tables = []
    for name, title in titles.items():
        its = claims[name]
        scores = list(its["verdicts"])
        rows = [
            [f"{pair['ours']} against {pair['theirs']}"]
            + [shown_gap(pair["scores"][score]) for score in scores]
            for pair in its["comparisons"] + its["besides"]
        ]
        rows.insert(len(its["comparisons"]), ["all above", *its["verdicts"].values()])
        columns = ["difference [95 %]", *(SCORES[score].label for score in scores)]
        tables.append({"title": title, "columns": columns, "rows": rows})
    return tables


def _training_tables(needed: Mapping[str, Any]) -> list[Table]:
    tables = []
    for part, curves in needed["curves"].items():
        smallest, verdicts = needed["smallest"][part], needed["verdicts"][part]
        points = next(iter(curves.values()))
        rows = [
            [f"{100 * point['share']:g} %", point["number"]]
            + [f"{curves[n][i]['mean']:.3f} ± {curves[n][i]['spread']:.3f}" for n in CURVES]
            for i, point in enumerate(points)
        ]
        for kind in LINEAR:
            rows.append(
                [f"cavp, {kind}", "", *(f"{needed['targets'][n][kind]:.3f}" for n in CURVES)]
            )
        for kind in (*LINEAR, "best"):
            rows.append(
                [f"% of {part} to reach {kind}", ""]
                + ["none" if (x := smallest[n][kind]) is None else f"{x:g}" for n in CURVES]
            )
        rows.append(["less is enough", "", *(verdicts[n] for n in CURVES)])
        columns = [f"share of {part}", part, *(SCORES[n].label for n in CURVES)]
        title = f"Claim (c): the share of {part} that {OURS} needs"
        tables.append({"title": title, "columns": columns, "rows": rows})
    return tables


def print_tables(tables: Sequence[Table]) -> None:
    """As plain text, a column each."""
    for table in tables:
        rows = [[str(cell) for cell in row] for row in (table["columns"], *table["rows"])]
        wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
        print(f"\n{table['title']}")
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, wide, strict=True))
            print("  ".join(cells).rstrip(), flush=True)

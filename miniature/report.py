"""Turns the lines of runs into a report: means, differences, verdicts and tables."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from miniature.measures import SCORES, Line, available_scores, ratio
from miniature.runs import Run, group_lines
from miniature.scores import normalised
from miniature.statistics import difference, smallest_share

OURS, SINGLE = "dual, gpt2", ("cavp", "timechat")
LINEAR = ("linear_pooled", "linear_flat")
PRIMARY = {
    "a": [(OURS, f"{one}{twice}, gpt2") for twice in ("", " twice") for one in SINGLE],
    "b": [(OURS, f"dual, {kind}") for kind in LINEAR],
}
"""Comparisons (ours, theirs) that decide a claim."""
SECONDARY = {
    "a": [(f"dual, {kind}", f"{one}, {kind}") for kind in LINEAR for one in SINGLE],
    "b": [(f"{one}, gpt2", f"{one}, {kind}") for one in SINGLE for kind in LINEAR],
}
"""The same comparisons with other mappers and encoders."""
CURVES = ("event_f1", "onset_f1_100", "material", "loa_error")
"""Scores that claim (c) is decided by."""

Lines = Sequence[Line]
Table = dict[str, Any]


def rounded(value: float) -> float | None:
    """Return `value` with five digits, or None for JSON if it is not finite."""
    return round(float(value), 5) if math.isfinite(value) else None


def summary(lines: Lines, floor: Lines = (), ceiling: Lines = ()) -> dict[str, dict[str, Any]]:
    """Return the mean and standard deviation of each score over seeds.

    With a floor and a ceiling, also the score on a scale from 0 (floor) to 1 (ceiling).
    """
    found = {}
    for name in available_scores(lines[0]):
        values = ratio(lines, name).values
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        found[name] = {"mean": rounded(values.mean()), "spread": rounded(spread)}
        if floor and ceiling:
            bounds = [float(ratio(bound, name).values.mean()) for bound in (floor, ceiling)]
            found[name]["normalised"] = rounded(normalised(float(values.mean()), *bounds))
    return found


def by_name(lines: Lines) -> dict[str, list[Line]]:
    """Return the lines of each name, in the order in which the names first come."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        found.setdefault(line["name"], []).append(line)
    return found


def gap_table(title: str, first: str, names: Sequence[str], gaps: Mapping[str, Any]) -> Table:
    """Return a table of comparisons that `compare` made, by their names.

    Args:
        first: title of the column of these names.
        names: of the scores that are shown.
    """
    return {
        "title": title,
        "columns": [first, *(SCORES[n].label for n in names)],
        "rows": [[name, *(shown_gap(gap[n]) for n in names)] for name, gap in gaps.items()],
    }


def compare(ours: Lines, theirs: Lines) -> dict[str, dict[str, Any]]:
    """Return ours minus theirs for each score, over the seeds that both have."""
    seeds = sorted({x["seed"] for x in ours} & {x["seed"] for x in theirs})
    pairs = [[next(x for x in side if x["seed"] == s) for s in seeds] for side in (ours, theirs)]
    found = {}
    for name in available_scores(ours[0]):
        gap = difference(ratio(pairs[0], name), ratio(pairs[1], name))
        found[name] = {
            "difference": rounded(gap.value),
            "low": rounded(gap.low),
            "high": rounded(gap.high),
            "verdict": gap.verdict(higher=SCORES[name].higher),
        }
    return found


def combine_verdicts(verdicts: Sequence[str]) -> str:
    """Return the verdict on a claim from its comparisons: all must hold, and one can fail it."""
    if "fails" in verdicts:
        return "fails"
    return "holds" if all(v == "holds" for v in verdicts) else "undecided"


def claim(name: str, systems: Mapping[str, Lines]) -> dict[str, Any]:
    """Return the comparisons of claim "a" or "b", and its verdict for each score."""

    def compared(pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        return [
            {"ours": x, "theirs": y, "scores": compare(systems[x], systems[y])} for x, y in pairs
        ]

    main = compared(PRIMARY[name])
    verdicts = {
        score: combine_verdicts([pair["scores"][score]["verdict"] for pair in main])
        for score in main[0]["scores"]
    }
    return {"verdicts": verdicts, "comparisons": main, "secondary": compared(SECONDARY[name])}


def training_needed(found: Mapping[tuple, Lines]) -> dict[str, Any]:
    """Return the result of claim "c": our curves, and the smallest share that reaches the target.

    The target is the mean score of the better of the two linear mappers of CAVP alone, fully
    trained. The claim holds for a score if ours is significantly better with less than all of the
    training, and fails if ours is significantly worse with all of it.
    """
    earlier = {kind: found["systems", f"cavp, {kind}", 1.0] for kind in LINEAR}
    result: dict[str, Any] = {"targets": {}, "curves": {}, "smallest": {}, "verdicts": {}}
    for name in CURVES:
        higher = SCORES[name].higher
        means = {kind: float(ratio(lines, name).values.mean()) for kind, lines in earlier.items()}
        best = (max if higher else min)(means, key=lambda kind: means[kind])
        result["targets"][name] = {**{k: rounded(v) for k, v in means.items()}, "best": best}
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
    """Return a point for each share: our score, and its difference from the earlier mapper's."""
    points = []
    for share in sorted(share for its, _, share in found if its == part):
        lines = found[part, OURS, share]
        values = ratio(lines, name).values
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        point = {"share": share, "number": lines[0][part], "mean": float(values.mean())}
        points.append({**point, "spread": rounded(spread), **compare(lines, earlier)[name]})
    return points


def _less_is_enough(curve: Sequence[Mapping[str, Any]]) -> str:
    if any(p["verdict"] == "holds" and p["share"] < 1 for p in curve):
        return "holds"
    return "fails" if curve[-1]["verdict"] == "fails" else "undecided"


def claims_report(runs: Sequence[Run], lines: Lines) -> dict[str, Any]:
    """Return the contents of `claims.json`, without the command that made it."""
    found = group_lines(runs, lines)
    systems = {name: its for (part, name, _), its in found.items() if part == "systems"}
    ceiling = found["ceiling", "true LOA", 1.0]
    floor = [{"seed": x["seed"], "counts": x["shuffled"]} for x in systems[OURS]]
    about = {
        name: {
            **{field: its[0][field] for field in ("parameters", "learning_rate", "steps")},
            "seeds": [x["seed"] for x in its],
            "scores": summary(its, floor, ceiling),
        }
        for name, its in systems.items()
    }
    bounds = {"shuffled": summary(floor), "true LOA": summary(ceiling)}
    claims = {name: claim(name, systems) for name in ("a", "b")}
    claims["c"] = training_needed(found)
    tables = [
        *_system_tables(about, bounds),
        *_claim_tables(claims),
        *_training_tables(claims["c"]),
    ]
    seconds = sum(x["seconds"] for x in {x["key"]: x for x in lines}.values())
    return {
        "seconds": round(seconds, 1), "systems": about, "bounds": bounds,
        "claims": claims, "tables": tables,
    }  # fmt: skip


def shown(score: Mapping[str, Any]) -> str:
    """Return a table cell with a mean and its standard deviation."""
    return f"{score['mean']:.3f} ± {score['spread']:.3f}"


def shown_gap(gap: Mapping[str, Any]) -> str:
    """Return a table cell with a difference, its interval and, if there is one, the verdict."""
    text = (
        f"{gap['difference']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}] {gap.get('verdict', '')}"
    )
    return text.rstrip()


def share_shown(share: float | None) -> str:
    """Return a table cell with a normalised score; empty if floor and ceiling are equal."""
    return "" if share is None else f"{share:.3f}"


def _system_tables(about: Mapping[str, Any], bounds: Mapping[str, Any]) -> list[Table]:
    names = list(next(iter(about.values()))["scores"])
    labels = [SCORES[name].label for name in names]
    rows = [
        [name, its["parameters"], its["learning_rate"], its["steps"]]
        + [shown(its["scores"][n]) for n in names]
        for name, its in about.items()
    ]
    rows += [[name, "", "", "", *(shown(its[n]) for n in names)] for name, its in bounds.items()]
    shares = [
        [name, *(share_shown(its["scores"][n]["normalised"]) for n in names)]
        for name, its in about.items()
    ]
    head = ["encoders, mapper", "parameters", "learning rate", "steps"]
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
            for pair in its["comparisons"] + its["secondary"]
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
    """Print tables as plain text with aligned columns."""
    for table in tables:
        rows = [[str(cell) for cell in row] for row in (table["columns"], *table["rows"])]
        wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
        print(f"\n{table['title']}")
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, wide, strict=True))
            print("  ".join(cells).rstrip(), flush=True)

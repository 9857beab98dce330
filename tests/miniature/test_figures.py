"""The figures show the recorded results, and the report about them quotes what they hold."""

import json

import pytest

from mfm_jax.cli import main
from mfm_jax.storage.paths import TINY_BUNDLE
from miniature.document import RESULTS
from miniature.figures import CHAIN, FIGURES, POOLS, chain, claims, grid, reader, timing, training
from tests.docs.blocks import ROOT

found = reader(ROOT / RESULTS)
REPORT, TIMING = (
    (ROOT / "docs" / f"{name}.md").read_text() for name in ("miniature_report", "timing")
)


def test_the_chain_has_a_bar_for_each_sound_and_grade():
    (axis,) = chain(found).axes
    heights = [bar.get_height() for bar in axis.patches]
    scores = [found(name)["scores"] for name in ("scores", "hard_scores")]
    assert heights == [side[way]["event_f1"] for side in scores for way in CHAIN]


def test_the_claims_have_a_row_for_each_comparison():
    figure = claims(found)
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows[0] == "(a) over CAVP"
    assert rows[-1] == "(b) over a linear map of all tokens"
    for axis in figure.axes:
        assert len(axis.lines) == 2 * len(rows) + 1


def test_the_grid_ends_with_the_default():
    (axis,) = grid(found).axes
    mapper = axis.containers[1][0].get_ydata()
    default = next(row for row in found("unknowns")["rows"] if row["change"] == "default")
    assert len(mapper) == len(POOLS)
    assert mapper[-1] == default["scores"]["event_f1"]["mean"]


def test_stage_2_goes_on_where_stage_1_ended():
    (axis,) = training(found).axes
    first, second = (line.get_data() for line in axis.lines[:2])
    assert (first[0][-1], first[1][-1]) == (second[0][0], pytest.approx(second[1][0]))


def test_the_routes_to_timing_are_points_in_the_order_of_the_table():
    rows = found("timing")["rows"]
    axes = timing(found).axes
    assert [label.get_text() for label in axes[0].get_yticklabels()] == list(rows)
    for axis, score in zip(axes, ("event_f1", "material", "onset_f1_100"), strict=True):
        points = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "o"]
        assert points == [row["scores"][score]["mean"] for row in rows.values()]


def test_all_of_them_are_in_the_reports_and_a_lost_result_is_one_line(tmp_path, capsys):
    for name in FIGURES:
        assert f"(miniature/figure_{name}.png)" in REPORT + TIMING
    assert main(["miniature", "figures", "--results", str(tmp_path)]) == 2
    assert "there is no result scores" in capsys.readouterr().err


def test_the_report_quotes_the_results():
    """Numbers of the text, from the files that its tables and figures are made of."""
    base, hard, fast = (found(f"{grade}scores")["scores"] for grade in ("", "hard_", "hard_fast_"))
    decided = found("claims")["claims"]
    a, b = ([c["scores"] for c in decided[claim]["comparisons"]] for claim in "ab")
    systems = {name: s["scores"] for name, s in found("claims")["systems"].items()}
    curve = decided["c"]["curves"]["clips"]["event_f1"]
    best = decided["c"]["targets"]["event_f1"]["linear_flat"]
    rows = {row["change"]: row for row in found("unknowns")["rows"]}
    ceilings = found("unknowns")["ceilings"]
    components = json.loads((TINY_BUNDLE / "bundle.json").read_text())["components"]

    def f1(score):
        return f"{score['event_f1']:.2f}".removeprefix("0")

    def gap(comparison, name="event_f1"):
        return f"{comparison[name]['difference']:.2f}".removeprefix("0")

    def recall(system):
        return f"{systems[system]['recall_1']['mean']:.3f}".removeprefix("0")

    def grid(pool):
        return f"{ceilings[f'true LOA, pool {pool}']['event_f1']['mean']:.2f}".removeprefix("0")

    for words in (
        f"reaches {f1(base['video'])} of event F1 where true LOA reaches {f1(base['loa'])}",
        f"reaches {f1(hard['video'])} of {f1(hard['loa'])}",
        f"recipe reaches {f1(fast['video'])}",
        f"either one in event F1 by {gap(a[0])} and more",
        f"rises by {gap(a[0])} over CAVP alone, by {gap(a[2])} over",
        f"by {gap(a[1])} over TimeChat",
        f"linear mapper by {gap(b[0])}, and a linear map of all tokens by {gap(b[1])}",
        f"event F1 +{gap(b[1])},",
        f"material +{gap(b[1], 'material')})",
        f"({recall('dual, linear_flat')} against {recall('dual, gpt2')})",
        f"4 % of the clips ({curve[0]['number']}) event F1 is {curve[0]['mean']:.2f}".replace(
            "0.", "."
        ),
        f"with all {curve[-1]['number']} is {best:.2f}".replace("0.", "."),
        f"reaches only {grid((8, 8))}:",
        f"it reaches {grid((1, 8))}.",
        *(
            f"| {components[name]['parameters'] / 1e6:.2f} M |"
            for name in ("cavp", "timechat", "audiomae", "unet", "mapper")
        ),
    ):
        assert words in " ".join(REPORT.split()), words
    assert len(rows) - 1 == 15  # "fifteen changes"

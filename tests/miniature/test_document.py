"""The tables of the document are those of the results."""

import json
from pathlib import Path

import pytest

from mfm_jax.data.clips import DataError
from miniature.__main__ import main
from miniature.document import DOCUMENTS, NOT_RUN, RESULTS, block, fill, markdown, number

ROOT = Path(__file__).parents[2]
TEXT = "# Title\n\n<!-- begin one -->\nold\n<!-- end one -->\n\nBetween.\n\n<!-- begin scores -->\n"
TEXT += "<!-- end scores -->\nAfter.\n"
TABLE = {"title": "A table", "columns": ["name", "value"], "rows": [["a|b", 1.5], [None, "0.20"]]}


def write(folder, name, found):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(found))


def some_scores(event_f1):
    return {
        "onset_f1_50": 0.91, "onset_f1_100": 0.92, "material": 0.8, "event_f1": event_f1,
        "log_mel": 0.4321, "onsets_per_second": 1.1,
    }  # fmt: skip


def test_a_block_is_its_tables_and_what_made_them(tmp_path):
    found = {"command": "python -m miniature x --count 3", "seconds": 61.7, "tables": [TABLE]}
    write(tmp_path, "one", {**found, "figure": "x.png"})
    filled = fill(TEXT, tmp_path)
    assert "old" not in filled
    assert "**A table**\n\n| name | value |\n| --- | --- |\n| a\\|b | 1.5 |\n|  | 0.20 |" in filled
    assert "Made by `python -m miniature x --count 3`, 62 s\n" in filled
    assert f"![one]({tmp_path.name}/x.png)" in filled
    assert filled.startswith("# Title\n\n<!-- begin one -->\n")
    assert "<!-- end one -->\n\nBetween.\n" in filled
    assert filled.endswith(f"<!-- begin scores -->\n{NOT_RUN}\n<!-- end scores -->\nAfter.\n")
    assert fill(filled, tmp_path) == filled
    del found["seconds"]
    write(tmp_path, "one", found)
    assert "count 3`\n" in fill(filled, tmp_path)


def test_the_name_of_a_result_may_have_numbers(tmp_path):
    write(tmp_path, "one_1-2_0.4", {"tables": [TABLE]})
    text = "<!-- begin one_1-2_0.4 -->\n<!-- end one_1-2_0.4 -->\n"
    assert "**A table**" in fill(text, tmp_path)


def test_scores_are_shown_by_way_and_by_kind(tmp_path):
    video = some_scores(0.7) | {"bounce": some_scores(0.75), "roll": some_scores(0.25)}
    real = some_scores(0.99) | {"bounce": some_scores(1.0), "roll": some_scores(0.9)}
    apart = {name: 0.5 for name in some_scores(0) if name != "onsets_per_second"}
    # Without audible ends the share is no number.
    scores = {"video": video, "normalised": apart | {"log_mel": float("nan")}, "real": real}
    write(tmp_path, "scores", {"command": "c", "seconds": 5, "scores": scores})
    text = block(tmp_path, "scores")
    assert "| real | 0.910 | 0.920 | 0.800 | 0.990 | 0.432 | 1.100 |" in text
    assert "| normalised | 0.500 | 0.500 | 0.500 | 0.500 |  |  |" in text
    assert "| sound | bounce: event F1 | bounce: onset F1 100 ms | roll: event F1 |" in text
    assert "| video | 0.750 | 0.920 | 0.250 | 0.920 |" in text
    assert text.index("| real |") < text.index("| video |") < text.index("| normalised |")
    assert "shuffled" not in text


@pytest.mark.parametrize(
    "text",
    [
        "<!-- begin one -->\n",
        "<!-- begin one -->\n<!-- end two -->\n",
        "<!-- begin one -->\n<!-- begin two -->\n<!-- end two -->\n<!-- end one -->\n",
        "<!-- end one -->\n<!-- begin one -->\n",
    ],
    ids=["no end", "another's end", "one in another", "end first"],
)
def test_blocks_that_are_none_are_refused(tmp_path, text):
    with pytest.raises(DataError, match="block"):
        fill(text, tmp_path)


@pytest.mark.parametrize(
    "written",
    ["{", "[]", "{}", '{"tables": [{"title": "x", "columns": ["a"], "rows": [[1, 2]]}]}'],
    ids=["cut off", "a list", "nothing", "a row too long"],
)
def test_a_damaged_result_is_named(tmp_path, written):
    (tmp_path / "one.json").write_text(written)
    with pytest.raises(DataError, match=r"one\.json is not a result"):
        block(tmp_path, "one")


def test_check_tells_what_writing_would_change(tmp_path, capsys):
    document, results = tmp_path / "d.md", tmp_path / "results"
    document.write_text(TEXT)
    arguments = ["report", "--document", str(document), "--results", str(results)]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--check"])
    assert "out of date" in str(stopped.value.code)  # a text exits with 1
    assert document.read_text() == TEXT
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    write(results, "one", {"tables": [TABLE]})
    with pytest.raises(SystemExit):
        main([*arguments, "--check"])
    document.unlink()
    assert main(arguments) == 2
    assert "does not exist" in capsys.readouterr().err


def test_numbers():
    assert number(0.12345) == "0.123"
    assert number(-61.25, 1) == "-61.2"
    assert number(None) == number(float("nan")) == ""
    assert markdown({**TABLE, "rows": []}).splitlines()[-1] == "| --- | --- |"


def test_the_documents_say_what_the_results_say():
    results = ROOT / RESULTS
    texts = [(ROOT / document).read_text() for document in DOCUMENTS]
    assert [fill(text, results) for text in texts] == texts, "run python -m miniature report"
    for path in results.glob("*.json"):
        shown = [text for text in texts if f"<!-- begin {path.stem} -->" in text]
        assert shown, f"{path.name} is shown nowhere"

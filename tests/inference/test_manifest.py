"""Manifests say for each video what is wanted, or in one line which of their lines is wrong."""

import json
from pathlib import Path

import pytest

from mfm_jax.errors import UserError
from mfm_jax.inference.inputs import expand
from mfm_jax.inference.requests import Request, targets

DEFAULT = Request(Path(), prompt="rain", seed=3)


def written(path, text):
    path.write_text(text, encoding="utf-8")
    return [str(path)]


def test_a_csv_and_json_lines_say_the_same(tmp_path):
    rows = [
        {"file": "a.mp4", "start": 1.5, "end": 4, "prompt": "a dog", "seed": 2**64 - 1},
        {"file": "sub/b.mp4", "negative_prompt": 'wind, "loud"', "output": "x/y.wav"},
        {"file": "/c.mp4", "label": "not read", "output": "z"},
    ]
    names = ["file", "start", "end", "prompt", "negative_prompt", "seed", "output", "label"]
    cells = [[str(row.get(name, "")).replace('"', '""') for name in names] for row in rows]
    table = "\n".join(",".join(f'"{cell}"' for cell in line) for line in [names, *cells])
    in_csv = expand(written(tmp_path / "m.csv", "\ufeff" + table + "\n"), DEFAULT)
    in_json = expand(
        written(tmp_path / "m.jsonl", "\n\n".join(json.dumps(row) for row in rows)), DEFAULT
    )
    assert in_csv == in_json
    assert in_csv == [
        Request(tmp_path / "a.mp4", 1.5, 4.0, "a dog", None, 2**64 - 1),
        Request(tmp_path / "sub/b.mp4", 0.0, None, "rain", 'wind, "loud"', 3, "x/y.wav"),
        Request(Path("/c.mp4"), 0.0, None, "rain", None, 3, "z"),
    ]
    assert targets(in_csv, tmp_path / "out", "mkv") == [
        tmp_path / "out" / name for name in ("a@1.5.mkv", "x/y.wav", "z.mkv")
    ]


def test_a_manifest_goes_with_files_and_nothing_is_asked_twice(tmp_path):
    (tmp_path / "a.mp4").touch()
    manifest = written(tmp_path / "m.csv", "file,seed\na.mp4,\na.mp4,1\n")
    found = expand([str(tmp_path / "a.mp4"), *manifest])
    assert found == [Request(tmp_path / "a.mp4"), Request(tmp_path / "a.mp4", seed=1)]
    with pytest.raises(UserError, match=r"would both become .*a\.mp4"):
        targets(found, tmp_path / "out", None)


WRONG = {
    "m.csv": {
        "": "no column 'file'",
        "name\na.mp4\n": "its first line has name",
        "file\n": "asks for nothing",
        "file,start\na.mp4,-1\n": "line 2: start '-1' is no number of seconds",
        "file,start\na.mp4,0\nb.mp4,nan\n": "line 3: start 'nan'",
        "file,start,end\na.mp4,2,2\n": "it ends at 2 s and starts at 2 s",
        "file,seed\na.mp4,1.5\n": "line 2: seed '1.5' is no whole number",
        "file,seed\na.mp4,-1\n": r"line 2: seed must be from 0 to 2\*\*64 - 1",
        "file,promt\na.mp4,x\n": "'promt' is not known: do you mean 'prompt'",
        "file,output\na.mp4,../x\n": "does not lie below",
        "file,output\na.mp4,/x\n": "does not lie below",
        "file,output\na.mp4,.x.mp4\n": "does not lie below",
        "file,seed\n,1\n": "no file is named",
        "file,seed\na.mp4,1,2\n": "line 2 has more cells than columns",
        'file,seed\n"a.mp4,1\n': "is no manifest",
    },
    "m.jsonl": {
        "[1]": "line 1 is no JSON object",
        '{"file": "a.mp4"}\n{"file": ': "line 2 is no JSON",
        '{"file": 1}': "file is 1, not text",
        '{"file": "a.mp4", "prompt": ["x"]}': "prompt is .* not text",
        '{"file": "a.mp4", "start": true}': "start True is no number",
        '{"file": "a.mp4", "seed": 1.0}': "seed 1.0 is no whole number",
        "[" * 100_000: "m.jsonl",
    },
}


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in WRONG.items() for text in texts]
)
def test_a_wrong_line_is_named(tmp_path, name, text):
    with pytest.raises(UserError, match=WRONG[name][text]) as caught:
        expand(written(tmp_path / name, text))
    assert str(tmp_path / name) in str(caught.value)


def test_a_manifest_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        expand([str(tmp_path / "m.csv")])

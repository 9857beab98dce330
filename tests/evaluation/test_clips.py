"""Sounds are found and paired by name, and what does not match is counted and named."""

from pathlib import Path

import pytest

from mfm_jax.errors import UserError
from mfm_jax.evaluation.clips import Sound, list_sounds, pair, system_names


def folder(place, *names):
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    return place


def paired(real, **systems):
    def sides(names):
        return {name: Sound(Path(name)) for name in names.split()}

    return pair(sides(real), {k: sides(v) for k, v in systems.items()}, {k: k for k in systems})


def test_a_folder_has_its_sounds_and_videos_by_name(tmp_path):
    made = folder(tmp_path, "b.mp4", "a.WAV", "sub/c.d.flac", ".hidden.mp4", "generated.jsonl")
    assert list(list_sounds(made)) == ["a", "b", "sub/c.d"]


def test_a_manifest_names_clips_as_generate_names_its_outputs(tmp_path):
    lines = "file,start,end,output\nx.mp4,1.5,3,\nx.mp4,,,\nx.mp4,,,sub/y.wav\nx.mp4,,,v1.2\n"
    (tmp_path / "m.csv").write_text(lines)
    found = list_sounds(tmp_path / "m.csv")
    assert list(found) == ["x@1.5", "x", "sub/y", "v1.2"]
    assert (found["x@1.5"].start, found["x@1.5"].seconds) == (1.5, 1.5)
    assert found["x"].seconds is None


def test_one_name_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.mp4 and .*a\.wav are both called 'a'"):
        list_sounds(folder(tmp_path, "a.wav", "a.mp4"))


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ("a b", r"made lacks 1 of 3 clips \(c\): give"),
        ("a b c d", r"made has 1 clip \(d\) that the reference lacks"),
        ("x y", r"lacks 3 of 3 clips \(a, b, c\) and has 2 clips \(x, y\) that"),
        (
            "a b c " + " ".join(f"x{i}" for i in range(8)),
            r"8 clips \(x0, x1, x2, x3, x4 and 3 more",
        ),
    ],
)
def test_missing_and_extra_clips_are_counted_and_named(made, told):
    with pytest.raises(UserError, match=told):
        paired("a b c", made=made)


def test_the_digest_is_that_of_the_names():
    one, two = paired("a b", x="b a"), paired("b a", x="a b", y="a b")
    assert one.names == ("a", "b")
    assert one.digest == two.digest != paired("a c", x="a c").digest


def test_systems_have_names(tmp_path):
    (tmp_path / "p=q").mkdir()
    found = system_names(["ours=runs/a", "runs/b", "clips.csv", str(tmp_path / "p=q")])
    assert list(found) == ["ours", "b", "clips", "p=q"]
    assert found["ours"] == Path("runs/a")
    for wrong in (["a/x", "b/x"], ["reference=x"]):
        with pytest.raises(UserError, match="name this one as NAME="):
            system_names(wrong)

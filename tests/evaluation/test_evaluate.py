"""`mfm evaluate` from folders to a report, without networks and with those of the miniature."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mfm_jax.cli import main
from mfm_jax.errors import UserError
from mfm_jax.evaluation.evaluate import EvaluationError, evaluate
from mfm_jax.media.write import write_frames
from mfm_jax.storage.paths import TINY_BUNDLE

RATE = 16_000
NAMES = ("a", "b", "c")


def sound(seed, late=0.0, rate=RATE, pitch=0, seconds=1.2):
    """Return a strike at a time of its own, and `late`; its pitch is that of `seed + pitch`."""
    t = np.arange(round(seconds * rate)) / rate - 0.4 - 0.15 * seed - late
    return (
        (t >= 0)
        * 0.5
        * np.exp(-20 * np.maximum(t, 0))
        * np.sin(2 * np.pi * 400 * ((seed + pitch) % 3 + 1) * t)
    )


@pytest.fixture
def folders(tmp_path):
    """Real sounds, the same ones as another format and rate, and late ones of a wrong pitch."""
    for name, suffix, rate, late, pitch in (
        ("real", "wav", RATE, 0.0, 0),
        ("same", "flac", 44_100, 0.0, 0),
        ("late", "wav", RATE, 0.2, 1),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        for seed, clip in enumerate(NAMES):
            wave = sound(seed, late, rate, pitch)
            soundfile.write(tmp_path / name / f"{clip}.{suffix}", wave, rate)
    return tmp_path


def rows(file: Path):
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def test_two_systems_make_a_report(folders, capsys):
    out = folders / "report"
    words = [f"same={folders}/same", f"late={folders}/late", "--reference", str(folders / "real")]
    assert main(["evaluate", *words, "-o", str(out), "--published"]) == 0
    printed = capsys.readouterr().out
    assert "Onset F1, 0.1 s" in printed
    assert "index.html: 3 clips" in printed
    report = json.loads((out / "report.json").read_text())
    figures = report["figures"]
    assert figures["same"]["onset_f1_100"]["value"] == 1
    assert figures["late"]["onset_f1_100"]["value"] == 0
    assert figures["late"]["onset_f1_300"]["value"] > 0
    assert figures["same"]["ssim"]["value"] > figures["late"]["ssim"]["value"]
    assert "onset_f1_100" not in figures["reference"]
    assert figures["reference"]["silent"] == figures["same"]["silent"]
    (gaps,) = report["comparisons"]
    assert (gaps["system"], gaps["against"]) == ("late", "same")
    assert gaps["scores"]["onset_f1_100"]["value"] == -1
    protocol = report["protocol"]
    assert protocol["clips"] == 3
    assert len(protocol["clip_list_sha256"]) == 64
    assert protocol["sides"]["same"]["rates"] == {"44100": 3}
    assert protocol["command"].startswith("mfm evaluate")
    assert any("other sample rates" in note for note in report["notes"])
    assert any(row["what"] == "DeSync" for row in report["not_computed"])
    clips = rows(out / "clips.csv")
    assert len(clips) == 9
    assert {row["system"] for row in clips} == {"same", "late", "reference"}
    assert len(rows(out / "summary.csv")) > 40
    assert len(list((out / "media").iterdir())) == 18
    assert "NaN" not in (out / "report.json").read_text()


def test_in_a_store_the_report_is_that_of_the_same_files_here(folders, bucket, copies, capsys):
    for file in folders.rglob("*.*"):
        (bucket / file.relative_to(folders)).put(file)
    for place in (folders, bucket):
        (place / "clips.csv").write_text("file\nlate/a.wav\nlate/b.wav\nlate/c.wav\n")
        words = [f"same={place}/same", f"late={place}/clips.csv", "--reference", f"{place}/real"]
        assert main(["evaluate", *words, "-o", f"{place}/report"]) == 0
        assert f"{place}/report/index.html: " in capsys.readouterr().out
    here, there = (json.loads((p / "report/report.json").read_bytes()) for p in (folders, bucket))
    assert there["figures"] == here["figures"]
    for side, its in there["protocol"]["sides"].items():
        assert its["content_sha256"] == here["protocol"]["sides"][side]["content_sha256"]
        assert its["source"].startswith(str(bucket))
    names = sorted(str(p.relative_to(folders)) for p in folders.glob("report/**/*") if p.is_file())
    assert sorted(str(p.relative_to(bucket)) for p in (bucket / "report").files()) == names
    assert not [file for file in copies.rglob("*") if file.is_file()]
    (bucket / "late/b.wav").write_text("no sound")
    with pytest.raises(EvaluationError, match=rf"b: {bucket}/late/b\.wav is not a readable"):
        evaluate(bucket / "late", bucket / "real", bucket / "report")
    with pytest.raises(UserError, match=r"late holds files and no earlier report"):
        evaluate(bucket / "late", bucket / "real", bucket / "late")


def test_one_clip_has_no_interval_and_reports_replace_reports(folders):
    out = folders / "report"
    for name in NAMES[1:]:
        (folders / "real" / f"{name}.wav").unlink()
        (folders / "same" / f"{name}.flac").unlink()
    for _ in range(2):
        report = evaluate(folders / "same", folders / "real", out)
    figure = report.figures["same"]["onset_f1_100"]
    assert (figure.value, figure.low, figure.n) == (1, None, 1)
    assert sorted(p.name for p in out.iterdir()) == [
        "clips.csv", "index.html", "media", "report.json", "summary.csv",
    ]  # fmt: skip
    assert not [p for p in folders.iterdir() if p.name.startswith(".")]


def test_a_clip_that_cannot_be_read_is_named_and_the_others_are_done(folders):
    (folders / "late" / "b.wav").write_text("no sound")
    with pytest.raises(EvaluationError, match=r"b: .*b\.wav is not a readable sound") as error:
        evaluate(folders / "late", folders / "real", folders / "report")
    assert [clip.name for clip in error.value.report.clips] != []
    report = json.loads((folders / "report" / "report.json").read_text())
    assert [row["clip"] for row in report["failed"]] == ["b"]
    assert report["protocol"]["clips"] == 2


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda f: (f / "late" / "a.wav").unlink(), r"late lacks 1 of 3 clips \(a\)"),
        (lambda f: shutil.copy(f / "late/a.wav", f / "late/d.wav"), r"has 1 clip \(d\)"),
        (lambda f: (f / "report").mkdir() or (f / "report/x").touch(), "no earlier report"),
        (lambda f: shutil.rmtree(f / "late"), "late does not exist"),
        (lambda f: [p.write_text("x") for p in (f / "late").iterdir()], "no clip can be"),
    ],
)  # fmt: skip
def test_what_cannot_be_evaluated_is_one_line_and_writes_nothing(folders, break_it, told):
    break_it(folders)
    before = sorted(p.name for p in folders.rglob("*"))
    with pytest.raises(UserError, match=told):
        evaluate(folders / "late", folders / "real", folders / "report")
    assert sorted(p.name for p in folders.rglob("*")) == before


def test_annotated_onsets_are_read_and_must_be_there(folders):
    (folders / "times").mkdir()
    for name in NAMES[:2]:
        (folders / "times" / f"{name}.txt").write_text("0.4 hit\n\n0.55, x\n")
    arguments = (folders / "same", folders / "real", folders / "report")
    with pytest.raises(UserError, match=r"lacks the onsets of 1 of 3 clips \(c\)"):
        evaluate(*arguments, onsets=folders / "times")
    (folders / "times" / "c.txt").write_text("soon\n")
    with pytest.raises(UserError, match=r"c\.txt, line 1: 'soon' is no time"):
        evaluate(*arguments, onsets=folders / "times")
    (folders / "times" / "c.txt").write_text("0.7\n")
    report = evaluate(*arguments, onsets=folders / "times")
    assert report.protocol["onsets"] == str(folders / "times")
    assert {clip.name: clip.contacts for clip in report.clips}["a"] == [0.4, 0.55]


def test_videos_are_shown_and_aligned(tmp_path):
    """A flash that moves at the strike: its motion peaks where the sound does."""
    frames = np.zeros((30, 48, 48, 3), np.uint8)
    y, x = np.mgrid[:48, :48]
    for number in range(30):
        moved = 6 if number >= 10 else 0
        frames[number] = (120 + 100 * np.sin((x + moved) / 5.0) * np.cos(y / 6.0))[..., None]
    for name in ("real", "made"):
        (tmp_path / name).mkdir()
        wave = sound(0).astype(np.float32)
        write_frames(iter(frames), tmp_path / name / "clip.mp4", fps=25, wave=wave)
    report = evaluate(tmp_path / "made", tmp_path / "real", tmp_path / "report")
    (clip,) = report.clips
    assert clip.scores["made"]["av_align"] >= 0.5
    assert clip.fps == 25
    assert {clip.media["video"], clip.media["strip"]} == {"media/00000.mp4", "media/00000.jpg"}
    assert all((tmp_path / "report" / file).is_file() for file in clip.media.values())


def test_the_miniature_s_networks_hear_the_clips(folders):
    report = evaluate(
        [f"same={folders}/same", f"late={folders}/late"], folders / "real", folders / "report",
        bundle=TINY_BUNDLE, batch=3,
    )  # fmt: skip
    same, late = report.figures["same"], report.figures["late"]
    assert same["loa_error"].value < 0.05 < late["loa_error"].value
    assert same["loa_recall"].value == 1
    assert abs(same["fd_audiomae"].value) < late["fd_audiomae"].value + 1
    assert same["kad_audiomae"].value is not None
    assert "audiomae" in report.protocol["bundle"]["components"]
    assert ("FD, KL, inception score, KID, KAD of PANNs Cnn14") in dict(report.not_computed)

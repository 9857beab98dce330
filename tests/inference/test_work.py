"""The work on many videos: one that cannot be done never stops the others, and none is lost."""

import io
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mfm_jax.errors import UserError
from mfm_jax.inference import work as work_module
from mfm_jax.inference.inputs import expand
from mfm_jax.inference.requests import Request, targets
from mfm_jax.inference.work import Job, Work
from mfm_jax.media.probe import probe
from mfm_jax.media.write import write_frames
from mfm_jax.runtime.failures import LOG
from mfm_jax.runtime.progress import Progress
from tests.inference.stand_in import networks
from tests.windows import pair_spec

SPEC = pair_spec(
    seconds=1.28, overlap=0.16, cavp_fps=12.5, cavp_size=16, timechat_frames=2, timechat_size=16
)
NOT_UTF_8 = os.fsdecode(b"caf\xe9.mp4")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Videos of 25 frames a second: a grey one for each name, of so many frames."""
    folder = tmp_path_factory.mktemp("clips")
    for name, (grey, frames) in {"a": (10, 25), "b": (90, 75), "c": (200, 25)}.items():
        write_frames(iter(np.full((frames, 32, 32, 3), grey, np.uint8)), folder / f"{name}.mp4",
                     fps=25)  # fmt: skip
    return folder


def sound(items):
    """Stand in for the networks: a sound as loud as the picture is bright."""
    return np.stack(
        [np.full(20480, w.seen["cavp"].pixels.mean() / 256, np.float32) for _, w in items]
    )


def jobs_of(sources, output, form=None):
    requests = [Request(source) for source in sources]
    chosen = targets(requests, output, form)
    return [Job(*pair) for pair in zip(requests, chosen, strict=True)]


def done(folder, names, compute=sound, *, form="wav", batch=2):
    """Do it; returns the jobs and what was told."""
    jobs = jobs_of([folder / name for name in names], folder / "out", form)
    work = Work(jobs, SPEC, Progress(None, "x"))
    (folder / "out").mkdir()
    work.check_targets()
    work.run(lambda: networks(compute), batch)
    return {job.source.name: job for job in work.jobs}


def loudness(path):
    return soundfile.read(path)[0].mean() * 256


@pytest.fixture
def folder(clips, tmp_path):
    shutil.copytree(clips, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_windows_that_fail_together_are_tried_by_video(folder, capsys):
    def compute(items):
        if any(w.seen["cavp"].pixels.mean() > 150 for _, w in items):
            raise IndexError("too bright")
        return sound(items)

    made = done(folder, ["a.mp4", "c.mp4", "b.mp4"], compute, batch=3)
    assert [name for name, job in made.items() if job.failed] == ["c.mp4"]
    for name, grey in (("a", 10), ("b", 90)):
        assert loudness(folder / f"out/{name}.wav") == pytest.approx(grey, abs=2)
    *written, failure = sorted(capsys.readouterr().err.splitlines())
    assert failure.startswith(f"failed: {folder}/c.mp4: a fault of the program (IndexError in ")
    assert failure.endswith(f"too bright), recorded in {folder}/out/{LOG}")
    assert [line.split("/")[-1] for line in written] == ["a.wav", "b.wav"]
    assert "raise IndexError" in (folder / "out" / LOG).read_text()


def test_whatever_a_reader_raises_is_the_failure_of_its_video(folder, monkeypatch, capsys):
    real = work_module.windows

    def windows(path, *given, **named):
        found = real(path, *given, **named)
        yield next(found)
        if path.name == "b.mp4":
            raise ZeroDivisionError("odd clock")
        yield from found

    monkeypatch.setattr(work_module, "windows", windows)
    made = done(folder, ["a.mp4", "b.mp4", "c.mp4"])
    assert [job.written for job in made.values()] == [True, False, True]
    assert "b.mp4: a fault of the program (ZeroDivisionError" in capsys.readouterr().err


@pytest.mark.parametrize("other", ["a.mp4", "c.mp4", None])
def test_a_file_that_is_replaced_while_it_is_read_is_a_failure(folder, other, capsys):
    """By a shorter one, by one of the same length, and by none."""
    replaced = "b.mp4" if other == "a.mp4" else "a.mp4"

    def compute(items):
        if (folder / "new").exists() or other is None:
            (folder / replaced).unlink(missing_ok=True)
        if (folder / "new").exists():
            (folder / "new").rename(folder / replaced)
        return sound(items)

    if other is not None:
        shutil.copy(folder / other, folder / "new")
    rest = [name for name in ("b.mp4", "a.mp4") if name != replaced]
    made = done(folder, [replaced, *rest], compute, batch=1)
    assert made[rest[0]].written
    assert "b.mp4" in made
    assert made[replaced].failed == f"{folder}/{replaced} was changed while it was read: try again"
    assert not made[replaced].target.exists()
    assert f"failed: {made[replaced].failed}" in capsys.readouterr().err


def test_a_job_without_an_end_is_a_failure(folder, monkeypatch):
    monkeypatch.setattr(work_module, "windows", lambda *given, **named: iter(()))
    made = done(folder, ["a.mp4"])
    assert "was changed while it was read" in made["a.mp4"].failed


@pytest.mark.parametrize("form", ["mp4", "wav"])
def test_a_name_that_is_not_utf_8(folder, form, monkeypatch):
    (folder / "a.mp4").rename(folder / NOT_UTF_8)
    output = io.TextIOWrapper(io.BytesIO(), "ascii")  # as with LC_ALL=C: it can show no such name
    monkeypatch.setattr("sys.stderr", output)
    made = done(folder, [NOT_UTF_8], form=form)
    assert made[NOT_UTF_8].failed is None
    assert (folder / "out" / NOT_UTF_8).with_suffix(f".{form}").is_file()
    output.flush()
    assert b"caf\\udce9.mp4 -> " in output.buffer.getvalue()


@pytest.mark.parametrize("suffix", [".WAV", ".MKV", ".mov"])
def test_one_output_file_in_any_format_and_case(folder, suffix):
    (job,) = jobs_of([folder / "a.mp4"], folder / f"out{suffix}")
    assert job.target == folder / f"out{suffix}"
    work = Work([job], SPEC)
    work.check_targets()
    work.run(lambda: networks(sound), 1)
    assert job.written
    if suffix == ".WAV":
        assert loudness(job.target) == pytest.approx(10, abs=2)
    else:
        assert probe(job.target).seconds == pytest.approx(1.0, abs=0.05)


def test_what_cannot_be_written_is_told_before_anything_is_computed(folder, capsys):
    def load():
        raise AssertionError("the networks are loaded")

    long = "x" * 251 + ".mp4"
    (folder / "a.mp4").rename(folder / long)
    (folder / "out/b.mp4").mkdir(parents=True)
    work = Work(
        [
            *jobs_of([folder / "b.mp4", folder / "absent.mp4"], folder / "out"),
            Job(Request(folder / "c.mp4"), folder / "out" / f"{long}.mp4"),
            Job(Request(folder / "c.mp4"), folder / "out/c.ogv"),
            Job(Request(folder / "c.mp4"), folder / "c.mp4"),
        ],
        SPEC,
        Progress(None, "x"),
    )
    work.check_targets()
    told = capsys.readouterr().err.splitlines()
    assert told == [f"failed: {job.failed}" for job in work.jobs]
    words = (
        "it is a folder",
        "absent.mp4",
        "file name too long",
        "name it .mp4",
        "the input itself",
    )
    for line, word in zip(told, words, strict=True):
        assert word in line
    work.run(load, 1)
    assert not list((folder / "out").glob(".*"))


def test_networks_that_cannot_be_loaded_leave_no_thread_behind(folder):
    def load():
        raise UserError("no such bundle")

    names = [folder / f"{name}.mp4" for name in "abc"]
    work = Work(jobs_of(names, folder / "out", "wav"), SPEC)
    with pytest.raises(UserError, match="no such bundle") as caught:
        work.run(load, 1)
    # The exception, which is still there, keeps everything alive that was under way.
    assert caught.value is not None
    assert not [t for t in threading.enumerate() if t.name.startswith(("read", "write", "fetch"))]


def test_the_longest_name_that_a_file_can_have(folder):
    long = "x" * 251 + ".mp4"
    (folder / "a.mp4").rename(folder / long)
    assert done(folder, [long], form="mp4")[long].written


def test_hidden_files_and_names_that_cannot_be_looked_at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "._a.mp4", ".part.mp4", "12:30:05.mp4", "b[1].mp4"):
        Path(name).touch()
    every = [Request(Path(name)) for name in ("12:30:05.mp4", "a.mp4", "b[1].mp4")]
    assert expand(["."]) == every
    assert expand(["*.mp4"]) == every
    assert expand(["12:30:05.mp4", "b[1].mp4"]) == [every[0], every[2]]
    long = "x" * 300
    assert expand([long, "a.mp4"]) == [Request(Path(long)), every[1]]
    with pytest.raises(UserError, match="no file matches"):
        expand([".*.mp4"])

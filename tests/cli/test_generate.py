"""`mfm generate`: lengths, packets, repeatability, and every kind of bad input."""

import csv
import io
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from mfm_jax.cli import main
from mfm_jax.media.probe import probe
from mfm_jax.media.write import write_frames
from tests.bundles import untrained_bundle

pytestmark = pytest.mark.usefixtures("open_once")
FAST = ["--steps", "2", "--batch", "2"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return untrained_bundle(tmp_path_factory.mktemp("bundle") / "tiny").path


def clip(path: Path, seconds: float, *, fps: float = 25, seed: int = 0, size=(64, 96)) -> Path:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (round(seconds * fps), 4, 6, 3), np.uint8)
    frames = coarse.repeat(size[0] // 4, 1).repeat(size[1] // 6, 2)
    write_frames(iter(frames), path, fps=fps)
    return path


@pytest.fixture
def short(tmp_path) -> Path:
    return clip(tmp_path / "short.mp4", 1.2)


def packets(path: Path, kind: str = "video") -> list[bytes]:
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams if s.type == kind)
        return [bytes(p) for p in container.demux(stream) if p.size]


def run(bundle, *arguments) -> int:
    return main(["generate", *map(str, arguments), "--bundle", str(bundle), *FAST])


def made(folder: Path) -> list[str]:
    """Return the names in a folder of outputs, without those of its record."""
    return sorted(p.name for p in folder.iterdir() if p.suffix not in (".csv", ".jsonl"))


LENGTHS = (0.4, 2.56, 6.0)


@pytest.fixture(scope="module")
def lengths(bundle, tmp_path_factory) -> Path:
    """Videos of these lengths, with sound below `mp4/` and as sound alone below `wav/`."""
    folder = tmp_path_factory.mktemp("lengths")
    videos = [clip(folder / f"{seconds}.mp4", seconds) for seconds in LENGTHS]
    assert run(bundle, videos[0], "-o", folder / "mp4" / videos[0].name) == 0
    assert run(bundle, *videos[1:], "-o", folder / "mp4") == 0
    assert run(bundle, *videos, "-o", folder / "wav", "--format", "wav") == 0
    return folder


@pytest.mark.parametrize("seconds", LENGTHS)
def test_sound_lasts_as_long_as_the_video(lengths, seconds):
    video, made = lengths / f"{seconds}.mp4", lengths / "mp4" / f"{seconds}.mp4"
    length = probe(video).seconds
    assert packets(made) == packets(video)
    with av.open(str(made)) as container:
        (sound,) = container.streams.audio
        assert (sound.rate, sound.layout.name) == (16_000, "mono")
        assert float(sound.duration * sound.time_base) == pytest.approx(length, abs=0.064)
    wave, rate = soundfile.read(lengths / "wav" / f"{seconds}.wav")
    assert (rate, len(wave)) == (16_000, round(length * 16_000))
    assert np.abs(wave).max() > 1e-3


def test_a_seed_gives_the_same_file_whatever_else_is_in_the_batch(bundle, tmp_path, short):
    other, long = clip(tmp_path / "a.mp4", 3.0, seed=1), clip(tmp_path / "z.mp4", 5.0, seed=2)
    assert run(bundle, short, "-o", tmp_path / "alone.wav") == 0
    assert run(bundle, other, short, long, "-o", tmp_path / "many", "--format", "wav") == 0
    assert run(bundle, short, "-o", tmp_path / "seed.wav", "--seed", "1") == 0
    alone = (tmp_path / "alone.wav").read_bytes()
    assert (tmp_path / "many/short.wav").read_bytes() == alone
    assert (tmp_path / "seed.wav").read_bytes() != alone


def test_folders_and_globs_are_searched(bundle, tmp_path, short):
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("b.mp4", "a.mp4"):
        shutil.copy(short, folder / name)
    (folder / "notes.txt").write_text("not a video")
    assert run(bundle, folder, tmp_path / "sh*.mp4", "-o", tmp_path / "out") == 0
    assert made(tmp_path / "out") == ["a.mp4", "b.mp4", "short.mp4"]


def sound_only(path: Path) -> Path:
    soundfile.write(path.with_suffix(".wav"), np.zeros(1600), 16_000)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16_000
        out.mux(stream.encode(frame) + stream.encode())
    return path


BAD = {
    "missing": lambda p, good: p,
    "empty": lambda p, good: p.touch() or p,
    "text": lambda p, good: p.write_text("hello, I am no video\n" * 50) and p,
    "sound only": lambda p, good: sound_only(p),
    "truncated": lambda p, good: p.write_bytes(good.read_bytes()[: good.stat().st_size // 2]) and p,
}


def test_bad_videos_are_named_and_the_others_are_done(bundle, tmp_path, short, capsys):
    bad = [make(tmp_path / f"{kind}.mp4", short) for kind, make in BAD.items()]
    out = tmp_path / "out"
    # The good one is neither the first nor the last, and batches mix it with bad ones.
    assert run(bundle, *bad[:3], short, *bad[3:], "-o", out) == 1
    assert made(out) == ["short.mp4"]
    with (out / "failed.csv").open(newline="") as file:
        assert {row["file"] for row in csv.DictReader(file)} == {str(path) for path in bad}
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("mfm generate:")]
    assert len(lines) == len(bad)
    for path in bad:
        assert sum(str(path) in line for line in lines) == 1


def test_an_output_equal_to_the_input_is_refused(bundle, tmp_path, short, capsys):
    before = short.read_bytes()
    (tmp_path / "other").mkdir()
    other = clip(tmp_path / "other/b.mp4", 1.0)
    assert run(bundle, short, other, "-o", tmp_path) == 1
    assert "is the input itself" in capsys.readouterr().err
    assert short.read_bytes() == before
    assert (tmp_path / "b.mp4").exists()


def test_an_unwritable_target_fails_alone(bundle, tmp_path, short, capsys):
    other = clip(tmp_path / "other.mp4", 1.0, seed=3)
    (tmp_path / "out/short.mp4").mkdir(parents=True)
    assert run(bundle, short, other, "-o", tmp_path / "out") == 1
    assert "cannot write" in capsys.readouterr().err
    assert made(tmp_path / "out") == ["other.mp4", "short.mp4"]


WRONG = {
    "no such bundle": (["-o", "{tmp}/o", "--bundle", "{tmp}/nowhere"], "is not a bundle"),
    "prompt": (["-o", "{tmp}/o", "--prompt", "a dog"], "has no text encoder"),
    "steps": (["-o", "{tmp}/o", "--steps", "0"], "steps must be at least 1"),
    "batch": (["-o", "{tmp}/o", "--batch", "0"], "batch must be at least 1"),
    "eta": (
        ["-o", "{tmp}/o", "--eta", "0.5"],
        "only for sampler ddim, got 0.5 for dpm++",
    ),
    "sampler": (["-o", "{tmp}/o", "--sampler", "euler"], "use ddim, dpm++"),
    "folder is a file": (["-o", "{short}.txt"], "is a file: name a folder"),
    "folder under a file": (["-o", "{short}/sub"], "cannot write into"),
    "contradiction": (["-o", "{tmp}/o.mp4", "--format", "wav"], "contradict each other"),
    "empty folder": (["{tmp}/empty", "-o", "{tmp}/o"], "no video in folder"),
    "no match": (["{tmp}/*.mkv", "-o", "{tmp}/o"], "no file matches"),
    "one name twice": (["{tmp}/twin/short.mp4", "-o", "{tmp}/o"], "would both become"),
    "many to one": (["{tmp}/twin/short.mp4", "-o", "{tmp}/o.mp4"], "do not fit one file"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_usage_is_one_line_and_does_nothing(bundle, tmp_path, short, capsys, kind):
    (tmp_path / "empty").mkdir()
    (tmp_path / "twin").mkdir()
    shutil.copy(short, tmp_path / "twin/short.mp4")
    Path(f"{short}.txt").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    arguments, message = WRONG[kind]
    arguments = [a.format(tmp=tmp_path, short=short) for a in arguments]
    assert main(["generate", "--bundle", str(bundle), str(short), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("mfm generate: ")
    assert message in error
    made = [p for p in sorted(tmp_path.rglob("*")) if p not in before]
    assert made in ([], [tmp_path / "o"])


def test_real_clips_get_sound(bundle, tmp_path, videos):
    clips = sorted(videos.glob("*.mp4"))
    assert run(bundle, *clips, "-o", tmp_path) == 0
    for source in clips:
        info = probe(source)
        made = tmp_path / source.name
        assert packets(made) == packets(source)
        with av.open(str(made)) as container:
            (sound,) = container.streams.audio
            assert sound.rate == 16_000
            assert float(sound.duration * sound.time_base) == pytest.approx(info.seconds, abs=0.064)


def test_a_manifest_says_what_each_video_gets(bundle, tmp_path, capsys):
    clip(tmp_path / "a.mp4", 5.0, seed=1)
    lines = ["file,start,end,seed,output", "a.mp4,1,2.2,,x/part.mp4", "a.mp4,1,2.2,,part.flac",
             "a.mp4,,,1,other", "b.mp4,,,,"]  # fmt: skip
    (tmp_path / "jobs.csv").write_text("\n".join(lines))
    assert run(bundle, tmp_path / "jobs.csv", "-o", tmp_path / "out", "--format", "wav") == 1
    assert "b.mp4: no such file" in capsys.readouterr().err
    out = tmp_path / "out"
    assert made(out) == ["other.wav", "part.flac", "x"]
    assert probe(out / "x/part.mp4").seconds == pytest.approx(1.2, abs=0.01)
    part, rate = soundfile.read(out / "part.flac")
    assert (len(part), rate) == (19_200, 16_000)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.[wfm]*")}
    assert run(bundle, tmp_path / "jobs.csv", "-o", out, "--format", "wav") == 1
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.[wfm]*")} == times
    said = capsys.readouterr().err
    assert "3 of 4 clips are there already" in said
    assert run(bundle, tmp_path / "a.mp4", "-o", tmp_path / "b.wav", "--seed", "1") == 0
    assert (tmp_path / "b.wav").read_bytes() == (out / "other.wav").read_bytes()


def test_in_a_store_the_outputs_are_those_of_the_same_command_here(
    bundle, tmp_path, bucket, copies, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    clip(tmp_path / "a.mp4", 0.6)
    clip(tmp_path / "sub.mp4", 1.2, seed=1)
    soundfile.write(tmp_path / "hum.wav", np.sin(np.arange(16_000) / 9), 16_000)
    for place in (tmp_path, bucket):
        for name in ("a.mp4", "sub.mp4", "hum.wav"):
            (place / name).write_bytes((tmp_path / name).read_bytes())
        (place / "absent.csv").write_text(
            f"file,output,start\n{place}/a.mp4,x/part,0.2\nno.mp4,,\n"
        )
        words = [f"{place}/*.mp4", place / "absent.csv", "-o", place / "out"]
        assert run(bundle, *words, "--negative-sound", place / "hum.wav") == 1
        assert f"mfm generate: {place}/no.mp4" in capsys.readouterr().err
    files = {"out/a.mp4", "out/sub.mp4", "out/x/part.mp4", "out/failed.csv"}
    here, there = ({f: (p / f).read_bytes() for f in files} for p in (tmp_path, bucket))
    assert there.pop("out/failed.csv").count(str(bucket).encode()) == 2
    assert here.pop("out/failed.csv").count(str(tmp_path).encode()) == 2
    assert there == here
    assert sorted(p.name for p in bucket.iterdir()) == sorted(p.name for p in tmp_path.iterdir())
    assert not [file for file in copies.rglob("*") if file.is_file()]
    assert run(bundle, "a.mp4", "-o", bucket / "one.flac") == 0
    wave, rate = soundfile.read(io.BytesIO((bucket / "one.flac").read_bytes()))
    assert (len(wave), rate) == (9_600, 16_000)
    assert run(bundle, bucket / "a.mp4", "-o", bucket / "a.mp4") == 1
    assert "is the input itself" in capsys.readouterr().err
    assert run(bundle, bucket / "no*", "-o", bucket / "out") == 2
    assert f"no file matches {bucket}/no*" in capsys.readouterr().err
    assert run(bundle, bucket / "a.mp4", "-o", bucket / "b.wav", "--shared") == 2
    assert "is one file, which workers cannot share" in capsys.readouterr().err

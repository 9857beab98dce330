"""`mfm extract` itself on 88 clips with every kind of bad one among them, killed and run again."""

import contextlib
import csv
import io
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import av
import numpy as np
import pytest

from mfm_jax.cli import main
from mfm_jax.data.clips import list_clips
from mfm_jax.data.features import FeatureSource
from mfm_jax.foley.world import World, generate_clip, write_world
from mfm_jax.media.audio import RATE
from mfm_jax.media.write import write_frames
from mfm_jax.storage.parts import MACHINE
from tests.bundles import untrained_bundle
from tests.forked import Forked
from tests.silent import write_silent

CLIPS, SHARD = 88, 8
GOOD = 4  # different ones among all the good
WORLD = World(seconds=1.6)  # less than a window: most of the time goes into decoding


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.ones((1, RATE), np.float32), "fltp", "mono")
        frame.sample_rate = RATE
        out.mux(stream.encode(frame) + stream.encode())


MADE = generate_clip(WORLD, 0)
NOISE = np.random.default_rng(0).bytes(20_000)

# How each kind of bad clip is made of a path and a good file, and the reason that is told.
BAD: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "truncated": (
        lambda path, good: path.write_bytes(good.read_bytes()[: good.stat().st_size // 2]),
        "is cut short (",
    ),
    "garbage": (lambda path, good: path.write_bytes(NOISE), "is not a readable video"),
    "empty": (lambda path, good: path.touch(), "is empty: copy or download it again"),
    "missing": (lambda path, good: None, "does not exist: check the path"),
    "folder": (lambda path, good: path.mkdir(), "is a folder: name a video file"),
    "no sound": (lambda path, good: write_silent(good, path), "has no sound: leave it out"),
    "silent": (
        lambda path, good: write_frames(MADE.frames, path, fps=25, wave=0 * MADE.audio),
        "dropped: silent, -100 dBFS",
    ),
    "static": (
        lambda path, good: write_frames([MADE.frames[0]] * 40, path, fps=25, wave=MADE.audio),
        "dropped: static, its frames differ by",
    ),
    "short": (
        lambda path, good: write_frames(MADE.frames[:5], path, fps=25, wave=MADE.audio[:3200]),
        "shows 0.20 s from 0 s on, and less than 0.5 s is too short: leave it out",
    ),
    "no picture": (lambda path, good: audio_only(path), "has no video stream"),
}


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """The CSV of the clips, and the kind of each bad one by its id."""
    folder = tmp_path_factory.mktemp("many")
    files = [clip.path for clip in list_clips(write_world(WORLD, range(GOOD), folder / "good"))]
    # One of each kind far from the others, and all at once: one shard and some of the one before.
    places = [*range(3, 70, 7), *range(70, 80)]
    kinds = dict(zip(places, [*BAD, *BAD], strict=True))
    bad, lines = {}, ["file,id"]
    for number in range(CLIPS):
        name, path = f"{number:03d}", folder / f"{number:03d}.mp4"
        if number in kinds:
            bad[name] = kinds[number]
            BAD[kinds[number]][0](path, files[0])
        else:
            path.hardlink_to(files[number % GOOD])
        lines.append(f"{path.name},{name}")
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")
    untrained_bundle(folder / "bundle")
    return folder / "clips.csv", bad


def run(words: list[str]) -> tuple[int, str]:
    """Return the exit code of the command and what it writes to stderr."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = main(words)
    return code, said.getvalue()


def begun(listed: Path, folder: Path, *, killed: bool = False) -> Forked:
    """Start a run.

    Runs share compiled programs; one that is to be killed leaves none, or half of one.
    """
    words = ["extract", str(listed), "-o", str(folder), "--batch", "4", "--shard", str(SHARD)]
    words += ["--drop", "silent", "static", "--bundle", str(listed.parent / "bundle")]
    options = {
        "jax_compilation_cache_dir": str(listed.parent / "programs"),
        "jax_persistent_cache_min_compile_time_secs": 1e6 if killed else 0.0,
    }
    # Optimised: with so many clips the code runs more than once.
    return Forked(run, words, options=options, xla_flags="")


def finished(listed: Path, folder: Path) -> list[str]:
    """What a run says at its end, which has left some clips out."""
    code, said = begun(listed, folder).result()
    assert code == 1, said
    lines = said.splitlines()
    return [line for line in lines if line.startswith(("mfm extract: ", f"{folder}: "))]


@pytest.fixture(scope="module")
def unbroken(listed, tmp_path_factory) -> tuple[Path, list[str]]:
    """The features of a run that nothing interrupts, and what it said."""
    folder = tmp_path_factory.mktemp("unbroken") / "features"
    return folder, finished(listed[0], folder)


def test_the_good_ones_are_there(unbroken, listed):
    source = FeatureSource(unbroken[0])
    good = [f"{i:03d}" for i in range(CLIPS) if f"{i:03d}" not in listed[1]]
    assert [source.id_of(i) for i in range(len(source))] == good
    first: dict[int, dict[str, np.ndarray]] = {}
    for i, name in enumerate(good):
        features = source[i]
        same = first.setdefault(int(name) % GOOD, features)
        for key, value in features.items():
            assert np.isfinite(value).all()
            np.testing.assert_allclose(value, same[key], rtol=1e-2, atol=1e-2, err_msg=name)
    assert len(first) == GOOD


def test_every_bad_one_is_listed_with_its_reason(unbroken, listed):
    folder, said = unbroken
    with (folder / "failed.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["clip", "reason"]
    assert [name for name, _ in rows] == sorted(listed[1])
    for name, reason in rows:
        assert BAD[listed[1][name]][1] in reason, listed[1][name]
    assert said == [
        *(f"mfm extract: {name}: {reason}" for name, reason in rows),
        f"{folder}: features of {CLIPS - len(rows)} of {CLIPS} clips",
    ]


def identity(files: Iterable[Path]) -> dict[str, tuple[int, int]]:
    """What changes when a file is written again."""
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def test_killed_halfway_nothing_is_done_twice_or_lost(unbroken, listed, tmp_path):
    folder, shards = tmp_path / "features", CLIPS // SHARD
    process = begun(listed[0], folder, killed=True)
    patience = time.monotonic() + 300
    while len(list(folder.glob("shards/[0-9]*.json"))) < shards // 2:
        assert process.poll() is None
        assert time.monotonic() < patience
        time.sleep(0.005)
    process.kill()
    notes = sorted(folder.glob("shards/[0-9]*.json"))
    assert 0 < len(notes) < shards, "it was killed halfway"
    done = [*notes, *(next(folder.glob(f"records/*-{note.stem}-of-*")) for note in notes)]
    before = identity(done)
    (folder / "records" / f".clips-train-{MACHINE}0123abcd.array_record-00014-of-00015").touch()

    assert finished(listed[0], folder)[:-1] == unbroken[1][:-1]
    assert identity(done) == before
    assert contents(folder) == contents(unbroken[0])


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}

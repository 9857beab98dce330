"""A folder of outputs knows what was made in it: a rerun goes on, whatever ended the run before."""

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mfm_jax.inference.record import FAILED, NAME, Record
from mfm_jax.inference.requests import Request, targets
from mfm_jax.inference.work import Job, Work
from mfm_jax.media.write import write_frames
from tests.inference.stand_in import networks
from tests.windows import pair_spec

SPEC = pair_spec(
    seconds=1.28, overlap=0.16, cavp_fps=12.5, cavp_size=16, timechat_frames=2, timechat_size=16
)
CLIPS = 12


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Grey videos; every third one is longer than a window, and one is broken."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(CLIPS):
        frames = np.full((75 if i % 3 == 0 else 25, 32, 32, 3), 10 + 20 * i, np.uint8)
        write_frames(iter(frames), folder / f"{i:02d}.mp4", fps=25)
    (folder / "05.mp4").write_bytes((folder / "05.mp4").read_bytes()[:900])
    return folder


def run(clips: Path, out: Path, *, skip: bool = True, slow: float = 0.0, **changes) -> list[str]:
    """Make sounds with a stand-in for the networks; return the videos that it computed."""
    computed = []

    def sound(items):
        time.sleep(slow)
        computed.extend(job.source.name for job, _ in dict.fromkeys(items))
        level = [
            [window.seen["cavp"].pixels.mean() / 256 + job.request.seed / 99]
            for job, window in items
        ]
        return np.repeat(np.float32(level), 20480, axis=1)

    requests = [Request(path, **changes) for path in sorted(clips.glob("*.mp4"))]
    jobs = [Job(*pair) for pair in zip(requests, targets(requests, out, "wav"), strict=True)]
    out.mkdir(exist_ok=True)
    work = Work(jobs, SPEC, record=Record(out, skip=skip), settings={"steps": 2})
    work.check_targets()
    work.run(lambda: networks(sound), 2)
    return sorted(set(computed))


def sounds(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.wav")}


def entries(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / NAME).read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(clips, tmp_path_factory):
    """The outputs of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    assert len(run(clips, out)) == CLIPS - 1
    return out


@pytest.fixture
def out(unbroken, tmp_path):
    shutil.copytree(unbroken, tmp_path / "out")
    return tmp_path / "out"


def test_what_is_made_is_recorded_and_what_fails_is_listed(clips, unbroken):
    found = {entry["output"]: entry for entry in entries(unbroken)}
    assert sorted(found) == sorted(sounds(unbroken))
    assert found["03.wav"]["seconds"] == pytest.approx(3.0, abs=0.02)
    assert found["03.wav"]["made_of"].keys() == {
        "sha256", "start", "end", "prompt", "negative_prompt", "seed", "steps",
    }  # fmt: skip
    with (unbroken / FAILED).open(newline="") as file:
        (failed,) = csv.DictReader(file)
    assert failed["file"] == str(clips / "05.mp4")
    assert failed["output"] == "05.wav"
    assert str(clips / "05.mp4") in failed["reason"]


def test_a_rerun_computes_nothing_and_another_setting_everything(clips, out):
    before = sounds(out)
    assert run(clips, out) == []
    assert len(entries(out)) == CLIPS - 1
    assert len(run(clips, out, skip=False)) == CLIPS - 1
    assert sounds(out) == before
    assert len(run(clips, out, seed=1)) == CLIPS - 1
    assert sounds(out) != before
    assert run(clips, out, seed=1) == []


def test_what_is_changed_removed_or_not_recorded_whole_is_made_again(clips, out):
    before = sounds(out)
    (out / "01.wav").unlink()
    (out / "02.wav").write_bytes(before["03.wav"])
    lines = (out / NAME).read_text().splitlines(keepends=True)
    last = json.loads(lines[-1])["output"]
    (out / NAME).write_text("".join(lines[:-1]) + lines[-1][:40])
    wanted = sorted({"01.mp4", "02.mp4", last.replace("wav", "mp4")})
    assert run(clips, out) == wanted
    assert sounds(out) == before
    assert run(clips, out) == []


def test_the_list_of_failures_is_that_of_the_last_run(clips, out, tmp_path):
    good = tmp_path / "good"
    shutil.copytree(clips, good)
    shutil.copy(good / "04.mp4", good / "05.mp4")
    assert run(good, out) == ["05.mp4"]
    assert not (out / FAILED).exists()


def test_failures_of_several_threads_are_all_listed_below_one_header(tmp_path):
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        record, together = Record(folder), threading.Barrier(8)

        def fail(index, folder=folder, record=record, together=together):
            together.wait()
            record.fail(folder / f"{index}.wav", Path(f"{index}.mp4"), "odd")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(fail, range(8)))
        with (folder / FAILED).open(newline="") as file:
            assert {row["file"] for row in csv.DictReader(file)} == {f"{i}.mp4" for i in range(8)}


def test_killed_again_and_again_nothing_is_recorded_twice_and_all_is_as_unbroken(
    clips, unbroken, tmp_path
):
    out, rng = tmp_path / "out", random.Random(0)
    command = [sys.executable, "-m", "tests.inference.test_record", str(clips), str(out)]
    for _ in range(4):
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        while process.poll() is None and not (out.exists() and any(out.glob("*.wav"))):
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 0 < len(entries(out)) < CLIPS - 1
    run(clips, out)
    assert sounds(out) == sounds(unbroken)
    names = [entry["output"] for entry in entries(out)]
    assert sorted(names) == sorted(sounds(unbroken))
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in unbroken.iterdir())


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]), slow=0.1)

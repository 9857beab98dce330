"""Several workers divide a job: in a store and on a disk, all at once, one dying, and again."""

import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mfm_jax.cli import main
from mfm_jax.errors import UsageError
from mfm_jax.inference import shares
from mfm_jax.inference import work as work_module
from mfm_jax.inference.inputs import expand
from mfm_jax.inference.record import FAILED, NAME, Record, read_record
from mfm_jax.inference.requests import targets
from mfm_jax.inference.segments import FOLDER
from mfm_jax.inference.shares import do_together
from mfm_jax.inference.work import Job, Work
from mfm_jax.media.write import write_frames
from mfm_jax.storage.parts import temporary
from mfm_jax.storage.paths import user_path
from tests.inference.stand_in import networks
from tests.windows import pair_spec

SPEC = pair_spec(
    seconds=1.28, overlap=0.16, cavp_fps=12.5, cavp_size=16, timechat_frames=2, timechat_size=16
)
CLIPS = 12
BROKEN = "05"


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Grey videos, of which one is longer than a window and one is broken."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(CLIPS):
        frames = np.full((50 if i == 3 else 10, 32, 32, 3), 10 + 20 * i, np.uint8)
        write_frames(iter(frames), folder / f"{i:02d}.mp4", fps=25)
    broken = folder / f"{BROKEN}.mp4"
    broken.write_bytes(broken.read_bytes()[:300])
    return folder


@pytest.fixture(params=["disk", "store"])
def place(request, tmp_path, clips, copies):
    """A folder for outputs, with the clips in `clips` beside it."""
    if request.param == "disk":
        (tmp_path / "clips").symlink_to(clips)
        return tmp_path
    bucket = request.getfixturevalue("bucket")
    for clip in clips.iterdir():
        (bucket / "clips" / clip.name).put(clip)
    return bucket


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Let pieces be written often, and nobody wait long."""
    monkeypatch.setattr(shares, "INTERVAL", 0.05)
    monkeypatch.setattr(shares, "LONGEST_WAIT", 0.3)


def work_of(place: Path, names: str = "*.mp4", form: str = "wav", **settings) -> Work:
    requests = expand([place / "clips" / names])
    jobs = map(Job, requests, targets(requests, place / "out", form))
    return Work(list(jobs), SPEC, settings={"steps": 2, **settings})


def run(
    place: Path,
    work: Work | None = None,
    *,
    slow: float = 0.0,
    batch: int = 2,
    others: threading.Barrier | None = None,
    **how,
) -> list[str]:
    """Do a job with a stand-in for the networks; return the videos that this worker computed.

    Args:
        others: of the workers that begin to compute together.
    """
    computed: dict[str, None] = {}  # a video may have windows in several batches

    def sound(items):
        if others is not None and not computed:
            others.wait(60)
        time.sleep(slow)
        computed.update((job.source.name, None) for job, _ in items)
        level = [[window.seen["cavp"].pixels.mean() / 256] for _, window in items]
        return np.repeat(np.float32(level), 20480, axis=1)

    work = work or work_of(place)
    failures = do_together(work, place / "out", lambda: networks(sound), batch, **how)
    assert all(BROKEN in failure for failure in failures), failures
    return list(computed)


def sounds(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.glob("*.wav")}


def entries(out: Path) -> list[str]:
    return [json.loads(line)["output"] for line in (out / NAME).read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(clips, tmp_path_factory):
    """What one run on a disk makes, with records of its own."""
    out = tmp_path_factory.mktemp("alone") / "out"
    (out.parent / "clips").symlink_to(clips)
    out.mkdir()
    work = work_of(out.parent)
    work = Work(work.jobs, SPEC, record=Record(out), settings=work.settings)
    level = lambda items: np.repeat(  # noqa: E731
        np.float32([[window.seen["cavp"].pixels.mean() / 256] for _, window in items]),
        20480,
        axis=1,
    )
    work.run(lambda: networks(level), 2)
    return out


def check_complete(place: Path, alone: Path, copies: Path) -> None:
    """Check that all is there once, as one run makes it, and nothing else."""
    out = place / "out"
    assert sounds(out) == sounds(alone)
    assert sorted(entries(out)) == sorted(sounds(alone))
    assert {k: v["made_of"] for k, v in read_record(out).items()} == {
        k: v["made_of"] for k, v in read_record(alone).items()
    }
    failed = list(csv.DictReader((out / FAILED).read_text().splitlines()))
    assert [row["output"] for row in failed] == [f"{BROKEN}.wav"]
    assert str(place / "clips" / f"{BROKEN}.mp4") in failed[0]["reason"]
    names = {file.name for file in out.iterdir()} - set(sounds(out))
    assert names == {NAME, FAILED, FOLDER}
    left = {file.name for file in (out / FOLDER).rglob("*") if file.is_file()}
    assert all(name.endswith(".json") for name in left), left
    assert not [file for file in (copies / "outgoing").rglob("*") if file.is_file()]
    assert not any(name.startswith(("gs:", "s3:")) for name in os.listdir())


def test_who_has_looked_long_ago_takes_nothing_that_is_done(place, alone, copies):
    """Pieces that were free then have been done since, and their leases are gone."""
    with shares._joined(work_of(place), place / "out", None, overwrite=False) as late:
        assert len(late._look()) == CLIPS
        assert len(run(place)) == CLIPS - 1
        assert next(late.pieces(), None) is None
        assert not late.wait()
    assert late.count == 0
    check_complete(place, alone, copies)


def test_three_workers_make_what_one_makes(place, alone, copies, capsys):
    others = threading.Barrier(3)
    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(run, place, slow=0.02, others=others) for _ in range(3)]
        made = [future.result() for future in workers]
    assert sorted(itertools.chain(*made)) == sorted(f"{name[:2]}.mp4" for name in sounds(alone))
    check_complete(place, alone, copies)
    assert not [file for file in copies.rglob("*") if file.is_file()]
    assert main(["status", str(place / "out")]) == 0
    assert f"{CLIPS - 1} clips made" in capsys.readouterr().out


def test_the_pieces_of_a_killed_worker_are_done_by_others(place, alone, copies, capsys):
    command = [sys.executable, "-m", "tests.inference.test_shares", str(place)]
    killed = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    out, until = place / "out", time.monotonic() + 60
    while killed.poll() is None and time.monotonic() < until:
        if len(list(out.glob("[!.]*.wav"))) >= 2:  # hidden ones are being written
            break
        time.sleep(0.05)
    assert main(["status", str(out)]) == 0
    told = capsys.readouterr().out
    assert re.search(rf": \d+ of {CLIPS} clips made, (1 failed, )?1 at work \(.*\)\n$", told)
    with pytest.raises(UsageError, match="steps 2 and not 3"):
        run(place, work_of(place, steps=3))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert (out / NAME).exists() is False
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(run, place) for _ in range(2)]
        made = [name for future in both for name in future.result()]
    assert len(made) == len(set(made)) < CLIPS - 1
    check_complete(place, alone, copies)


def test_a_rerun_makes_what_is_missing_changed_or_asked_for_anew(place, alone, copies):
    assert len(run(place)) == CLIPS - 1
    out = place / "out"
    (out / "01.wav").unlink()
    (out / "02.wav").write_bytes(sounds(out)["03.wav"])
    assert sorted(run(place)) == ["01.mp4", "02.mp4"]
    check_complete(place, alone, copies)
    assert run(place, work_of(place, "0*.mp4")) == []  # fewer clips: what is there is left alone
    assert sorted(entries(out)) == sorted(sounds(alone))
    assert len(run(place, work_of(place, "0[12].mp4", steps=3))) == 2  # other settings
    assert sorted(run(place)) == ["01.mp4", "02.mp4"]
    assert len(run(place, overwrite=True)) == CLIPS - 1
    check_complete(place, alone, copies)


@pytest.mark.parametrize("place", ["disk"], indirect=True)
def test_what_a_worker_was_writing_that_dies_later_than_the_others_begin_is_removed(
    place, alone, copies
):
    out = place / "out"

    def sound(items):
        if any(job.source.stem == "08" for job, _ in items):
            temporary(out, ".wav").write_bytes(b"RIFF")
        level = [[window.seen["cavp"].pixels.mean() / 256] for _, window in items]
        return np.repeat(np.float32(level), 20480, axis=1)

    do_together(work_of(place), out, lambda: networks(sound), 2)
    check_complete(place, alone, copies)


@pytest.mark.parametrize("place", ["store"], indirect=True)
def test_a_rerun_reads_no_video_whose_digest_the_store_tells(place, alone, monkeypatch):
    (place / "clips" / f"{BROKEN}.mp4").unlink()
    assert len(run(place)) == CLIPS - 1
    with monkeypatch.context() as patch:
        patch.setattr(work_module, "local_copy", lambda path: pytest.fail(f"{path} is read"))
        assert run(place) == []
    (place / "clips" / "03.mp4").write_bytes((place / "clips" / "07.mp4").read_bytes())
    assert run(place) == ["03.mp4"]
    assert sounds(place / "out")["03.wav"] == sounds(alone)["07.wav"]


def test_an_unfinished_job_gives_way_to_another_and_keeps_its_outputs(place, alone, copies):
    def sound(items):
        if any(job.source.stem == "08" for job, _ in items):
            raise KeyboardInterrupt
        return np.repeat(
            np.float32([[window.seen["cavp"].pixels.mean() / 256] for _, window in items]),
            20480,
            axis=1,
        )

    work = work_of(place)
    with pytest.raises(KeyboardInterrupt):
        do_together(work, place / "out", lambda: networks(sound), 1)
    made = len(sounds(place / "out"))
    assert 4 <= made < CLIPS - 1
    fewer = work_of(place)
    fewer = Work(fewer.jobs[:-1], SPEC, settings=fewer.settings)
    assert len(run(place, fewer)) <= CLIPS - 2 - made + 1
    assert run(place) == [f"{CLIPS - 1}.mp4"]
    check_complete(place, alone, copies)


if __name__ == "__main__":
    shares.INTERVAL = 0.05
    run(user_path(sys.argv[1]), slow=0.5, batch=1)

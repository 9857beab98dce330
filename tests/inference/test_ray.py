"""A Ray cluster of two nodes does a job, and one of them is killed."""

import importlib.util
import io
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mfm_jax.cli import main
from mfm_jax.errors import UsageError
from mfm_jax.inference import shares
from mfm_jax.inference.inputs import expand
from mfm_jax.inference.on_ray import do_on_ray
from mfm_jax.inference.record import FAILED, NAME, Record, read_record
from mfm_jax.inference.requests import targets
from mfm_jax.inference.segments import FOLDER
from mfm_jax.inference.work import Job, Work
from mfm_jax.media.write import write_frames
from mfm_jax.runtime.progress import Progress
from tests.forked import Forked
from tests.inference.stand_in import networks
from tests.inference.test_shares import SPEC
from tests.ports import free_port

CLIPS, BEFORE, BROKEN = 16, 3, "05"

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'mfm-jax[ray]'"
)


def open_stand_in(slow: float):
    """Return what loads a stand-in for the networks, and the windows that it takes at once."""

    def sound(items):
        time.sleep(slow)
        levels = [[(job.request.seed + window.index + 1) / 64] for job, window in items]
        return np.repeat(np.float32(levels), 20480, axis=1)

    return lambda: networks(sound), 2


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Videos, of which one is longer than a window and one is broken."""
    folder = tmp_path_factory.mktemp("clips")
    lines = ["file,seed"]
    for i in range(CLIPS):
        frames = np.zeros((50 if i == 3 else 10, 32, 32, 3), np.uint8)
        write_frames(iter(frames), folder / f"{i:02d}.mp4", fps=25)
        lines.append(f"{i:02d}.mp4,{i}")
    broken = folder / f"{BROKEN}.mp4"
    broken.write_bytes(broken.read_bytes()[:300])
    (folder / "clips.csv").write_text("\n".join(lines))
    return folder


def work_of(clips: Path, out: Path) -> Work:
    requests = expand([clips / "clips.csv"])
    jobs = [Job(*pair) for pair in zip(requests, targets(requests, out, "wav"), strict=True)]
    out.mkdir(exist_ok=True)
    return Work(jobs, SPEC, record=Record(out), settings={"steps": 2})


def sounds(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.glob("*.wav")}


def number_made(out: Path) -> int:
    """Return how many sounds there are while some are being written, which have hidden names."""
    return len(list(out.glob("[!.]*.wav")))


def do_with_a_kill(clips: Path, out: Path) -> tuple[list[str], str, str]:
    """Do the job on two nodes, and kill one; return the failures, the status before, and lines.

    Ray forks the processes of nodes, which a process with devices of JAX must not.
    """
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    second = cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False)
    status, told = io.StringIO(), io.StringIO()

    def kill_when_half_is_made():
        while number_made(out) < CLIPS // 2:
            time.sleep(0.02)
        assert main(["status", str(out)]) == 0
        cluster.remove_node(second, allow_graceful=False)

    with (
        ThreadPoolExecutor(1) as pool,
        redirect_stdout(status),
        redirect_stderr(told),
        Progress(None, "clips") as progress,
    ):
        killing = pool.submit(kill_when_half_is_made)
        work = replace(work_of(clips, out), record=None, progress=progress)
        failures = do_on_ray(work, out, partial(open_stand_in, 0.2))
        killing.result()
    ray.shutdown()
    cluster.shutdown()
    return failures, status.getvalue(), told.getvalue()


@needs_ray
def test_a_node_that_is_killed_leaves_its_work_to_the_other(clips, tmp_path, monkeypatch):
    load, _ = open_stand_in(0.0)
    alone, out = tmp_path / "alone", tmp_path / "out"
    work_of(clips, alone).run(load, 2)
    first = work_of(clips, out)
    replace(first, jobs=first.jobs[:BEFORE]).run(load, 2)  # and Ray goes on with the rest
    before = read_record(out)
    # Neither the command nor those that decode need a device.
    monkeypatch.setenv("JAX_PLATFORMS", "none_at_all")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # A node is dead for Ray when it was not there five times, at intervals of three seconds.
    monkeypatch.setenv("RAY_health_check_period_ms", "500")
    monkeypatch.setenv(shares.SECONDS, "2")
    options = {"jax_platforms": "none_at_all"}
    failures, status, told = Forked(do_with_a_kill, clips, out, options=options).result()
    assert re.search(rf"out: \d+ of {CLIPS} clips made, (1 failed, )?\d at work", status)
    assert [BROKEN in failure for failure in failures] == [True]
    assert sounds(out) == sounds(alone)
    lines = (out / NAME).read_text().splitlines()
    assert len(lines) == len(sounds(out)) == CLIPS - 1
    record = read_record(out)
    assert before.items() <= record.items()
    for name, entry in read_record(alone).items():
        assert {**record[name], "at": 0} == {**entry, "at": 0}
    assert (out / FAILED).read_text() == (alone / FAILED).read_text()
    assert {file.name for file in out.iterdir()} == {*sounds(out), NAME, FAILED, FOLDER}
    assert f"{BEFORE} of {CLIPS} clips are there already" in told
    assert told.count(" -> ") == len(lines) - BEFORE


def test_without_ray_a_line_names_the_extra(monkeypatch, clips, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["generate", str(clips / "clips.csv"), "-o", str(tmp_path / "out"), "--on", "ray"]
    assert main(words) == 2
    assert capsys.readouterr().err == "mfm generate: this needs Ray: pip install 'mfm-jax[ray]'\n"
    assert not (tmp_path / "out").exists()


@needs_ray
def test_a_cluster_that_is_not_there_is_told(monkeypatch, clips, tmp_path, capsys):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    words = ["generate", str(clips / "clips.csv"), "-o", str(tmp_path / "out"), "--on", "ray"]
    assert main(words) == 2
    assert "no Ray cluster answers at 127.0.0.1:" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_other_machines_do_not_see_is_refused(clips, tmp_path):
    with pytest.raises(UsageError, match="does not see the job in"):
        shares.do_together(work_of(clips, tmp_path), tmp_path, *open_stand_in(0.0), number=1)
    assert os.listdir(tmp_path) == []

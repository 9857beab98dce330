"""The rates of a run count from its first result on, and say how long the rest will take."""

import pytest

from mfm_jax.runtime.progress import Progress
from mfm_jax.runtime.throughput import Throughput


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def batch(throughput, clock, seconds, video):
    throughput.begin_batch()
    clock.now += seconds
    throughput.end_batch()
    throughput.did(video)


def test_rates_idle_time_and_what_is_left(clock):
    run = Throughput(10, clock)
    for _ in range(4):
        run.open(5.0)
    batch(run, clock, 30.0, 4.0)  # with compilation
    assert (str(run), run.real_time_factor, run.seconds_left) == ("", None, None)
    batch(run, clock, 3.0, 4.0)
    clock.now += 1.0  # nothing to compute
    assert run.real_time_factor == 1.0
    assert run.idle == pytest.approx(0.25)
    # 12 s of the four clips, and six clips that are like them.
    assert run.seconds_left == pytest.approx(12 + 30)
    assert str(run) == "0.2 clips/s, 1 x real time, device idle 25%, 42 s left"


def test_two_batches_under_way_are_not_busy_twice(clock):
    run = Throughput(1, clock)
    run.open(100.0)
    batch(run, clock, 1.0, 1.0)
    run.begin_batch()
    run.begin_batch()
    clock.now += 4.0
    assert run.idle == 0.0
    run.end_batch()
    clock.now += 4.0
    run.end_batch()
    clock.now += 8.0
    run.did(2.0)
    assert run.idle == pytest.approx(0.5)


def test_clips_that_fail_or_are_there_already_leave_nothing_to_do(clock):
    run = Throughput(4, clock)
    run.skip(2)
    run.open(4.0)
    run.open(4.0)
    batch(run, clock, 1.0, 2.0)
    batch(run, clock, 1.0, 2.0)
    assert run.seconds_left == pytest.approx(2.0)
    run.drop(4.0)
    assert run.seconds_left == 0.0


def test_a_line_comes_without_anything_being_counted(clock, capsys, monkeypatch):
    monkeypatch.setattr("mfm_jax.runtime.progress.EVERY", 0.0)
    monkeypatch.setattr("mfm_jax.runtime.progress.BEAT", 0.01)
    run = Throughput(3, clock)
    run.open(8.0)
    batch(run, clock, 1.0, 1.0)
    batch(run, clock, 1.0, 1.0)
    with Progress(None, "clips") as progress:
        progress.watch(3, run)
        said = ""
        while not said:
            said = capsys.readouterr().err
    assert said.splitlines()[0].startswith("0 of 3 clips, 0.125 clips/s, 1 x real time, ")

"""Every second of a run is booked once, over restarts too."""

import json
import time

import pytest

from mfm_jax.cli import main
from mfm_jax.train.goodput import NAME, Line, booked, process_start, read_lines, summarised, total
from tests.train.regression import Regression, config
from train import train


def line(began: float, now: float, done: int, **seconds: float) -> Line:
    return Line(float(began), float(now), done, {n: float(x) for n, x in seconds.items()})


def test_steps_that_a_restart_does_again_are_not_kept():
    lines = [
        line(100, 110, 0, start=10),
        line(100, 150, 4, start=10, step=40),
        line(100, 190, 8, start=10, step=70, input=5, evaluation=5),
    ]
    assert booked(lines, 4, 200.0) == {
        "start": 10, "step": 40, "input": 0, "evaluation": 0, "redone": 40, "down": 10,
    }  # fmt: skip
    lines += [line(200, 205, 4, start=5), line(200, 220, 6, start=5, step=15)]
    found = total(lines)
    assert sum(found.values()) == 120
    assert (found["step"], found["redone"]) == (55, 40)
    # The next process goes on from the checkpoint of the first one again, or from nothing.
    found = booked(lines, 4, 225.0)
    assert (found["step"], found["redone"], found["down"]) == (40, 55, 15)
    found = booked(lines, 0, 225.0)
    assert (found["step"], found["redone"], sum(found.values())) == (0, 95, 125)


def test_a_run_of_several_processes_is_booked_to_the_second(tmp_path, capsys):
    began = time.time()
    assert train(config(Regression(stop_at=1)), tmp_path, "test") == 143
    with (tmp_path / NAME).open("a") as file:  # what a kill may leave
        file.write('{"began": 1, "ti')
    time.sleep(0.2)
    again = time.time()
    assert train(config(Regression(), save_every=2), tmp_path, "test", began=again) == 0
    found = json.loads((tmp_path / "summary.json").read_text())["goodput"]
    told = (tmp_path / "summary.json").stat().st_mtime  # before the process ends
    assert found["wall_seconds"] == pytest.approx(told - began, rel=0.01)
    seconds = found["seconds"]
    assert sum(seconds.values()) == pytest.approx(found["wall_seconds"], abs=0.02)
    assert found["goodput"] == pytest.approx(seconds["step"] / found["wall_seconds"], abs=1e-3)
    assert {"start", "compile", "restore", "step", "save", "finish", "down"} <= seconds.keys()
    assert seconds["down"] >= 0.2

    lines = read_lines(tmp_path / NAME)
    assert [line.step for line in lines] == [0, 3, 6, 6, 6, 8, 9, 10, 12, 12, 12]
    booked_until = lines[-1].time - began
    assert summarised(total(lines))["wall_seconds"] == pytest.approx(booked_until, rel=0.01)

    assert main(["status", str(tmp_path), str(tmp_path / "checkpoints")]) == 1
    run, other = capsys.readouterr().out.splitlines()[-2:]
    assert run.startswith(f"{tmp_path}: step 12 of 12, loss ")
    assert "goodput " in run
    assert "last report " in run
    assert "has no" in other


def test_the_start_of_this_process_is_known():
    assert 0 < time.time() - process_start() < 7 * 24 * 3600

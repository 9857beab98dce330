"""What a run shows: its lines, event files, sounds, profile and summary."""

import io
import json
import os
import shutil
import struct
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from jax import numpy as jnp
from PIL import Image

from mfm_jax.bundle import Bundle, Source, write_bundle
from mfm_jax.data.sources import ClipFiles
from mfm_jax.errors import SettingError
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.storage.weights import abstract, named_weights
from mfm_jax.train.board import _tensorboardx
from mfm_jax.train.log import Metrics
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.stage2 import Stage2Recipe
from mfm_jax.train.speed import WARM, StepTimer
from mfm_jax.train.step import ComputeConfig
from tests.bundles import SETTINGS, filled, untrained_bundle
from tests.feature_folder import TINY, write_features
from tests.train.regression import Regression, config
from tests.train.small_mapper import get_config
from train import main, train


def events(folder: Path) -> list:
    """Of all event files, in the order that TensorBoard reads them."""
    event = _tensorboardx().proto.event_pb2.Event
    found = []
    for file in sorted((folder / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            found.append(event.FromString(data[12 : 12 + size]))
            data = data[16 + size :]
    return found


def shown(folder: Path) -> dict[str, list[tuple[int, object]]]:
    """What TensorBoard shows under each name: a start hides what came before of later steps."""
    found: dict[str, list] = {}
    for event in events(folder):
        if event.HasField("session_log"):
            found = {k: [e for e in v if e[0] < event.step] for k, v in found.items()}
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, value))
    return found


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def points(folder: Path) -> dict[tuple[str, int], float]:
    """All numbers of the lines; none is there twice."""
    found = [((n, x["step"]), x[n]) for x in lines(folder) for n in x if n != "step"]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_lines_events_and_the_summary_agree(tmp_path, capsys):
    assert train(config(Regression()), tmp_path, "test") == 0
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == [0, 3, 6, 6, 9, 12, 12]
    assert all(row["seconds"] > 0 for row in rows if "loss" in row)
    for row in rows:
        if "loss" in row:
            assert row["clips_per_second"] == pytest.approx(4 / row["seconds"])
    curves = {
        (name, step): value.simple_value
        for name, found in shown(tmp_path).items()
        for step, value in found
    }
    assert curves == pytest.approx(points(tmp_path), rel=1e-6)

    found = json.loads((tmp_path / "summary.json").read_text())
    errors = {row["step"]: row["heldout_loss"] for row in rows if "heldout_loss" in row}
    assert found["steps"] == 12
    assert found["heldout"] == {
        "metric": "loss",
        "best": {"step": min(errors, key=errors.get), "value": min(errors.values())},
        "last": {"step": 12, "value": errors[12]},
    }
    assert 0 < 11 * found["seconds"] < found["wall_seconds"]
    assert found["clips_per_second"] == pytest.approx(4 / found["seconds"])
    assert (found["devices"], found["device"]) == (jax.device_count(), "cpu")
    assert found["peak_memory"] is found["bundle"] is None
    assert "mfu" not in found
    said = capsys.readouterr().out.splitlines()
    assert f"best {min(errors.values()):.4g} at step" in said[-1]
    assert said[-2].startswith("goodput ")
    assert said[-3].startswith("12 steps on ")


def test_a_run_that_was_killed_leaves_every_point_once(tmp_path):
    """After half a line, and steps that are done again."""
    train(config(Regression()), tmp_path / "whole", "test")
    broken = tmp_path / "broken"
    assert train(config(Regression(stop_at=1)), broken, "test") == 143
    with (broken / "metrics.jsonl").open("a") as file:
        file.write(f'{"[" * 10**5}\n3\n{{}}\n{{"step": 3, "heldout_loss": "x"}}\n')
        file.write('{"step": 9, "loss": 7.0}\n{"step": 12, "lo')
    board = _tensorboardx().event_file_writer.EventsWriter(str(broken / "tensorboard/events"), ".1")
    proto, values = _tensorboardx().proto, [{"tag": "loss", "simple_value": 7.0}]
    board.write_event(proto.event_pb2.Event(step=9, summary={"value": values}))
    board.close()
    train(config(Regression()), broken, "test")
    found, expected = points(broken), points(tmp_path / "whole")
    assert found.keys() == expected.keys()
    for (name, step), value in expected.items():
        if name in ("loss", "gradient", "heldout_loss"):
            assert found[name, step] == value
    for name, entries in shown(broken).items():
        steps = [step for step, _ in entries]
        assert steps == sorted({step for n, step in expected if n == name}), name
    assert json.loads((broken / "summary.json").read_text())["start"] == 6


def test_a_run_that_begins_anew_forgets_the_one_before(tmp_path):
    train(config(Regression()), tmp_path, "test")
    shutil.rmtree(tmp_path / "checkpoints")
    train(config(Regression(), steps=3), tmp_path, "test")
    assert [row["step"] for row in lines(tmp_path)] == [0, 3, 3]
    assert {step for found in shown(tmp_path).values() for step, _ in found} == {0, 3}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_a_bar(tmp_path, monkeypatch):
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    train(config(Regression()), tmp_path, "test")
    bar = err.getvalue()
    assert "12/12" in bar
    assert "clips/s" in bar
    assert "step 6  heldout_loss" in bar
    assert "MFU" not in bar
    assert "gradient" not in out.getvalue() + bar
    assert len(lines(tmp_path)) == 7


class Clock:
    """Tells the time that it is set to."""

    now = 0.0

    def perf_counter(self):
        return self.now


def test_the_clock_runs_during_steps_but_the_first(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("mfm_jax.train.speed.time", clock)
    timer = StepTimer(6, devices=2, peak=1e3)
    timer.count_flops(lambda x: x @ x, jnp.ones((10, 10)))
    assert timer.flops == 2000
    for passed, evaluated in ((50.0, 0.0), (2.0, 100.0), (4.0, 0.0)):
        timer.start()
        clock.now += passed
        timer.step_done()
        if evaluated:
            timer.pause()
            clock.now += evaluated
    expected = {"seconds": 3.0, "clips_per_second": 2.0, "mfu": pytest.approx(2000 / 3 / 2 / 1e3)}
    assert timer.total() == expected
    assert timer.lap() == expected
    assert timer.lap() == {}
    assert timer.total() == expected


@pytest.mark.parametrize(("remat", "traced"), [("none", 1), ("blocks", 2)])
def test_the_mfu_is_that_of_the_model_whose_step_is_traced_once(
    remat, traced, tmp_path, monkeypatch
):
    """And once more where the step computes things anew, which the MFU does not count."""
    monkeypatch.setattr("mfm_jax.cost.chips.peak_flops", lambda kind: 1e6)
    calls, loss = [], Regression.loss
    monkeypatch.setattr(Regression, "loss", lambda *a: calls.append(1) or loss(*a))
    # In evaluations the loss is traced as well.
    monkeypatch.setattr(Regression, "evaluate", lambda *a: {})
    recipe = Regression()
    changed = config(recipe, steps=4, log_every=2, compute=ComputeConfig(remat=remat))
    assert train(changed, tmp_path, "test") == 0
    assert len(calls) == traced
    # Of 4 clips: 5 x 7 weights forward only, being frozen; 7 x 3 forward and twice backward.
    operations = 2 * 4 * (5 * 7 + 3 * 7 * 3)
    rows = [row for row in lines(tmp_path) if "loss" in row]
    for row in rows:
        expected = operations / row["seconds"] / jax.device_count() / 1e6
        assert row["mfu"] == pytest.approx(expected)
    assert len(rows) == 2
    assert "mfu" in json.loads((tmp_path / "summary.json").read_text())


def with_unet(bundle: Bundle, place: Path, width: int) -> Bundle:
    """The bundle at `place` with a UNet that compiles soon and reads LOA of this width."""
    sizes = UNetConfig(
        channels=(16,), attentions=((0,),), contexts=(width,), heads=2, resnets=1, groups=8
    )
    unet = filled(abstract(partial(UNet, sizes)), 0)
    return write_bundle(place, {"unet": (sizes, unet, Source("tests", "none"))}, base=bundle.path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle, and features that pass for those of its encoders."""
    place = tmp_path_factory.mktemp("log")
    bundle = with_unet(untrained_bundle(place / "bundle"), place / "bundle", width=128)
    for part, clips in (("train", 9), ("heldout", 5)):
        write_features(bundle, place / "features" / part, clips, TINY)
    return place


@pytest.fixture(scope="module")
def made(folder) -> TrainConfig:
    """A short run of a small mapper between the bundle's networks."""
    small = get_config()
    network = replace(
        small.recipe.network,
        encoders=(("cavp", 32, 64), ("timechat", 16, 96)),
        loa_width=128,
        gpt2=replace(small.recipe.network.gpt2, positions=128),
    )
    recipe = replace(
        small.recipe, network=network, bundle=str(folder / "bundle"),
        source=ClipFiles(str(folder / "features")),
    )  # fmt: skip
    return replace(small, recipe=recipe, steps=2, save_every=2, log_every=2)


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_samples_are_sounds_of_heldout_clips_and_change_nothing(made, tmp_path):
    assert train(made, tmp_path / "without", "test") == 0
    made, run = replace(made, sample_every=2), tmp_path / "with"
    assert train(made, run, "test") == 0
    weights = named_weights(Bundle.open(run).load("mapper"))
    for name, expected in named_weights(Bundle.open(tmp_path / "without").load("mapper")).items():
        np.testing.assert_array_equal(weights[name], expected, err_msg=name)

    first, last = (run / "samples" / f"step-{step}" for step in (0, 2))
    assert sorted((run / "samples").iterdir()) == [first, last]
    names = [f"clip{i:02d}" for i in range(4)]
    assert list(files(last)) == [f"{n}.{s}" for n in names for s in ("png", "wav")]
    for wav in last.glob("*.wav"):
        wave, rate = soundfile.read(wav)
        assert (rate, wave.shape) == (16_000, (SETTINGS.frames * 160,))
        assert wave.std() > 0
        with Image.open(wav.with_suffix(".png")) as image:
            assert image.size == (800, 250)
    assert files(first) != files(last)
    on_board = shown(run)["samples/clip00"]
    assert [step for step, _ in on_board] == [0, 0, 2, 2]
    heard = soundfile.read(io.BytesIO(on_board[-2][1].audio.encoded_audio_string))[0]
    np.testing.assert_allclose(heard, soundfile.read(last / "clip00.wav")[0], atol=1e-4)
    assert on_board[-1][1].image.encoded_image_string.startswith(b"\x89PNG")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["bundle"] == str(run)
    assert summary["heldout"]["metric"] == "loa_error"

    # The same weights make the same bytes.
    before = files(last)
    shutil.rmtree(last)
    train(made, run, "test")
    assert files(last) == before


def test_a_run_that_goes_on_does_not_write_its_samples_again(tmp_path):
    timer = StepTimer(1, devices=1, peak=None)
    for _ in range(2):
        metrics = Metrics(tmp_path, timer, start=2, every=1)
        metrics.sounds(2, {"a/b": np.zeros(1600, np.float32)})
        metrics.close()
    assert [step for step, _ in shown(tmp_path)["samples/a/b"]] == [2, 2]  # sound and picture
    assert list(files(tmp_path / "samples" / "step-2")) == ["a_b.png", "a_b.wav"]


def test_samples_of_clips_with_any_name(tmp_path):
    names = [f"{'x' * 300}{i}" for i in range(2)] + [os.fsdecode(b"caf\xe9")]
    metrics = Metrics(tmp_path, StepTimer(1, devices=1, peak=None), start=2, every=1)
    metrics.sounds(2, dict.fromkeys(names, np.zeros(1600, np.float32)))
    metrics.close()
    assert len(files(tmp_path / "samples" / "step-2")) == 6
    assert "samples/caf\\udce9" in shown(tmp_path)


def test_stage_2_sounds_through_its_own_unet(folder):
    recipe = Stage2Recipe(
        bundle=str(folder / "bundle"), lora_rank=2, lora_targets=("*.attn2.?.kernel",)
    )
    bundle = Bundle.open(folder / "bundle")
    module = filled(abstract(recipe.build), 0)
    made = recipe.sound_networks(module, bundle)
    assert made.mapper is module.mapper
    frozen, adapted = named_weights(module.unet), named_weights(made.unet)
    changed = [name for name, weight in adapted.items() if weight is not frozen[name]]
    assert changed
    assert all(".attn2." in name for name in changed)


def test_samples_that_cannot_be_made_are_one_line(made, folder, tmp_path):
    with pytest.raises(
        SettingError, match="sample_every: a Regression trains a network that makes no sound"
    ):
        config(Regression(), sample_every=3)
    with_unet(Bundle.open(folder / "bundle"), tmp_path / "other", width=64)
    recipe = replace(made.recipe, bundle=str(tmp_path / "other"))
    with pytest.raises(SettingError, match="reads LOA of width 64, the mapper predicts 128"):
        train(replace(made, recipe=recipe, sample_every=2), tmp_path / "run", "test")


def test_a_profile_is_where_the_line_says(tmp_path, capsys):
    assert train(config(Regression()), tmp_path / "a", "test", profile=2) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("profile: ")]
    assert str(tmp_path / "a" / "profile") in line
    (trace,) = (tmp_path / "a" / "profile").rglob("*.trace.json.gz")
    assert trace.stat().st_size > 1000
    train(config(Regression(), steps=WARM), tmp_path / "b", "test", profile=2)
    assert f"profile: none, the run ended before step {WARM + 1}" in capsys.readouterr().out
    assert not (tmp_path / "b" / "profile").exists()


def test_a_profile_of_no_steps_is_refused(capsys):
    arguments = ["--config", "configs/tiny.py", "--workdir", "x", "--profile=0"]
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "--profile" in capsys.readouterr().err


def test_processes_other_than_the_first_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    metrics = Metrics(tmp_path, StepTimer(1, devices=1, peak=None), every=1)
    metrics.add(1, {"loss": jnp.array(1.0)})
    metrics.flush()
    metrics.sounds(1, {"a": np.zeros(1600, np.float32)})
    metrics.close()
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""

"""`--memory low`: the same sounds, with the networks of one stage on the device at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.cli import main
from mfm_jax.inference import staged
from mfm_jax.inference.memory import STAGES, plan, size
from mfm_jax.inference.pipeline import Made, Sampling, VideoToAudio
from mfm_jax.inference.requests import Request
from mfm_jax.inference.staged import StagedNetworks
from mfm_jax.inference.work import Job
from mfm_jax.mapper import Stream
from mfm_jax.media.write import write_frames
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh
from mfm_jax.runtime.throughput import Throughput
from tests.bundles import untrained_bundle
from tests.noise import window
from tests.windows import pair_spec

ONE = Layout(make_mesh(MeshConfig(), jax.local_devices()[:1]))


def test_the_sounds_are_the_same_and_the_weights_of_other_stages_are_not_there(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "in").mkdir()
    for name, seconds in (("a", 5), ("b", 1)):  # three windows of 2.56 s, and one
        frames = np.random.default_rng(0).integers(0, 256, (25 * seconds, 32, 48, 3), np.uint8)
        write_frames(iter(frames), tmp_path / "in" / f"{name}.mp4", fps=25)
    untrained_bundle(tmp_path / "bundle")
    command = ["generate", str(tmp_path / "in"), "--bundle", str(tmp_path / "bundle")]
    command += ["--format", "wav", "--steps", "2", "--batch", "1"]
    assert main([*command, "-o", str(tmp_path / "high")]) == 0

    opened: list[tuple[Sequence[str], int]] = []
    load = VideoToAudio.open

    def recorded(*args: Any, only: Sequence[str], **how: Any) -> VideoToAudio:
        opened.append((only, sum(x.nbytes for x in jax.live_arrays())))
        return load(*args, only=only, **how)

    before = sum(x.nbytes for x in jax.live_arrays())
    monkeypatch.setattr(VideoToAudio, "open", recorded)
    monkeypatch.setattr(staged, "ROUND", 3)
    capsys.readouterr()
    assert main([*command, "-o", str(tmp_path / "low"), "--memory", "low"]) == 0
    told = capsys.readouterr().err
    assert "device memory, one stage after the other:" in told
    assert told.index("GB on each device") < told.index("a.mp4 ->")
    for name in ("a.wav", "b.wav"):
        assert (tmp_path / "low" / name).read_bytes() == (tmp_path / "high" / name).read_bytes()
    assert [only for only, _ in opened] == [*STAGES.values()] * 2  # two rounds
    weights = size(load(tmp_path / "bundle", layout=ONE, only=["mapper"]).networks.mapper)
    assert all(there - before < weights for _, there in opened)


def test_the_plan_counts_the_weights_of_each_stage(tmp_path):
    bundle = untrained_bundle(tmp_path)
    found = plan(bundle, ONE, batch=1, dtype=np.dtype("float32"), sampling=Sampling(steps=2))
    bytes_of = {name: 4 * bundle.entries[name].parameters for name in bundle.entries}
    for stage in found.stages:
        names = ("cavp", "timechat") if stage.name == "encoders" else STAGES[stage.name]
        assert stage.weights == sum(bytes_of.get(name, 0) for name in names)
        assert min(stage.arrays, stage.temporaries) > 0
    assert len(found.programs.known) == 4
    assert found.lines()[-1].startswith("  at most ")


SPEC = pair_spec(1.0, 0.0, cavp_size=8, timechat_frames=2, timechat_size=8)


class StandIn(VideoToAudio):
    """A model without networks whose encoder fails at the windows of one video."""

    def __init__(self) -> None:
        object.__setattr__(self, "networks", ())

    def encode(self, windows: Sequence[Any]) -> Any:
        if any(one.index == 7 for one in windows):
            raise ValueError("broken")
        first = np.stack([one.seen["cavp"].pixels.ravel()[:1] for one in windows])[:, None]
        return {"cavp": Stream(jnp.asarray(first), jnp.asarray(first[..., 0]))}

    def predict(self, streams: Any) -> Any:
        return streams["cavp"].tokens * 2.0


def test_a_video_that_fails_in_a_stage_fails_alone():
    jobs = [Job(Request(Path(name)), Path(name)) for name in "abc"]
    items = [(jobs[0], window(SPEC, 0)), (jobs[1], window(SPEC, 7)), (jobs[2], window(SPEC, 1))]
    opened: list[Sequence[str]] = []

    def load(names: Sequence[str]) -> Any:
        opened.append(names)
        return StandIn()

    def sound(model: Any, group: Sequence[Any], loa: Any) -> Made:
        assert all(one.seen["cavp"].pixels.size == 0 for _, one in group)
        return Made(np.asarray(loa) + 1, loa)

    networks = StagedNetworks(load, sound)
    results = list(networks.results([items[:2], items[2:]], 2, Throughput()))
    failed = [group for group, result in results if isinstance(result, Exception)]
    made = {g[0][0]: r for g, r in results if not isinstance(r, Exception)}
    assert [[job for job, _ in group] for group in failed] == [[jobs[1]]]
    for job, one in (items[0], items[2]):
        assert made[job].waves[0, 0, 0] == 2.0 * one.seen["cavp"].pixels.ravel()[0] + 1
    assert opened == [*STAGES.values()]


@pytest.mark.parametrize("items", [0, 7])
def test_no_network_is_loaded_for_a_stage_that_no_window_reaches(items):
    opened: list[Sequence[str]] = []

    def load(names: Sequence[str]) -> Any:
        opened.append(names)
        return StandIn()

    group = [(Job(Request(Path("a")), Path("a")), window(SPEC, 7))] * bool(items)
    networks = StagedNetworks(load, lambda *_: pytest.fail("nothing is left"))
    results = list(networks.results([group] if group else [], 2, Throughput()))
    assert len(results) == len(group)
    assert len(opened) == len(group)

"""`train.py` itself on meshes of simulated devices and in several processes."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from mfm_jax.bundle import COMPONENTS, Bundle, write_bundle
from mfm_jax.errors import SettingError
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.runtime.sharding import AXES, RULES, MeshConfig, make_mesh, spec
from mfm_jax.storage.weights import abstract, named_axes, named_weights
from tests.bundles import CONFIGS, SETTINGS, TINY, untrained_bundle, untrained_component
from tests.feature_folder import write_features
from tests.forked import Forked
from tests.ports import free_port
from tests.train.compiled_on_mesh import temporary_memory
from tests.train.runs_on_mesh import run, run_all
from tests.train.small_mapper import SHAPES, get_config
from train import main


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bundle, and features of 20 clips: more than two batches, and not a whole number of them."""
    folder = tmp_path_factory.mktemp("mesh")
    bundle = untrained_bundle(folder / "bundle")
    for part, clips in (("train", 20), ("heldout", 9)):
        write_features(bundle, folder / "features" / part, clips, SHAPES)
    return folder


def words(made: Path, workdir: Path, changes: Sequence[str]) -> list[str]:
    """Return the command line of a run."""
    overrides = [f"recipe.bundle={made / 'bundle'}", f"recipe.source={made / 'features'}"]
    command = ["--config", "tests/train/small_mapper.py", "--workdir", str(workdir)]
    return [*command, *(f"--config.{change}" for change in (*overrides, *changes))]


def forked(made: Path, devices: int, function: Callable, *work, read_only: bool = False) -> Forked:
    """Start a process with `devices` devices.

    They share compiled programs; a process that is to be killed leaves none, or half of one.
    """
    options = {
        "jax_num_cpu_devices": devices,
        "jax_compilation_cache_dir": str(made / "programs"),
        "jax_persistent_cache_min_compile_time_secs": 1e6 if read_only else 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    return Forked(function, *work, options=options)


def begun(
    made: Path, devices: int, runs: Mapping[Path, Sequence[str]], processes: int = 1
) -> list[Forked]:
    """Start processes that do runs one after the other; a run is its folder and its changes."""
    lines = {workdir.name: words(made, workdir, changes) for workdir, changes in runs.items()}
    others = ["--coordinator", f"127.0.0.1:{free_port()}", "--processes", str(processes)]
    each = [[*others, "--process", str(i)] if processes > 1 else [] for i in range(processes)]
    return [forked(made, devices, run_all, lines, process) for process in each]


def ended(started: Sequence[Forked]) -> list[dict]:
    """Wait until all have ended well and return what each reports, by the name of the run."""
    return [process.result() for process in started]


def losses(workdir: Path) -> dict[int, float]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def errors(workdir: Path) -> dict[str, float]:
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    return {name: value for name, value in last.items() if name.startswith("heldout")}


def same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)


MESHES = {
    (8, 1, 1): "alone",
    (1, 4, 2): "parts",
    (2, 2, 2): "alone",
}
"""Sizes, and the run on one device that is the same."""
STEPS = get_config().steps
PARTS = ["compute.accumulate=2", "compute.remat=blocks", "batch=16"]
"""Parts of a batch, and activations that are made anew."""
KILLS = int(os.environ.get("KILLS", "2"))
LENGTH = 16 + 8 * KILLS
BROKEN = [f"steps={LENGTH}", "save_every=4", f"eval_every={LENGTH // 2}"]
BROKEN += ["ema_decay=0.9", "best=loa_error"]
"""A save begins every fourth step."""
MISFITS = {
    "mesh.data=3": "mesh: data 3 x fsdp 1 x tensor 1 is 3 devices and there are 8: change",
    "mesh.fsdp=0": "mesh: every axis needs at least one device",
    "batch=12": "batch: 12 clips do not divide over the 8 devices",
    "mesh.pipe=2": "MeshConfig has no field 'pipe'; it has data, fsdp, tensor",
}


def codes(found: Mapping[str, dict]) -> dict[str, int]:
    return {name: its["code"] for name, its in found.items()}


@pytest.fixture(scope="module")
def eight(made) -> dict:
    """Run on eight devices, in one process; exit codes and stderr by the name of the run."""
    changes: dict[str, list[str]] = {
        str(sizes): [f"mesh.{n}={k}" for n, k in zip(AXES, sizes, strict=True)]
        + (PARTS if same_as == "parts" else [])
        for sizes, same_as in MESHES.items()
    }
    changes |= {change: [change] for change in MISFITS}
    (found,) = ended(begun(made, 8, {made / "eight" / n: c for n, c in changes.items()}))
    assert codes(found) == {name: 2 if name in MISFITS else 0 for name in changes}, found
    return found


@pytest.fixture(scope="module")
def one(made, eight) -> Path:
    """Run on one device: the usual run, one in parts, half of one on eight, and an unbroken one."""
    changes = {"alone": [], "parts": PARTS, "half": [], "unbroken": BROKEN}
    first_half(made, made / "one" / "half")
    (found,) = ended(begun(made, 1, {made / "one" / n: c for n, c in changes.items()}))
    assert set(codes(found).values()) == {0}, found
    return made / "one"


@pytest.fixture(scope="module")
def two(made, eight) -> list[dict]:
    """Run on two processes of two devices each. The last of their runs is told to stop."""
    folder = made / "two"
    changes = {"mesh.tensor=4": ["mesh.tensor=4"], "half": ["mesh.fsdp=2"]}
    changes |= {"stop": ["steps=1000000", "save_every=1000000"]}
    first_half(made, folder / "half")
    started = begun(made, 2, {folder / n: c for n, c in changes.items()}, 2)
    metrics, patience = folder / "stop" / "metrics.jsonl", time.monotonic() + 240
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert time.monotonic() < patience
        assert [p.poll() for p in started] == [None, None]
        time.sleep(0.2)
    started[1].send_signal(signal.SIGTERM)
    return ended(started)


@pytest.fixture(scope="module")
def four(made) -> list[dict]:
    """Run on four processes of one device each."""
    return ended(begun(made, 1, {made / "four" / "mesh.data=4": ["mesh.data=4"]}, 4))


def first_half(made: Path, workdir: Path) -> None:
    """Make a workdir of a run on eight devices, in four parts, that stopped half-way."""
    shutil.copytree(made / "eight" / "(2, 2, 2)", workdir)
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    (workdir / "metrics.jsonl").unlink()


@pytest.fixture(scope="module")
def alone(one):
    """The folder of a run on one device."""
    found = losses(one / "alone")
    assert sorted(found) == list(range(1, STEPS + 1))
    assert found[STEPS] < found[1]
    return one / "alone"


@pytest.mark.parametrize("sizes", MESHES)
@pytest.mark.usefixtures("eight")
def test_a_mesh_changes_nothing_but_the_place(sizes, made, one):
    """Neither where a batch is computed in parts and activations are made anew."""
    workdir, other = made / "eight" / str(sizes), one / MESHES[sizes]
    same(losses(workdir), losses(other))
    same(errors(workdir), errors(other))
    weights = named_weights(Bundle.open(workdir).load("mapper"))
    for name, expected in named_weights(Bundle.open(other).load("mapper")).items():
        if not name.endswith("attn.k.bias"):  # nothing depends on it: Adam makes rounding large
            np.testing.assert_allclose(weights[name], expected, atol=1e-4, err_msg=name)


def test_every_device_holds_its_share_of_the_activations(tmp_path):
    """Where the compiler copies a batch to all devices, the memory shows it at once.

    At (2, 2, 2) each has the clips of one in four, and of what is wide in the layers every other
    column as well.
    """
    configs = {name: CONFIGS[name] for name in ("mapper", "unet", "vae", "vocoder")}
    # Two levels have layers of every kind.
    configs["unet"] = replace(TINY["unet"], channels=(24, 48), attentions=((), (0,)))
    write_bundle(
        tmp_path,
        {name: untrained_component(name, config, 0) for name, config in configs.items()},
        settings=SETTINGS,
    )
    found = Forked(temporary_memory, str(tmp_path), options={"jax_num_cpu_devices": 8}).result()
    assert {stage: len(memory) for stage, memory in found.items()} == {"stage 1": 3, "stage 2": 2}
    for stage, memory in found.items():
        alone = memory.pop("1x1x1")
        for mesh, size in memory.items():
            assert size < alone / 5, f"{stage}, {mesh}: {size} bytes on each device, {alone} on one"


@pytest.mark.parametrize(
    ("processes", "mesh"),
    [("four", "mesh.data=4"), ("two", "mesh.tensor=4")],
    ids=["4x1", "clips undivided"],
)
def test_processes_share_the_work_and_change_nothing(processes, mesh, made, alone, request):
    first, *others = request.getfixturevalue(processes)
    assert f"step {STEPS}" in first[mesh]["stdout"]
    assert not any("step" in its[mesh]["stdout"] for its in others), "the first one speaks for all"
    workdir = made / processes / mesh
    same(losses(workdir), losses(alone))
    same(errors(workdir), errors(alone))
    Bundle.open(workdir).load("mapper")


@pytest.mark.parametrize("processes", ["one", "two"])
def test_a_run_goes_on_with_other_devices(processes, made, alone, request):
    request.getfixturevalue(processes)
    rest = {step: loss for step, loss in losses(alone).items() if step > STEPS // 2}
    same(losses(made / processes / "half"), rest)


def test_a_signal_to_one_process_stops_both_at_one_step(made, two):
    (step,) = (p.name for p in (made / "two" / "stop" / "checkpoints").iterdir())
    assert f"stopped at step {step}: the same command continues" in two[0]["stop"]["stdout"]
    assert {its["stop"]["code"] for its in two} == {143}


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(made, one, tmp_path):
    """Also while it saves. KILLS=20 kills more often."""
    rng, broken = np.random.default_rng(0), tmp_path / "broken"
    line = words(made, broken, BROKEN)
    for _ in range(KILLS):
        least, patience = steps_told(broken), time.monotonic() + 240
        process = forked(made, 1, run, line, read_only=True)
        while (told := steps_told(broken)) <= least:  # it forgets those after its checkpoint
            least = told
            assert process.poll() is None
            assert time.monotonic() < patience
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.0))
        process.kill()
    assert forked(made, 1, run, line, read_only=True).result()["code"] == 0
    assert losses(broken) == losses(one / "unbroken")
    weights = named_weights(Bundle.open(broken).load("mapper"))
    for name, expected in named_weights(Bundle.open(one / "unbroken").load("mapper")).items():
        np.testing.assert_array_equal(weights[name], expected, err_msg=name)


def steps_told(workdir: Path) -> int:
    """Return the number of steps whose loss is written."""
    metrics = workdir / "metrics.jsonl"
    return metrics.read_text().count('"loss"') if metrics.exists() else 0


@pytest.mark.parametrize("change", MISFITS)
def test_a_mesh_that_does_not_fit_is_one_line(change, eight):
    assert eight[change]["code"] == 2
    assert MISFITS[change] in eight[change]["stderr"]
    assert eight[change]["stderr"].count("\n") == 1


def test_half_a_description_of_the_processes_is_one_line(made, tmp_path, capsys):
    assert main([*words(made, tmp_path / "run", []), "--processes", "2"]) == 2
    error = capsys.readouterr().err
    assert "--coordinator, --processes and --process go together" in error
    assert error.count("\n") == 1


class TestTable:
    MESH = jax.sharding.AbstractMesh((2, 2, 2), AXES)

    @pytest.mark.parametrize("name", TINY)
    def test_every_weight_of_every_network_has_a_place(self, name):
        network = abstract(lambda rngs: COMPONENTS[name].build(TINY[name], rngs=rngs))
        axes, weights = named_axes(network), named_weights(network)
        cut = {n: spec(axes[n], w.shape, self.MESH) for n, w in weights.items()}
        large = {n for n, w in weights.items() if w.ndim > 1 and w.size > 4096}
        whole = [n for n in large if all(part is None for part in cut[n])]
        assert not whole, "no large weight is copied to all devices"

    def test_a_layer_that_widens_and_one_that_narrows_are_cut_along_the_same_axis(self):
        network = abstract(lambda rngs: GPT2(GPT2Config.tiny(), rngs=rngs))
        axes = named_axes(network)
        place = {n: spec(axes[n], w.shape, self.MESH) for n, w in named_weights(network).items()}
        assert place["blocks.0.mlp.up.kernel"] == PartitionSpec(("fsdp",), ("tensor",))
        assert place["blocks.0.mlp.down.kernel"] == PartitionSpec(("tensor",), ("fsdp",))
        assert place["blocks.0.attn.q.kernel"] == PartitionSpec(("fsdp",), ("tensor",))
        assert place["blocks.0.attn.o.kernel"] == PartitionSpec(("tensor",), ("fsdp",))

    def test_what_does_not_divide_stays_whole(self):
        assert spec(("embed", "mlp"), (6, 5), self.MESH) == PartitionSpec(("fsdp",), None)

    def test_two_axes_along_the_same_one_are_refused(self):
        with pytest.raises(ValueError, match="sharded over the same axis of the mesh"):
            spec(("heads", "mlp"), (8, 8), self.MESH)

    def test_an_axis_without_a_rule_is_refused(self):
        with pytest.raises(ValueError, match="no rule for the axis 'depth'"):
            spec(("depth",), (8,), self.MESH)

    def test_the_rules_name_axes_of_the_mesh(self):
        assert {name for names in RULES.values() for name in names} <= set(AXES)

    def test_all_devices_go_to_data_by_default(self):
        assert dict(make_mesh(MeshConfig()).shape) == {
            "data": jax.device_count(), "fsdp": 1, "tensor": 1,
        }  # fmt: skip
        with pytest.raises(SettingError, match="devices and there are"):
            make_mesh(MeshConfig(data=jax.device_count() + 1))

    def test_weights_without_declared_axes_are_whole(self):
        class Net(nnx.Module):
            def __init__(self, *, rngs):
                self.weight = nnx.Param(jax.numpy.zeros((8, 8)))

        assert named_axes(abstract(Net)) == {"weight": (None, None)}

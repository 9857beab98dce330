"""`mfm plan` compiles the programs that run, and its figures are correct."""

import importlib.util
import json
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from mfm_jax.bundle import Bundle, BundleError
from mfm_jax.cli import main
from mfm_jax.cost.chips import CHIPS, HOP, chip_of, peak_flops
from mfm_jax.cost.hlo import Collective
from mfm_jax.data.features import FeatureSource
from mfm_jax.errors import SettingError
from mfm_jax.inference.pipeline import VideoToAudio
from mfm_jax.inference.programs import generation
from mfm_jax.plan.programs import training
from mfm_jax.plan.released import released, write_released
from mfm_jax.plan.roofline import estimate, seconds
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.storage.weights import abstract, initialise
from mfm_jax.train.optimizer import build_optimizer, lr_multipliers
from mfm_jax.train.recipes.mapper import MapperRecipe
from mfm_jax.train.recipes.stage2 import Stage2Recipe
from mfm_jax.train.step import init_state, trainable
from tests.feature_folder import write_features
from tests.noise import window

ROOT = Path(__file__).parents[2]
SMALL = ROOT / "tests" / "train" / "small_mapper.py"
ONE = Layout(make_mesh(MeshConfig()))
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'mfm-jax[tpu]'"
)


def small():
    return runpy.run_path(str(SMALL))["get_config"]()


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, str(x.dtype), x.sharding), tree)


def test_the_state_that_is_planned_is_the_one_that_is_trained():
    config = replace(small(), ema_decay=0.9)
    abstract_module = abstract(config.recipe.build)
    multiplier = lr_multipliers(config.optimizer.lr_multipliers, trainable(abstract_module))
    tx = build_optimizer(config.optimizer, config.steps, multiplier)
    module = initialise(config.recipe.build, 0)
    state = init_state(module, tx, multiplier, ema=True, seed=0, layout=ONE)
    planned, _ = training(config, ONE).arguments
    assert shapes(planned) == shapes(state)


def test_the_batch_that_is_planned_is_the_one_that_is_read(tmp_path):
    bundle = Bundle.open(TINY_BUNDLE)
    write_features(bundle, tmp_path / "features", 2)
    element = FeatureSource(tmp_path / "features")[0]
    for recipe in (MapperRecipe(), Stage2Recipe(bundle=str(TINY_BUNDLE))):
        read = recipe.read(element)
        assert {n: (x.shape, x.dtype) for n, x in read.items()} == {
            n: (x.shape, x.dtype) for n, x in recipe.element_spec().items()
        }


def test_the_programs_of_generation_are_called_with_what_is_planned():
    model = VideoToAudio.open(TINY_BUNDLE, layout=ONE)
    given = model.inputs([window(model.spec, i) for i in range(2)], [0, 0])
    cavp, timechat, mapper, sound = generation(
        Bundle.open(TINY_BUNDLE), ONE, batch=2, dtype=jnp.float32
    )
    n = model.networks
    for program, arguments in (
        (cavp, (n.encoders["cavp"], given.frames["cavp"])),
        (timechat, (n.encoders["timechat"], given.frames["timechat"])),
    ):
        assert _sizes(program.arguments) == _sizes(arguments), program.name
    streams = {
        "cavp": cavp.traced(ONE).out_info,
        "timechat": timechat.traced(ONE).out_info,
    }
    assert _sizes(mapper.arguments) == _sizes((n.mapper, streams))
    loa = mapper.traced(ONE).out_info
    assert _sizes(sound.arguments) == _sizes(
        (n.sound_networks, loa, given.keys, given.text, given.negative, streams)
    )


def _sizes(tree):
    return [(x.shape, str(x.dtype)) for x in jax.tree.leaves(tree)]


@pytest.mark.usefixtures("no_program_cache")
def test_a_step_is_measured_after_it_is_compiled():
    chip = CHIPS["v5e"]
    found = estimate(training(small(), ONE), ONE, chip)
    assert found.device_flops == pytest.approx(found.flops, rel=0.05)
    assert (found.sent, found.exchange) == ({}, 0)
    assert 0 < found.memory.arguments < found.memory.peak
    assert found.fastest == found.slowest == max(found.compute, found.traffic)
    assert found.compute == found.device_flops / 197e12


def test_the_released_sizes_need_no_weights(tmp_path):
    bundle = Bundle.open(write_released(tmp_path / "bundle"))
    assert {name: bundle.config(name) for name in bundle.entries} == released()
    programs = generation(bundle, ONE, batch=2)
    assert [program.name for program in programs] == ["CAVP", "TimeChat", "mapper", "AudioLDM2"]
    with pytest.raises(BundleError, match="cannot read the weights of mapper"):
        bundle.load("mapper")
    with pytest.raises(BundleError, match="choose another folder"):
        write_released(tmp_path / "bundle")


def torus(*sizes: int):
    """Return the devices of a slice, in the order of a mesh."""
    return [SimpleNamespace(coords=list(at)) for at in np.ndindex(*sizes)]


def exchange(kind: str, group, size: int = 10**9) -> Collective:
    return Collective(kind, size, tuple(group), 1)


def test_an_exchange_uses_the_ports_of_the_axes_it_lies_along():
    chip, all_of = CHIPS["v5e"], range(256)
    whole = seconds(exchange("all-gather", all_of), chip, torus(16, 16, 1))
    # Two rings: four ports of 50 GB/s; the way is half of each ring.
    assert whole == pytest.approx(10**9 / 200e9 + 16 * HOP)
    row = seconds(exchange("all-gather", range(16)), chip, torus(16, 16, 1))
    assert row == pytest.approx(10**9 / 100e9 + 8 * HOP)
    # Four in a row are no ring on this chip: the last has one neighbour.
    line = seconds(exchange("all-reduce", range(4)), chip, torus(4, 4, 1))
    assert line == pytest.approx(10**9 / 50e9 + 2 * 3 * HOP)
    pair = seconds(exchange("collective-permute", (0, 5)), chip, torus(4, 4, 1))
    assert pair == pytest.approx(10**9 / 50e9 + 2 * HOP)
    # Eight chips of a host share two network cards of 100 Gbit/s.
    far = seconds(exchange("DCN all-reduce", (0, 1)), chip, torus(4, 4, 1))
    assert far == pytest.approx(10**9 / (2 * 100e9 / 8 / 8))


def test_chips_are_known_by_what_jax_calls_them():
    assert chip_of("TPU v5 lite") is CHIPS["v5e"]
    assert chip_of("NVIDIA H100 80GB HBM3") is CHIPS["h100"]
    assert peak_flops("TPU v6 lite") == 918e12
    assert peak_flops("cpu") is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config", "nowhere.py"], "there is no config nowhere.py"),
        (["--bundle", "nowhere"], "nowhere is not a bundle"),
        (["--config", str(SMALL), "--set", "mesh.fsdp=3"], "change mesh.data, mesh.fsdp"),
        (["--config", str(SMALL), "--batch", "6"], "6 clips do not divide over the 8 devices"),
        (["--config", "configs/tiny_cavp.py"], "cannot be planned"),
        (["--config", str(SMALL), "--only", "mapper"], "leave out --config"),
        (["--only", "voice"], "no program 'voice', but CAVP, TimeChat, mapper, AudioLDM2"),
    ],
)
@needs_libtpu
def test_wrong_usage_is_one_line(arguments, says, capsys):
    assert main(["plan", "--topology", "v5e:2x4", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mfm plan: ")
    assert says in line


@needs_libtpu
def test_one_program_of_generation_is_compiled_alone(tmp_path):
    file = tmp_path / "plan.json"
    plan = ["plan", "--topology", "v5e:2x4", "--batch", "8", "--json", str(file)]
    assert main([*plan, "--only", "mapper"]) == 0
    assert [row["program"] for row in json.loads(file.read_text())] == ["mapper"]


@needs_libtpu
def test_a_slice_that_is_not_made_is_one_line(capsys):
    assert main(["plan", "--topology", "v5e:3x3", "--config", str(SMALL)]) == 2
    assert "there is no TPU slice 'v5e:3x3'" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is here")
def test_without_libtpu_it_says_how_to_install_it(capsys):
    assert main(["plan", "--topology", "v5e:2x4", "--config", str(SMALL)]) == 2
    assert "pip install 'mfm-jax[tpu]'" in capsys.readouterr().err


@needs_libtpu
def test_a_step_for_a_slice_of_tpus(tmp_path, capsys):
    """For 8 and 16 chips: activations stay sharded, and a chip of 16 does no more work."""
    file = tmp_path / "plan.json"
    slices = ["v5e:2x4", "v5e:4x4"]
    plan = ["plan", "--config", str(SMALL), "--per-chip", "8", "--json", str(file)]
    assert main([*plan, "--topology", *slices]) == 0
    eight, sixteen = json.loads(file.read_text())
    assert (eight["devices"], eight["clips"], sixteen["clips"]) == (8, 64, 128)
    # Twice, and what it does of pairs of clips, for the contrast; it is little.
    assert sixteen["flops"] == pytest.approx(2 * eight["flops"], rel=0.05)
    assert sixteen["peak_bytes"] < 1.1 * eight["peak_bytes"]
    assert eight["flops_per_device"] * 8 == pytest.approx(eight["flops"], rel=0.1)
    assert eight["sent_bytes"]["all-reduce"] > 0
    assert 0.5 < sixteen["scaling"] < 1.1
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in printed[2:4]] == [f"| {name}" for name in slices]


@needs_libtpu
def test_two_slices_exchange_gradients_over_the_network(tmp_path, capsys):
    file = tmp_path / "plan.json"
    plan = ["plan", "--config", str(SMALL), "--topology", "v5e:2x2", "--json", str(file)]
    assert main([*plan, "--slices", "2"]) == 0
    (row,) = json.loads(file.read_text())
    assert (row["slices"], row["devices"]) == (2, 8)
    module = abstract(small().recipe.build)
    size = sum(4 * np.prod(x.shape) for x in jax.tree.leaves(nnx.state(module, nnx.Param)))
    # Each chip contributes its part of every gradient, at most all of it.
    assert size / 4 < row["sent_bytes"]["DCN all-reduce"] < 1.1 * size
    assert "| DCN MB |" in capsys.readouterr().out


@needs_libtpu
def test_a_step_that_does_not_fit_is_told_with_what_to_change(tmp_path, capsys):
    file = tmp_path / "plan.json"
    plan = ["plan", "--config", str(SMALL), "--topology", "v5e:2x4", "--json", str(file)]
    assert main([*plan, "--batch", str(2**21)]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("v5e:2x4: training step does not fit: needs 6.")
    assert "of 15.75G on each device" in last
    assert "raise compute.accumulate" in last
    assert json.loads(file.read_text())[0]["does_not_fit"] == last.removeprefix("v5e:2x4: ")


def test_a_recipe_that_reads_films_cannot_tell_its_batch():
    config = runpy.run_path(str(ROOT / "configs" / "tiny_cavp.py"))["get_config"]()
    with pytest.raises(SettingError, match="cannot be planned"):
        training(config, ONE)

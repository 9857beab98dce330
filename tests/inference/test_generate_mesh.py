"""Generation on eight simulated devices: the same sound, and every device has its part of it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.bundles import untrained_bundle
from tests.forked import Forked
from tests.inference.generate_on_mesh import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("mesh")


@pytest.fixture(scope="module")
def found(folder) -> dict:
    """What a process with eight devices says. It compiles no program twice."""
    options = {
        "jax_num_cpu_devices": 8,
        "jax_compilation_cache_dir": str(folder / "programs"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    untrained_bundle(folder / "bundle")
    return Forked(run, folder, options=options).result()


@pytest.mark.parametrize("mesh", ["8x1x1", "2x2x2"])
def test_a_mesh_changes_nothing_but_the_place(found, mesh):
    assert found["meshes"]["1x1x1"]["loudest"] > 0.1
    assert found["meshes"][mesh]["difference"] < 1e-5
    assert found["meshes"][mesh]["joint"] < 1e-4


def test_weights_are_cut_where_it_is_asked_for(found):
    held = {mesh: its["held"] for mesh, its in found["meshes"].items()}
    assert held["1x1x1"] == held["8x1x1"] == 1
    assert 0.25 <= held["2x2x2"] < 0.3, "vectors are whole"


@pytest.mark.parametrize("program", ["cavp", "timechat", "loa", "sound"])
def test_every_device_works_on_its_windows_only(found, program):
    """Compiled from shapes alone; a batch copied to all devices would show in the memory."""
    (all_given, alone), (given, eighth), (cut, fourth) = (
        found["meshes"][mesh]["memory"][program] for mesh in ("1x1x1", "8x1x1", "2x2x2")
    )
    assert eighth < alone / 5
    assert fourth < alone
    assert given < all_given
    assert cut < given / 2


def test_the_command_uses_all_devices(found, folder):
    for name in ("one", "eight"):
        assert found["said"][name] == f"0: {folder}/0.mp4 -> {folder}/{name}.wav\n"
    one, eight = (soundfile.read(folder / f"{name}.wav")[0] for name in ("one", "eight"))
    assert np.abs(one).max() > 0.01
    np.testing.assert_allclose(eight, one, atol=1.01 / 32768)  # of 16 bits, once rounded


def test_the_default_batch_fits_any_number_of_devices(found):
    assert found["batches"] == {1: 4, 2: 4, 3: 6, 8: 8}


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ("batch", "batch 4 does not divide over 8 devices: use a multiple of 8"),
        ("fsdp", "fsdp 3 x tensor 1 does not divide 8 devices: use a product that does"),
    ],
)
def test_devices_that_do_not_divide_are_one_line(found, option, line):
    assert found["said"][option] == f"2: mfm generate: {line}\n"

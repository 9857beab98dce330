"""A bundle opens directly onto a mesh; each process reads its shards, and all check the files."""

import shutil
from functools import partial

import numpy as np
import pytest

from mfm_jax.bundle import Bundle, Source, write_bundle
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.storage.weights import abstract, named_weights
from tests.bundle.open_on_mesh import read
from tests.bundles import filled
from tests.forked import Forked
from tests.ports import free_port

CONFIG = GPT2Config(width=512, depth=3, heads=8, positions=64)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    network = filled(abstract(partial(GPT2, CONFIG)), 0)
    part = {"gpt2": (CONFIG, network, Source("tests", "none"))}
    return write_bundle(tmp_path_factory.mktemp("mesh") / "bundle", part)


def opened(bundle, *, devices: int = 1, processes: int = 1) -> list[dict]:
    """Open the bundle in so many processes together, and return what each of them has read."""
    port, options = free_port(), {"jax_num_cpu_devices": devices}
    started = [
        Forked(read, bundle.path, port, processes, index, options=options)
        for index in range(processes)
    ]
    return [process.result() for process in started]


def test_eight_devices_hold_an_eighth_each(written):
    (found,) = opened(written, devices=8)
    weights = named_weights(written.load("gpt2"))
    assert found["split"] == sum(w.ndim > 1 for w in weights.values())
    for name, weight in weights.items():
        pieces = (
            np.split(np.asarray(weight, np.float64), 8, -1) if weight.ndim > 1 else [weight] * 8
        )
        sums = [np.asarray(piece, np.float64).sum() for piece in pieces]
        np.testing.assert_allclose(found["sums"][name], sums, rtol=1e-9, atol=1e-9, err_msg=name)


def test_each_of_two_processes_reads_its_half(written):
    """And checks half of the files, which are the same for both."""
    alone, *both = [*opened(written), *opened(written, processes=2)]
    size = sum(weight.nbytes for weight in named_weights(written.load("gpt2")).values())
    assert size <= alone["read"] < 1.1 * size
    assert 2 * size <= alone["verified"] < 2.2 * size
    for process in both:
        assert process["held"] < 0.52 * size
        assert process["read"] < 0.6 * size
        # Files are not divided, and most of the weights lie in one.
        assert process["verified"] < 0.6 * size + size
    assert sum(process["verified"] for process in both) < 2.3 * size
    for name, (whole,) in alone["sums"].items():
        halves = [process["sums"][name][0] for process in both]
        total = sum(halves) if written.store("gpt2").arrays[name].shape[1:] else halves[0]
        np.testing.assert_allclose(total, whole, rtol=1e-9, atol=1e-9, err_msg=name)


def test_damage_that_one_process_finds_stops_all(written, tmp_path):
    shutil.copytree(written.path, tmp_path / "bundle")
    bundle = Bundle.open(tmp_path / "bundle")
    store = bundle.store("gpt2")
    name = max(store.files, key=lambda name: store.files[name][0])
    whole = bytearray((store.folder / name).read_bytes())
    whole[len(whole) // 2] ^= 1
    (store.folder / name).write_bytes(bytes(whole))
    first, second = (found["refused"] for found in opened(bundle, processes=2))
    assert f"it is damaged ({name} was changed): make it again" in first
    assert "it is damaged (process 0 has found damage): make it again" in second

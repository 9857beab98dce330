"""A bundle is complete or absent, opens to what was written, and says what does not fit."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mfm_jax.bundle import Bundle, BundleError, Component, Source, write_bundle
from mfm_jax.errors import SettingError
from mfm_jax.storage import store
from mfm_jax.storage.locks import locked
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.storage.weights import named_weights
from tests.bundles import CONFIGS, SETTINGS, untrained, untrained_bundle
from tests.forked import Forked


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return untrained_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def bundle(written, tmp_path):
    shutil.copytree(written.path, tmp_path / "copy")
    return Bundle.open(tmp_path / "copy")


def test_what_is_opened_is_what_was_written(written):
    assert written.settings == SETTINGS
    for name, (config, network, _) in untrained().items():
        assert written.config(name) == config == CONFIGS[name]
        opened = named_weights(written.load(name))
        for key, weight in named_weights(network).items():
            np.testing.assert_array_equal(opened[key], weight, err_msg=f"{name} {key}")


def test_precision_is_chosen_when_writing_and_when_opening(tmp_path):
    part = {"vocoder": untrained()["vocoder"]}
    small = write_bundle(tmp_path / "half", part, dtype=jnp.float16)
    assert {w.dtype for w in named_weights(small.load("vocoder")).values()} == {
        jnp.dtype("float16")
    }
    opened = named_weights(small.load("vocoder", jnp.float32))
    for key, weight in named_weights(part["vocoder"][1]).items():
        np.testing.assert_array_equal(opened[key], weight.astype(jnp.float16).astype(jnp.float32))


def test_components_are_replaced_and_taken_over(written, tmp_path):
    config, network, _ = untrained()["mapper"]
    derived = write_bundle(
        tmp_path / "derived",
        {"mapper": (config, network, Source("a training run", "Apache-2.0"))},
        base=written.path,
    )
    assert derived.settings == written.settings
    assert derived.entries.keys() == written.entries.keys()
    assert derived.entries["mapper"].source.made_by == "a training run"
    assert derived.entries["unet"] == written.entries["unet"]
    derived.load("unet")
    again = write_bundle(derived.path, {"mapper": untrained()["mapper"]})
    assert again.entries["mapper"].folder != derived.entries["mapper"].folder
    assert not (derived.path / derived.entries["mapper"].folder).exists()
    assert (derived.path / derived.entries["unet"].folder).exists()


def test_a_write_that_fails_leaves_the_old_bundle(bundle, monkeypatch):
    before = (bundle.path / "bundle.json").read_text()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    with pytest.raises(BundleError, match=r"cannot write mapper into .*: disk full"):
        write_bundle(bundle.path, {"mapper": untrained()["mapper"]})
    assert (bundle.path / "bundle.json").read_text() == before
    assert len(list(bundle.path.glob("mapper-*"))) == 1
    Bundle.open(bundle.path).load("mapper")
    with pytest.raises(BundleError, match="disk full"):
        write_bundle(bundle.path.parent / "new", {"mapper": untrained()["mapper"]})
    assert not (bundle.path.parent / "new").exists()


def test_no_bundle_and_other_formats_are_one_line(tmp_path, bundle):
    with pytest.raises(BundleError, match=r"is not a bundle \(no bundle.json in it\)"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"cannot be read \(file name too long\)"):
        Bundle.open(tmp_path / ("x" * 300))
    file = bundle.path / "bundle.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"format": 99}))
    with pytest.raises(BundleError, match="has bundle format 99, this version reads 2 and 3"):
        Bundle.open(bundle.path)
    file.write_text(file.read_text()[:-30])
    with pytest.raises(BundleError, match="is damaged"):
        Bundle.open(bundle.path)
    data["components"]["vae"]["config"]["groupz"] = 3
    file.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"vae\.config has unknown fields: groupz"):
        Bundle.open(bundle.path)


@pytest.mark.parametrize(
    "folder", ["../unet-01234567", "/tmp/unet-01234567", "unet-01234567./../x", "unet", ""]
)
def test_a_component_cannot_lie_elsewhere(bundle, folder):
    file = bundle.path / "bundle.json"
    data = json.loads(file.read_text())
    data["components"]["unet"]["folder"] = folder
    file.write_text(json.dumps(data))
    with pytest.raises(BundleError, match="which is no folder of a bundle"):
        Bundle.open(bundle.path)


def test_an_absent_component_is_named(bundle):
    with pytest.raises(BundleError, match="has no 't5'; it has cavp, timechat"):
        bundle.load("t5")


def test_missing_extra_and_misshaped_weights_are_all_listed(tmp_path):
    config, network, source = untrained()["vocoder"]
    weights = dict(named_weights(network))
    first, second = list(weights)[:2]
    shape = weights[second].shape
    del weights[first]
    weights[second] = jnp.zeros((3, *shape))
    weights["surplus.kernel"] = jnp.zeros(2)
    bundle = write_bundle(tmp_path, {"vocoder": Component(config, weights.items(), source)})
    with pytest.raises(BundleError) as error:
        bundle.load("vocoder")
    message = str(error.value)
    assert f"missing: {first}" in message
    assert "unexpected: surplus.kernel" in message
    assert f"misshaped: {second} is {(3, *shape)}, should be {shape}" in message
    assert "\n" not in message


# Orbax leaves coroutines behind when a read fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_weights_that_are_gone_or_damaged_are_one_line(bundle):
    folder = bundle.path / bundle.entries["vocoder"].folder
    for file in folder.rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(b"")
    with pytest.raises(BundleError, match="cannot read the weights of vocoder") as error:
        bundle.load("vocoder")
    assert "\n" not in str(error.value)
    shutil.rmtree(folder / "part-0")
    with pytest.raises(BundleError, match="cannot read the weights of vocoder"):
        bundle.load("vocoder")
    shutil.rmtree(folder)
    with pytest.raises(BundleError, match="cannot read the weights of vocoder"):
        bundle.load("vocoder")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_flipped_byte_anywhere_in_a_component_is_found(bundle):
    """Orbax alone restores most of these without an error."""
    assert bundle.damages("vocoder") == []
    bundle.load("vocoder")
    folder = bundle.path / bundle.entries["vocoder"].folder
    random = np.random.default_rng(0)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.stat().st_size]
    for file in files:
        whole = file.read_bytes()
        place = int(random.integers(len(whole)))
        flipped = whole[place] ^ (1 << int(random.integers(8)))
        file.write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
        assert bundle.damages("vocoder"), f"{file} at {place}"
        with pytest.raises(BundleError, match="vocoder"):
            bundle.load("vocoder")
        file.write_bytes(whole)
    assert bundle.damages("vocoder") == []


def test_a_changed_entry_is_found_and_changed_settings_are_fine(bundle):
    """Settings may be edited, entries of components not."""
    file = bundle.path / "bundle.json"
    data = json.loads(file.read_text())
    data["settings"]["steps"] = 7
    file.write_text(json.dumps(data))
    assert Bundle.open(bundle.path).damages("unet") == []
    data["components"]["unet"]["config"]["heads"] = 4
    file.write_text(json.dumps(data))
    changed = Bundle.open(bundle.path)
    assert "bundle.json" in changed.damages("unet")[0]
    with pytest.raises(BundleError, match=r"unet .* is damaged \(bundle.json or .* was changed\)"):
        changed.load("unet")


def test_arrays_that_differ_from_their_checksums_are_found(bundle):
    """This also finds faults of the library that reads intact files."""
    opened = bundle.store("vae")
    name, listed = next(iter(opened.arrays.items()))
    other = {**opened.arrays, name: listed._replace(sha256="0" * 64)}
    assert opened.damaged_arrays() == []
    assert dataclasses.replace(opened, arrays=other).damaged_arrays() == [
        f"{name} has other values than were written"
    ]


def test_large_components_come_in_parts_and_are_one_network(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "PART", 100_000)
    config, network, source = untrained()["vocoder"]
    bundle = write_bundle(tmp_path, {"vocoder": (config, network, source)})
    assert len(bundle.store("vocoder").parts()) > 3
    opened = named_weights(bundle.load("vocoder"))
    for key, weight in named_weights(network).items():
        np.testing.assert_array_equal(opened[key], weight, err_msg=key)
    assert bundle.damages("vocoder") == []


def test_what_could_not_be_opened_is_not_written(bundle, tmp_path):
    wrong = dataclasses.replace(SETTINGS, steps=SETTINGS.schedule.train_steps)
    config, network, source = untrained()["vocoder"]
    absurd = dataclasses.replace(config, channels=0)
    for path in (bundle.path, tmp_path / "new"):
        with pytest.raises(SettingError, match=r"settings\.steps is \d+, of \d+ in training"):
            write_bundle(path, {"vocoder": (config, network, source)}, settings=wrong)
        with pytest.raises(SettingError, match=r"vocoder\.config\.channels is 0: it must be"):
            write_bundle(path, {"vocoder": (absurd, network, source)})
    assert Bundle.open(bundle.path) == bundle
    assert not bundle.damages("vocoder")
    assert not (tmp_path / "new").exists()


def test_leftovers_of_killed_writers_go_and_other_folders_stay(bundle):
    stale = bundle.path / "unet-0123abcd"
    foreign = bundle.path / "text-notes"
    busy = bundle.path / "vae-89abcdef"
    for folder in (stale, foreign, busy):
        folder.mkdir()
    with locked(busy):
        write_bundle(bundle.path, {"mapper": untrained()["mapper"]})
    assert not stale.exists()
    assert foreign.exists()
    assert busy.exists()


def write_again_and_again(path: Path, name: str) -> None:
    for _ in range(3):
        write_bundle(path, {name: untrained()[name]})


def test_two_processes_may_write_at_the_same_time(tmp_path):
    """Each writes one component, and both components are in the bundle."""
    names = ("vae", "vocoder")
    started = [Forked(write_again_and_again, tmp_path / "b", name) for name in names]
    for process in started:
        process.result()
    bundle = Bundle.open(tmp_path / "b")
    assert set(bundle.entries) == set(names)
    assert all(bundle.damages(name) == [] for name in names)
    assert len([p for p in bundle.path.iterdir() if p.is_dir()]) == 2


def test_the_embedded_bundle_is_as_written():
    bundle = Bundle.open(TINY_BUNDLE)
    assert [fault for name in bundle.entries for fault in bundle.damages(name)] == []

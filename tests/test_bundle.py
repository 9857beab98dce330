"""A bundle is complete or absent, opens to what was written, and says what does not fit."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mfm_jax.bundle import Bundle, BundleError, Source, write_bundle
from mfm_jax.weights import named_weights
from tests.bundles import CONFIGS, SETTINGS, untrained, untrained_bundle


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

    monkeypatch.setattr(ocp.StandardCheckpointer, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        write_bundle(bundle.path, {"mapper": untrained()["mapper"]})
    assert (bundle.path / "bundle.json").read_text() == before
    Bundle.open(bundle.path).load("mapper")


def test_no_bundle_and_other_formats_are_one_line(tmp_path, bundle):
    with pytest.raises(BundleError, match=r"is not a bundle \(no bundle.json in it\)"):
        Bundle.open(tmp_path / "nowhere")
    file = bundle.path / "bundle.json"
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"format": 99}))
    with pytest.raises(BundleError, match="has bundle format 99, this version reads 1"):
        Bundle.open(bundle.path)
    file.write_text(file.read_text()[:-30])
    with pytest.raises(BundleError, match="is damaged"):
        Bundle.open(bundle.path)
    data["components"]["vae"]["config"]["groupz"] = 3
    file.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=r"vae\.config has unknown fields: groupz"):
        Bundle.open(bundle.path)


def test_an_absent_component_is_named(bundle):
    with pytest.raises(BundleError, match="has no 't5'; it has cavp, timechat"):
        bundle.load("t5")


def test_missing_extra_and_misshaped_weights_are_all_listed(bundle):
    folder = bundle.path / bundle.entries["vocoder"].folder
    weights = dict(named_weights(untrained()["vocoder"][1]))
    first, second = list(weights)[:2]
    shape = weights[second].shape
    del weights[first]
    weights[second] = jnp.zeros((3, *shape))
    weights["surplus.kernel"] = jnp.zeros(2)
    shutil.rmtree(folder)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, weights)
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
    shutil.rmtree(folder)
    with pytest.raises(BundleError, match="cannot read the weights of vocoder"):
        bundle.load("vocoder")

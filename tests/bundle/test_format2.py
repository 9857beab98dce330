"""Bundles of format 2 are read, checked and taken over as they are."""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from mfm_jax.bundle import COMPONENTS, Bundle, BundleError, write_bundle
from mfm_jax.bundle.bundle import FORMAT, component_checksum
from mfm_jax.bundle.format2 import (
    FIELDS,
    WEIGHTS,
    old_config,
    old_name,
    read_config,
    read_name,
    rename,
)
from mfm_jax.bundle.limits import abstract_network
from mfm_jax.mapper import MapperConfig
from mfm_jax.models.adapters import AdapterConfig
from mfm_jax.models.cavp import CAVPConfig
from mfm_jax.models.cnn14 import Cnn14Config
from mfm_jax.models.gpt2 import GPT2Config
from mfm_jax.models.listener import ListenerConfig
from mfm_jax.models.synchformer import SynchformerConfig
from mfm_jax.models.t5 import T5Config
from mfm_jax.models.text import EmptyTextConfig
from mfm_jax.runtime.config import to_json
from mfm_jax.storage import store
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.storage.weights import named_weights
from tests.bundles import SETTINGS, TINY, untrained_component

ALL = TINY | {
    "text": EmptyTextConfig(width=8),
    "t5": T5Config.tiny(),
    "gpt2": GPT2Config(width=24, depth=2, heads=3, positions=17),
    "sequence": MapperConfig(
        encoders=(("clap", 1, 10), ("t5", 7, 14)),
        loa_width=24,
        fusion="wrapped",
        gpt2=GPT2Config(width=24, depth=2, heads=3, positions=17),
    ),
    "cavp_audio": CAVPConfig.tiny(),
    "cnn14": Cnn14Config.tiny(),
    "synchformer": SynchformerConfig.tiny(),
    "adapter": AdapterConfig.tiny(),
    "listener": ListenerConfig(("metal", "wood")),
}


def write_format2(path: Path, components: dict) -> dict:
    """Write a bundle as the version before this one did, from the tables; return its networks."""
    path.mkdir()
    listed, networks = {}, {}
    for i, (name, config) in enumerate(components.items()):
        _, networks[name], source = untrained_component(name, config, i)
        weights = named_weights(networks[name])
        folder = path / f"{name}-{i:08x}"
        folder.mkdir()
        store.write_store(folder, ((old_name(name, n), w) for n, w in weights.items()))
        source = {
            n: v for n, v in to_json(source).items() if n in ("made_by", "licence", "files")
        } | {"version": "0.1.0"}
        entry = {
            "config": old_config(name, to_json(config)),
            "folder": folder.name,
            "source": source,
            "parameters": sum(w.size for w in weights.values()),
            "checksum": "",
        }
        said = json.dumps([name, entry], sort_keys=True).encode()
        sealed = said + (folder / store.INDEX).read_bytes()
        listed[name] = entry | {"checksum": store.hashlib.sha256(sealed).hexdigest()}
    data = {"format": 2, "settings": to_json(SETTINGS), "components": listed}
    (path / "bundle.json").write_text(json.dumps(data, indent=1) + "\n")
    return networks


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    path = tmp_path_factory.mktemp("format2") / "bundle"
    return path, write_format2(path, ALL)


def same(bundle: Bundle, name: str, network) -> None:
    opened = named_weights(bundle.load(name, verify=True))
    expected = named_weights(network)
    assert opened.keys() == expected.keys()
    for key, weight in expected.items():
        np.testing.assert_array_equal(opened[key], weight, err_msg=f"{name} {key}")


def test_every_kind_of_component_is_covered():
    assert ALL.keys() == COMPONENTS.keys()


@pytest.mark.parametrize("name", ALL)
def test_a_component_opens_to_what_was_written(old, name):
    path, networks = old
    bundle = Bundle.open(path)
    assert bundle.config(name) == ALL[name]
    assert bundle.damages(name) == []
    same(bundle, name, networks[name])
    arrays = bundle.store(name).arrays
    assert arrays.keys() == named_weights(networks[name]).keys()


@pytest.mark.parametrize("name", ALL)
def test_every_row_of_the_tables_is_needed(name):
    network = abstract_network(name, ALL[name])
    old_names = [old_name(name, new) for new in named_weights(network)]
    for prefix, new in WEIGHTS.get(name, {}).items():
        others = {k: v for k, v in WEIGHTS[name].items() if k != prefix}
        assert any(rename(others, n) != read_name(name, n) for n in old_names), (prefix, new)
    config = to_json(ALL[name])
    before = old_config(name, config)
    assert (before == config) == (name not in FIELDS)
    assert read_config(name, before) == config == read_config(name, config)


def test_taken_over_components_keep_their_format_and_new_ones_have_the_new(old, tmp_path):
    path, networks = old
    mapper = untrained_component("mapper", ALL["mapper"], 99)
    derived = write_bundle(tmp_path / "derived", {"mapper": mapper}, base=path)
    data = json.loads((derived.path / "bundle.json").read_text())
    assert data["format"] == 3
    formats = {name: entry["format"] for name, entry in data["components"].items()}
    assert formats == {name: 3 if name == "mapper" else 2 for name in ALL}
    before = json.loads((path / "bundle.json").read_text())["components"]
    for name in ALL.keys() - {"mapper"}:
        assert data["components"][name] == before[name] | {"format": 2}
        same(derived, name, networks[name])
        assert derived.damages(name) == []
        for file in (path / before[name]["folder"]).rglob("*"):
            assert not file.is_file() or os.stat(file).st_nlink > 1, "linked, not copied"
    same(derived, "mapper", mapper[1])
    # Once more, now from a bundle of both formats.
    again = write_bundle(tmp_path / "again", {"mapper": mapper}, base=derived.path)
    assert again.entries["unet"] == derived.entries["unet"]
    same(again, "unet", networks["unet"])
    assert again.damages("unet") == []


def test_an_old_bundle_that_is_written_into_keeps_its_components(tmp_path):
    few = {name: ALL[name] for name in ("unet", "vae")}
    networks = write_format2(tmp_path / "bundle", few)
    bundle = write_bundle(
        tmp_path / "bundle", {"mapper": untrained_component("mapper", ALL["mapper"], 0)}
    )
    assert {name: entry.format for name, entry in bundle.entries.items()} == {
        "unet": 2, "vae": 2, "mapper": 3,
    }  # fmt: skip
    for name, network in networks.items():
        same(bundle, name, network)


def test_damage_of_old_components_is_found(tmp_path):
    write_format2(tmp_path / "bundle", {"unet": ALL["unet"], "t5": ALL["t5"]})
    bundle = Bundle.open(tmp_path / "bundle")
    arrays = bundle.store("unet")
    name = next(n for n in arrays.arrays if "attn1_norm" in n)
    other = {**arrays.arrays, name: arrays.arrays[name]._replace(sha256="0" * 64)}
    assert replace(arrays, arrays=other).damaged_arrays() == [
        f"{name} has other values than were written"
    ]
    file = tmp_path / "bundle" / "bundle.json"
    data = json.loads(file.read_text())
    data["components"]["t5"]["config"]["d_ff"] += 1
    file.write_text(json.dumps(data))
    assert "bundle.json" in Bundle.open(file.parent).damages("t5")[0]
    index = file.parent / bundle.entries["unet"].folder / store.INDEX
    index.write_text(index.read_text().replace("blocks.0.norm1", "blocks.0.normX", 1))
    with pytest.raises(BundleError, match=r"unet .* is damaged"):
        bundle.load("unet", verify=True)
    with pytest.raises(BundleError, match=r"missing: .*attn1_norm.*unexpected: .*normX"):
        bundle.load("unet", verify=False)


def test_an_array_under_both_names_is_damage(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    store.write_store(folder, [(n, np.zeros(2)) for n in ("halve.0.bias", "downsample.0.bias")])
    with pytest.raises(store.StoreError, match="under old and new names"):
        store.Store.open(folder, partial(read_name, "unet"))


def test_the_shipped_bundle_is_of_format_2_but_for_its_adapter():
    """It stays so, to be read by every test that opens it."""
    bundle = Bundle.open(TINY_BUNDLE)
    for name, entry in bundle.entries.items():
        assert entry.format == (FORMAT if name == "adapter" else 2)
        assert component_checksum(name, entry, TINY_BUNDLE / entry.folder) == entry.checksum

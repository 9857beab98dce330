"""Damaged and forged bundles: what is loaded is what was written, or is refused in one line."""

import argparse
import contextlib
import hashlib
import io
import json
import random
import shutil
from pathlib import Path
from unittest.mock import patch

import numpy as np

from mfm_jax.bundle import Bundle, Component, Source, write_bundle
from mfm_jax.bundle.bundle import TRAINED, Entry, component_checksum, trained
from mfm_jax.cli import bundle as cli
from mfm_jax.encoders import window_spec
from mfm_jax.errors import UserError
from mfm_jax.models.gpt2 import GPT2Config
from mfm_jax.models.t5 import T5Config
from mfm_jax.models.text import EmptyTextConfig
from mfm_jax.models.vae import VAEConfig
from mfm_jax.storage import store
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.storage.weights import named_weights
from tests.bundles import SETTINGS, untrained_component
from tests.fuzz.damage import damage_files, damage_json, one_line

CONFIGS = {
    "gpt2": GPT2Config(width=8, depth=2, heads=2, positions=4),
    "t5": T5Config(vocab=9, width=8, depth=1, heads=2, head_dim=4, mlp_width=6),
    "text": EmptyTextConfig(width=8),
    "vae": VAEConfig(0.7, channels=(4, 8), resnets=1, latent_channels=2, groups=2),
}
SHIPPED = ("listener", "vocoder")
"""The components of the shipped bundle that are copied."""
EXPECTED = ".expected.json"
"""In the folder of each case: the SHA-256 of every array, and whether checksums were forged."""


def make_sources(folder: Path) -> list[Path]:
    """Write small bundles: with a tokenizer, in several parts, and of an earlier format."""
    parts = {n: untrained_component(n, c, i) for i, (n, c) in enumerate(CONFIGS.items())}
    parts["t5"] = Component(*parts["t5"], _add_tokenizer)
    write_bundle(folder / "small", parts, settings=SETTINGS)
    with patch.object(store, "PART", 1000):
        write_bundle(folder / "parts", {"gpt2": parts["gpt2"]}, settings=SETTINGS)
    told = json.loads((TINY_BUNDLE / "bundle.json").read_text())
    told["components"] = {name: told["components"][name] for name in SHIPPED}
    for entry in told["components"].values():
        shutil.copytree(TINY_BUNDLE / entry["folder"], folder / "shipped" / entry["folder"])
    (folder / "shipped" / "bundle.json").write_text(json.dumps(told))
    sources = [folder / name for name in ("small", "parts", "shipped")]
    for source in sources:
        expected = {"forged": False, "arrays": _loaded(Bundle.open(source))}
        (source / EXPECTED).write_text(json.dumps(expected))
    return sources


def _add_tokenizer(folder: Path) -> None:
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0"}')


def _loaded(bundle: Bundle) -> dict[str, str]:
    """Load every component, and return the SHA-256 of each array and file beside the arrays."""
    found = {}
    for name in bundle.entries:
        for key, weight in named_weights(bundle.load(name)).items():
            found[f"{name}/{key}"] = store.digest_array(np.asarray(weight))
        folder = bundle.files(name, "tokenizer")
        files = [] if folder is None else sorted(p for p in folder.iterdir() if p.is_file())
        for file in files:
            found[f"{name}/{file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def mutate(rng: random.Random, sources: list[Path], target: Path) -> str:
    """Write a damaged copy of one of `sources` to `target`; return what was done."""
    source = rng.choice(sources)
    shutil.copytree(source, target)
    kind = rng.choice(["files", "files", "bundle.json", "bundle.json", "index.json", "folders"])
    indices = sorted(target.glob("*/index.json"))
    forged = False
    if kind == "files":
        done = damage_files(rng, sorted(p for p in target.rglob("*") if _is_of_bundle(p)))
    elif kind == "folders":
        done = _damage_folders(rng, target)
    else:
        file = target / "bundle.json" if kind == "bundle.json" else rng.choice(indices)
        done = damage_json(rng, file)
        forged = rng.random() < 0.5
    if forged:
        _seal(target)
        expected = json.loads((target / EXPECTED).read_text())
        (target / EXPECTED).write_text(json.dumps(expected | {"forged": True}))
    return f"{source.name}, {done}{', sealed again' if forged else ''}"


def _is_of_bundle(path: Path) -> bool:
    return path.is_file() and path.name != EXPECTED


def _damage_folders(rng: random.Random, target: Path) -> str:
    """Remove, move, link or exchange a folder of a component or of a part."""
    folders = sorted(p for p in target.rglob("*") if p.is_dir())
    one, other = rng.choice(folders), rng.choice(folders)
    kind = rng.choice(["deleted", "moved", "linked", "replaced", "file"])
    aside = target / "aside"
    one.rename(aside)
    if kind == "deleted":
        shutil.rmtree(aside)
    elif kind == "linked":
        one.symlink_to(aside)
    elif kind == "replaced" and other.is_dir() and not one.is_relative_to(other):
        shutil.copytree(other, one, dirs_exist_ok=True)
    elif kind == "file":
        one.write_bytes(b"x")
    return f"{one.relative_to(target)}: {kind}"


def _seal(target: Path) -> None:
    """Make the checksums fit what bundle.json and the indices say now, where they can."""
    with contextlib.suppress(Exception):
        data = json.loads((target / "bundle.json").read_text())
        for name, entry in data["components"].items():
            with contextlib.suppress(Exception):
                told = Entry(None, "", Source("", ""), 0, stored={"format": 3, **entry})
                entry["checksum"] = component_checksum(name, told, target / entry["folder"])
        (target / "bundle.json").write_text(json.dumps(data))
        data[TRAINED] = trained(Bundle.open(target, verify=False).settings)
        (target / "bundle.json").write_text(json.dumps(data))


def check(target: Path) -> str:
    """Load a bundle; return the line that refuses it, or that its values are the same.

    Raises:
        AssertionError: it has other values.
    """
    expected = json.loads((target / EXPECTED).read_text())
    _look(target)
    try:
        bundle = Bundle.open(target)
        window_spec(bundle)
        found = _loaded(bundle)
    except UserError as error:
        return one_line(str(error).replace(str(target), "it"))
    if expected["forged"]:
        return "forged, and read"
    missing = [key for key in expected["arrays"] if key not in found]
    if missing and bundle.entries.keys() < {key.split("/")[0] for key in expected["arrays"]}:
        return "components are missing, others the same"
    assert found == expected["arrays"], [
        k for k, v in found.items() if expected["arrays"].get(k) != v
    ]
    return "the same values"


def _look(target: Path) -> None:
    """List the bundle, verify it, and load it without checksums: all of that in words."""
    args = argparse.Namespace(bundle=target)
    with contextlib.redirect_stdout(io.StringIO()):
        for command in (cli.show, cli.verify):
            with contextlib.suppress(UserError):
                command(args)
        with contextlib.suppress(UserError):
            _loaded(Bundle.open(target, verify=False))


def clean(target: Path) -> None:
    """Remove a case."""
    shutil.rmtree(target, ignore_errors=True)

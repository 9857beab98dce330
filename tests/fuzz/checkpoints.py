"""Damaged and forged checkpoints: converted to the same weights, or refused in one line."""

import contextlib
import io
import json
import pickle
import random
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from convert import gpt2
from convert.__main__ import main
from mfm_jax.bundle import Bundle
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.storage.store import digest_array
from mfm_jax.storage.weights import abstract, named_weights
from tests.fuzz.damage import damage_bytes, damage_files, damage_json, one_line

CONFIG = GPT2Config(width=8, depth=2, heads=2, positions=4)
EXPECTED = ".expected.json"
"""In the folder of each case: the SHA-256 of every array, and whether others can be told."""
SUMMED = ("zip", "deflated", "arrays", "npz")
"""The sources whose format has checksums."""


def make_sources(folder: Path) -> list[Path]:
    """Write one small GPT-2 in every format."""
    state = _state()
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    trained = {"state_dict": state, "epoch": 3, "optimizer_states": [{"lr": 0.1, "w": state}]}
    halves = [dict(list(state.items())[i::2]) for i in range(2)]
    names = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
    index = {"weight_map": {k: n for n, half in zip(names, halves, strict=True) for k in half}}

    def source(name: str) -> Path:
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(gpt2.their_config(CONFIG, 1)))
        return folder / name

    torch.save(trained, source("zip") / "x.ckpt")
    _deflated(folder / "zip/x.ckpt", source("deflated") / "x.ckpt")
    torch.save(trained, source("plain") / "x.pth", _use_new_zipfile_serialization=False)
    save_file(state, source("safetensors") / "model.safetensors")
    shards = source("shards")
    for half, name in zip(halves, names, strict=True):
        save_file(half, shards / name)
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    torch.save(arrays, source("arrays") / "x.pt")
    np.savez(source("npz") / "x.npz", **arrays)
    (source("pickled") / "x.bin").write_bytes(pickle.dumps(arrays))
    sources = sorted(folder.iterdir())
    for made in sources:
        expected = {"loose": False, "arrays": _converted(made)}
        (made / EXPECTED).write_text(json.dumps(expected))
    return sources


def _state() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    shapes = named_weights(abstract(lambda rngs: GPT2(CONFIG, rngs=rngs)))
    ours = {name: rng.standard_normal(leaf.shape, np.float32) for name, leaf in shapes.items()}
    theirs = gpt2.table(CONFIG).to_theirs(ours)
    return {key: torch.tensor(np.ascontiguousarray(array)) for key, array in theirs}


def _deflated(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))


def mutate(rng: random.Random, sources: list[Path], target: Path) -> str:
    """Write a damaged copy of one of `sources` to `target`; return what was done."""
    source = rng.choice(sources)
    shutil.copytree(source, target)
    files = sorted(p for p in target.iterdir() if p.name != EXPECTED)
    weights = [file for file in files if file.suffix != ".json"]
    settings = [file for file in files if file.suffix == ".json"]
    kind = rng.choice(["weights"] * 6 + ["settings", "settings", "files", "header", "entries"])
    loose = source.name not in SUMMED
    if kind == "settings":
        file = rng.choice(settings)
        done, loose = damage_json(rng, file), False
    elif kind == "files":
        done = damage_files(rng, files)
    elif kind == "header" and weights[0].suffix == ".safetensors":
        done, loose = _damage_header(rng, rng.choice(weights)), False
    elif kind == "entries" and source.name in SUMMED:
        done, loose = _damage_entries(rng, weights[0]), True
    else:
        file = rng.choice(weights)
        data = bytearray(file.read_bytes())
        done = damage_bytes(rng, data)
        file.write_bytes(data)
    if loose:
        expected = json.loads((target / EXPECTED).read_text())
        (target / EXPECTED).write_text(json.dumps(expected | {"loose": True}))
    return f"{source.name}, {done}"


def _damage_header(rng: random.Random, file: Path) -> str:
    """Change the header of a safetensors file: its bytes, or one of its values."""
    data = bytearray(file.read_bytes())
    size = struct.unpack("<Q", data[:8])[0]
    if rng.random() < 0.5:
        for _ in range(rng.choice([1, 1, 3])):
            data[rng.randrange(8 + size)] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        return "bits of the header"
    beside = file.with_name("header")
    beside.write_bytes(data[8 : 8 + size])
    done = damage_json(rng, beside)
    header = beside.read_bytes()
    beside.unlink()
    file.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + size :])
    return done


def _damage_entries(rng: random.Random, file: Path) -> str:
    """Change an entry of a zip file, with a checksum that fits: a forged file."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name, other = rng.choice(list(entries)), rng.choice(list(entries))
    kind = rng.choice(["bytes", "bytes", "bytes", "dropped", "renamed", "exchanged"])
    done = kind
    if kind == "bytes":
        data = bytearray(entries[name])
        done = damage_bytes(rng, data)
        entries[name] = bytes(data)
    elif kind == "dropped":
        del entries[name]
    elif kind == "renamed":
        entries[rng.choice(["x", "../x", name + "x", other])] = entries.pop(name)
    else:
        entries[name], entries[other] = entries[other], entries[name]
    with zipfile.ZipFile(file, "w", rng.choice([0, zipfile.ZIP_DEFLATED])) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return f"{name}: {done}, with a checksum that fits"


def check(target: Path) -> str:
    """Convert a checkpoint; return the line that refuses it, or that its weights are the same.

    Raises:
        AssertionError: it has other weights, and something could have told.
    """
    expected = json.loads((target / EXPECTED).read_text())
    try:
        found = _converted(target)
    except Refused as error:
        return one_line(str(error).replace(str(target), "it"))
    assert found.keys() == expected["arrays"].keys()
    if found == expected["arrays"]:
        return "the same weights"
    assert expected["loose"], [k for k, v in found.items() if v != expected["arrays"][k]]
    return "other weights, which nothing tells"


class Refused(Exception):
    """A conversion that was refused; the message is what was printed."""


def _converted(folder: Path) -> dict[str, str]:
    """Convert a GPT-2, and return the SHA-256 of each array."""
    bundle = folder.with_name(f"{folder.name}.bundle")
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            code = main(["gpt2", str(folder), "-o", str(bundle)])
        if code:
            assert code == 2
            assert not bundle.exists(), "a bundle of a refused checkpoint"
            raise Refused(said.getvalue())
        weights = named_weights(Bundle.open(bundle).load("gpt2"))
        return {name: digest_array(np.asarray(weight)) for name, weight in weights.items()}
    finally:
        shutil.rmtree(bundle, ignore_errors=True)


def clean(target: Path) -> None:
    """Remove a case."""
    shutil.rmtree(target, ignore_errors=True)

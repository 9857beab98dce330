import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from convert.source import is_hub_source, open_weights, read_json, resolve
from convert.tensors import SourceError, digest


def weights(*names):
    return {name: torch.full((2,), float(place)) for place, name in enumerate(names, 1)}


def put(path, content):
    """Write tensors, or JSON, in the format of the file's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(content))
    elif path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def values(opened):
    return {name: tensor.read()[0] for name, tensor in opened.tensors.items()}


# What is opened


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.ckpt"])
def test_opens_a_file(tmp_path, name):
    path = put(tmp_path / name, weights("a", "b"))
    opened = open_weights(path)
    assert values(opened) == {"a": 1, "b": 2}
    assert opened.files == (path,)


def test_content_decides_and_not_the_name(tmp_path):
    put(tmp_path / "x.safetensors", weights("a")).rename(tmp_path / "a.ckpt")
    assert values(open_weights(tmp_path / "a.ckpt")) == {"a": 1}
    put(tmp_path / "x.pth", weights("b")).rename(tmp_path / "b.safetensors")
    assert values(open_weights(tmp_path / "b.safetensors")) == {"b": 1}
    torch.save(weights("c"), tmp_path / "c", _use_new_zipfile_serialization=False)
    assert values(open_weights(tmp_path / "c")) == {"c": 1}


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.pth")
    for path in (tmp_path / "x.pth", tmp_path):
        with pytest.raises(SourceError, match=r"x\.pth is no file"):
            open_weights(path)
    with pytest.raises(SourceError, match="is missing"):
        read_json(tmp_path, "x.pth")


def test_says_what_is_wrong_with_a_file(tmp_path):
    (tmp_path / "x.safetensors").write_text("<!doctype html>")
    with pytest.raises(SourceError, match="is a web page"):
        open_weights(tmp_path / "x.safetensors")
    with pytest.raises(SourceError, match="no such file"):
        open_weights(tmp_path / "y")


# As transformers and diffusers search; the latter prefers an index to a whole file.
OF_TRANSFORMERS = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.fp16.safetensors",
    "model.safetensors.index.fp16.json",
    "pytorch_model.fp16.bin",
    "pytorch_model.bin.index.fp16.json",
    "last.ckpt",
]
OF_DIFFUSERS = [
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin.index.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.safetensors.index.fp16.json",
    "diffusion_pytorch_model.fp16.safetensors",
    "last.ckpt",
]


@pytest.mark.parametrize(
    "names",
    [names[first:] for names in (OF_TRANSFORMERS, OF_DIFFUSERS) for first in range(len(names))],
    ids=lambda names: names[0],
)
def test_a_folder_is_searched_in_order(tmp_path, names):
    put(tmp_path / "config.json", {})
    (tmp_path / "unet.pth").mkdir()
    for name in names:
        if ".index." in name:
            suffix = ".safetensors" if "safetensors" in name else ".bin"
            shard = put(tmp_path / f"{name}.shards" / f"x{suffix}", weights(name))
            place = str(shard.relative_to(tmp_path))
            put(tmp_path / name, {"metadata": {}, "weight_map": {name: place}})
        else:
            put(tmp_path / name, weights(name))
    opened = open_weights(tmp_path)
    assert values(opened) == {names[0]: 1}
    assert opened.files[0] == tmp_path / names[0]


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors.index.fp16.json",
        "model.safetensors.fp16.index.json",
        "model.fp16.safetensors.index.json",
        "diffusion_pytorch_model.bin.index.bf16.json",
    ],
)
def test_the_only_variant_is_opened(tmp_path, name):
    shard = put(tmp_path / "model-00001-of-00001.fp16.safetensors", weights("a"))
    put(tmp_path / name, {"weight_map": {"a": shard.name}})
    assert values(open_weights(tmp_path)) == {"a": 1}
    assert values(open_weights(tmp_path / name)) == {"a": 1}


def test_averages_beside_the_weights_are_named(tmp_path):
    """diffusers puts them into a variant; alone they are the weights."""
    put(tmp_path / "diffusion_pytorch_model.ema.safetensors", weights("a"))
    assert open_weights(tmp_path).averaged is None
    assert values(open_weights(tmp_path)) == {"a": 1}
    put(tmp_path / "diffusion_pytorch_model.safetensors", weights("b", "a"))
    opened = open_weights(tmp_path)
    assert values(opened) == {"b": 1, "a": 2}
    assert opened.averaged.where == "diffusion_pytorch_model.ema.safetensors"
    assert opened.averaged.tensors["a"].read()[0] == 1


def test_averages_in_a_file_of_another_name(tmp_path):
    put(tmp_path / "x_ema.pt", weights("a"))
    opened = open_weights(tmp_path)
    assert (values(opened), opened.only_averages, opened.averaged) == ({"a": 1}, "x_ema.pt", None)
    put(tmp_path / "x.pt", weights("b", "a"))
    opened = open_weights(tmp_path)
    assert (values(opened), opened.only_averages) == ({"b": 1, "a": 2}, "")
    assert opened.averaged.where == "x_ema.pt"
    # A schedule of averages, for example, is none; of two nothing tells which it is.
    torch.save({"decay": 0.9}, tmp_path / "x_ema.pt")
    assert open_weights(tmp_path).averaged is None
    put(tmp_path / "x_ema.pt", weights("a"))
    put(tmp_path / "y_ema.pt", weights("a"))
    assert open_weights(tmp_path).averaged is None
    (tmp_path / "x.pt").unlink()
    with pytest.raises(SourceError, match=r"several checkpoints: name one of x_ema.pt, y_ema.pt"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["a.pth", "b.ckpt", "c.pt", "d.bin"],
        ["model.safetensors", "diffusion_pytorch_model.safetensors"],
        ["a.safetensors.index.json", "b.safetensors.index.json"],
        ["model.fp16.safetensors", "model.bf16.safetensors"],
    ],
)
def test_of_several_checkpoints_one_has_to_be_named(tmp_path, names):
    for name in names:
        put(tmp_path / name, weights("a")) if "index" not in name else put(tmp_path / name, {})
    with pytest.raises(SourceError) as caught:
        open_weights(tmp_path)
    listed = ", ".join(sorted(names))
    assert str(caught.value) == f"{tmp_path} holds several checkpoints: name one of {listed}"


def test_a_folder_may_hold_none(tmp_path):
    with pytest.raises(SourceError, match=r"holds no checkpoint: no file ends in \.safetensors"):
        open_weights(tmp_path)


# Shards


def sharded(folder, shards, weight_map, name="model.safetensors.index.json"):
    for file, names in shards.items():
        put(folder / file, weights(*names))
    return put(folder / name, {"weight_map": weight_map})


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_opens_shards_by_their_index(tmp_path, suffix):
    files = [f"model-{i}-of-2.{suffix}" for i in (1, 2)]
    index = sharded(
        tmp_path,
        {files[0]: ["a", "b"], files[1]: ["c"]},
        {"c": files[1], "a": files[0], "b": files[0]},
        f"model.{suffix}.index.json",
    )
    for path in (tmp_path, index):
        opened = open_weights(path)
        assert values(opened) == {"a": 1, "b": 2, "c": 1}
        assert opened.files == (index, tmp_path / files[0], tmp_path / files[1])
        assert all(tensor.file in opened.files for tensor in opened.tensors.values())


COMMIT = "0123456789abcdef0123456789abcdef01234567"
ONE, TWO = "1.safetensors", "2.safetensors"


@pytest.mark.parametrize(
    ("shards", "weight_map", "message"),
    [
        (
            {ONE: ["a"]},
            {"a": ONE, "b": ONE, "c": ONE},
            f"not where it says: b in {ONE}, c in {ONE}",
        ),
        ({ONE: ["a"], TWO: ["b"]}, {"a": TWO, "b": TWO}, f"not where it says: a in {TWO}"),
        ({ONE: ["a", "b", "c"]}, {"a": ONE}, "not in the index: b, c"),
        ({ONE: ["a"], TWO: ["a", "b"]}, {"a": ONE, "b": TWO}, "duplicated: a"),
        ({ONE: ["a"]}, {"a": ONE, "b": TWO, "c": "3.bin"}, f"missing: {TWO}, 3.bin"),
    ],
)
def test_refuses_shards_that_do_not_fit(tmp_path, shards, weight_map, message):
    index = sharded(tmp_path, shards, weight_map)
    with pytest.raises(SourceError) as caught:
        open_weights(tmp_path)
    assert str(caught.value).startswith(f"{index} ")
    assert str(caught.value).endswith(message)


def test_of_excused_duplicates_the_last_counts(tmp_path):
    sharded(
        tmp_path,
        {ONE: ["rotary.inv_freq", "a"], TWO: ["b", "rotary.inv_freq"]},
        {"rotary.inv_freq": ONE, "a": ONE, "b": TWO},
    )
    with pytest.raises(SourceError, match=r"duplicated: rotary\.inv_freq$"):
        open_weights(tmp_path, excuse=["*.weight"])
    opened = open_weights(tmp_path, excuse=["*.weight", "*.inv_freq"])
    assert values(opened) == {"rotary.inv_freq": 2, "a": 2, "b": 1}


@pytest.mark.parametrize("content", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_refuses_an_index_without_a_map(tmp_path, content):
    put(tmp_path / "model.safetensors.index.json", content)
    with pytest.raises(SourceError, match="has no weight_map of names"):
        open_weights(tmp_path)


# Nothing outside the folder is opened


@pytest.fixture
def outside(tmp_path):
    put(tmp_path / "outside" / ONE, weights("a"))
    put(tmp_path / "outside" / "config.json", {"secret": 1})
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    return tmp_path / "outside"


@pytest.mark.parametrize(
    "how", ["parent", "absolute", "absolute inside", "down and up", "link", "linked"]
)
def test_an_index_does_not_lead_outside(tmp_path, outside, how):
    folder = tmp_path / "folder"
    (folder / "link.safetensors").symlink_to(outside / ONE)
    (folder / "linked").symlink_to(outside)
    name = {
        "parent": f"../outside/{ONE}",
        "absolute": str(outside / ONE),
        "absolute inside": str(folder / "model.safetensors.index.json"),
        "down and up": f"sub/../../outside/{ONE}",
        "link": "link.safetensors",
        "linked": f"linked/{ONE}",
    }[how]
    put(folder / "model.safetensors.index.json", {"weight_map": {"a": name}})
    with pytest.raises(SourceError, match=f"^{folder} .* outside: {name}"):
        open_weights(folder)


@pytest.mark.parametrize("name", ["", ".", "a\0b", "x" * 300, "loop"])
def test_names_that_are_none_are_one_line(tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    put(tmp_path / "model.safetensors.index.json", {"weight_map": {"a": name}})
    with pytest.raises(SourceError):
        open_weights(tmp_path)
    with pytest.raises(SourceError):
        read_json(tmp_path, name)


def test_links_of_a_folder_do_not_lead_outside(tmp_path, outside):
    folder = tmp_path / "folder"
    (folder / "config.json").symlink_to(outside / "config.json")
    (folder / "model.safetensors").symlink_to(outside / ONE)
    with pytest.raises(
        SourceError, match=r"leads outside: model\.safetensors; give the file itself"
    ):
        open_weights(folder)
    with pytest.raises(SourceError, match=r"leads outside: config\.json; give the file itself"):
        read_json(folder, "config.json")
    # What a user names may be a link.
    assert values(open_weights(folder / "model.safetensors")) == {"a": 1}
    (tmp_path / "link").symlink_to(outside)
    assert values(open_weights(tmp_path / "link")) == {"a": 1}


def cached(root, content, name="models--org--name"):
    """Make a repository in the layout of the hub's cache: snapshots of links to blobs."""
    snapshot = root / name / "snapshots" / COMMIT
    for place, (file, tensors) in enumerate(content.items()):
        blob = put(root / name / "blobs" / f"{place}{os.path.splitext(file)[1]}", tensors)
        link = snapshot / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def test_the_links_of_the_hubs_cache_are_followed(tmp_path, outside):
    snapshot = cached(
        tmp_path,
        {
            "model.safetensors.index.json": {"weight_map": {"a": ONE}},
            ONE: weights("a"),
            "vae/model.safetensors": weights("b"),
            "vae/config.json": {"x": 1},
        },
    )
    assert values(open_weights(snapshot)) == {"a": 1}
    assert values(open_weights(snapshot / "vae")) == {"b": 1}
    assert read_json(snapshot / "vae", "config.json") == {"x": 1}
    put(
        snapshot / "more.safetensors.index.json", {"weight_map": {"a": "../../blobs/1.safetensors"}}
    )
    with pytest.raises(SourceError, match="would lead outside"):
        open_weights(snapshot / "more.safetensors.index.json")
    (snapshot / "more.safetensors.index.json").unlink()
    (snapshot / ONE).unlink()
    (snapshot / ONE).symlink_to(outside / ONE)
    with pytest.raises(SourceError, match=f"outside: {ONE}"):
        open_weights(snapshot)


# Names


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("cvssp/audioldm2", True),
        ("google/flan-t5_large.v1", True),
        ("org/name@v1", True),
        ("hf://org/name", True),
        ("hf://org/name@refs%2Fpr%2F1/folder/model.safetensors", True),
        ("org/name@", False),
        ("gpt2", False),
        ("a/b/c", False),
        ("./folder", False),
        ("../folder", False),
        ("/folder/file", False),
        ("~/folder", False),
        ("org/", False),
        ("org/.name", False),
        ("org/na--me", False),
        ("org/na..me", False),
        ("org/name\n", False),
        ("org/na me", False),
        ("weights/model.pth", False),
        ("weights/model.safetensors", False),
        ("", False),
    ],
)
def test_tells_names_of_the_hub(text, is_one):
    assert is_hub_source(text) is is_one


def test_an_existing_path_is_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert resolve("org/name") == Path("org/name")
    assert resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("text", ["absent.pth", "absent/a/b", "./absent", "weights/a.pth"])
def test_a_missing_path_is_said(text):
    with pytest.raises(SourceError, match=r"no such file or folder$"):
        resolve(text)


def test_a_repository_comes_from_the_hub_or_its_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshot = cached(tmp_path, {"model.safetensors": weights("a")}, "models--org--name")
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "v1").write_text(COMMIT)
    assert resolve("org/name", revision="v1") == snapshot
    assert resolve("org/name", patterns=["*.safetensors"], revision=COMMIT) == snapshot
    assert values(open_weights(resolve("org/name", revision="v1"))) == {"a": 1}
    with pytest.raises(SourceError, match="org/absent: no such file or folder, and the hub") as e:
        resolve("org/absent")
    assert str(e.value).isprintable()


def test_neither_the_hubs_library_nor_torch_is_needed(tmp_path):
    put(tmp_path / "a.safetensors", weights("a"))
    put(tmp_path / "b.pth", weights("b"))
    program = f"""
import sys
for name in ("huggingface_hub", "torch", "safetensors", "transformers", "diffusers", "jax"):
    sys.modules[name] = None
from convert.source import open_weights, resolve
from pathlib import Path
from convert.tensors import SourceError
for name in ("a.safetensors", "b.pth"):
    print(sorted(open_weights(Path({str(tmp_path)!r}) / name).tensors))
try:
    resolve("org/name")
except SourceError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == [
        "['a']",
        "['b']",
        "org/name: no such file or folder, and the hub does not give it (this needs "
        "huggingface_hub: pip install 'mfm-jax[hub]')",
    ], done.stderr


# Settings


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing"),
        (b"", "is not valid JSON"),
        (b'{"a": 1', "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "is not a JSON object"),
        (b"{}" + b" " * (10 << 20), "has more than 10485760 bytes"),
    ],
)
def test_settings_that_cannot_be_read_are_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        read_json(tmp_path, "config.json")
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'} ")


def test_reads_settings(tmp_path):
    put(tmp_path / "unet" / "config.json", {"ü": [1, None, 0.5]})
    assert read_json(tmp_path, "unet/config.json") == {"ü": [1, None, 0.5]}
    assert read_json(tmp_path / "unet", "config.json") == {"ü": [1, None, 0.5]}


def test_digest_is_sha_256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert digest(tmp_path / "x") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    with pytest.raises(SourceError, match="no such file"):
        digest(tmp_path / "y")


def test_reads_in_c_order(tmp_path):
    put(tmp_path / "x.pt", {"a": torch.arange(6).reshape(2, 3).t()})
    array = open_weights(tmp_path / "x.pt").tensors["a"].read()
    assert array.flags.carray
    assert array.flags.owndata
    np.testing.assert_array_equal(array, [[0, 3], [1, 4], [2, 5]])

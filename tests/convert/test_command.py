"""`python -m convert` on small checkpoints in the real formats: in, checked, and out again."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from jax import numpy as jnp
from safetensors.torch import load_file

from convert.__main__ import main
from mfm_jax.bundle import Bundle, write_bundle
from mfm_jax.storage.copies import kept_copy
from mfm_jax.storage.files import publish
from mfm_jax.storage.weights import named_weights
from tests.bundles import untrained, untrained_bundle
from tests.randomise import randomise

ROOT = Path(__file__).parents[2]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A small GPT-2 as transformers saves it."""
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=17, n_embd=24, n_layer=2, n_head=3, attn_implementation="eager"
    )
    folder = tmp_path_factory.mktemp("gpt2")
    randomise(transformers.GPT2Model(config), seed=0).save_pretrained(folder)
    return folder


@pytest.fixture
def source(gpt2, tmp_path):
    """A copy of it to damage: config.json and the state that goes into pytorch_model.bin."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text((gpt2 / "config.json").read_text())
    state = load_file(gpt2 / "model.safetensors")

    def save() -> str:
        torch.save(state, folder / "pytorch_model.bin")
        return str(folder)

    return state, save


def refused(capsys, *arguments: str) -> str:
    """Return the single line that a refused conversion prints."""
    assert main([str(a) for a in arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1, printed
    return printed


def test_there_and_back_is_the_same_file(gpt2, tmp_path):
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    assert main(["gpt2", str(gpt2), "-o", str(bundle)]) == 0
    assert Bundle.open(bundle).damages("gpt2") == []
    assert main(["gpt2", str(bundle), "-o", str(out), "--to", "torch"]) == 0
    before, after = (load_file(f / "model.safetensors") for f in (gpt2, out))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    loaded = transformers.GPT2Model.from_pretrained(out, attn_implementation="eager")
    assert loaded.config.vocab_size == 11


def test_provenance_names_the_files_and_the_command(gpt2, tmp_path):
    assert main(["gpt2", str(gpt2), "-o", str(tmp_path / "b"), "--precision", "bfloat16"]) == 0
    entry = Bundle.open(tmp_path / "b").entries["gpt2"]
    assert [name for name, _ in entry.source.files] == ["config.json", "model.safetensors"]
    assert entry.source.made_by == f"python -m convert gpt2 {gpt2.name} --precision bfloat16"
    assert entry.source.licence == "MIT"
    assert str(gpt2.parent) not in json.dumps(entry.source.files) + entry.source.made_by
    stored = Bundle.open(tmp_path / "b").store("gpt2").arrays
    assert {listed.dtype for listed in stored.values()} == {"bfloat16"}


def test_the_licence_is_the_users_or_that_of_the_release(gpt2, tmp_path):
    def licence(*options: str) -> str:
        assert main(["gpt2", *options, "-o", str(tmp_path / "b")]) == 0
        return Bundle.open(tmp_path / "b").entries["gpt2"].source.licence

    assert licence(str(gpt2), "--licence", "CC BY 4.0") == "CC-BY-4.0"
    trained_on = tmp_path / "language_model"
    shutil.copytree(gpt2, trained_on)
    config = json.loads((gpt2 / "config.json").read_text())
    (trained_on / "config.json").write_text(json.dumps(config | {"max_new_tokens": 8}))
    assert licence(str(trained_on)) == "CC-BY-NC-SA-4.0"
    (trained_on / "config.json").write_text(json.dumps(config | {"license": "apache 2.0"}))
    assert licence(str(trained_on)) == "Apache-2.0"


def test_a_bundle_keeps_its_other_components(gpt2, tmp_path):
    before = untrained_bundle(tmp_path)
    assert main(["gpt2", str(gpt2), "-o", str(tmp_path)]) == 0
    after = Bundle.open(tmp_path)
    assert after.settings == before.settings
    assert set(after.entries) == {*before.entries, "gpt2"}
    assert all(after.entries[name] == entry for name, entry in before.entries.items())


def test_missing_unknown_and_misshaped_tensors_are_listed(source, tmp_path, capsys):
    state, save = source
    del state["h.1.ln_2.bias"]
    state["h.0.extra"] = torch.zeros(2)
    state["ln_f.weight"] = torch.zeros(23)
    printed = refused(capsys, "gpt2", save(), "-o", tmp_path / "b")
    assert "missing: h.1.ln_2.bias" in printed
    assert "unknown: h.0.extra" in printed
    assert "misshaped: ln_f.weight is (23,), should be (24,)" in printed
    assert not (tmp_path / "b").exists()


def test_tensors_pass_by_pattern(source, tmp_path):
    state, save = source
    del state["h.1.ln_2.bias"], state["h.1.ln_2.weight"]
    state["h.0.extra"] = torch.arange(3)
    state["ln_f.weight"] = torch.zeros(23)
    excuse = ["--excuse", "h.1.ln_2.*", "--excuse", "h.0.extra", "--excuse", "ln_f.weight"]
    assert main(["gpt2", save(), "-o", str(tmp_path / "b"), *excuse]) == 0
    weights = named_weights(Bundle.open(tmp_path / "b").load("gpt2"))
    np.testing.assert_array_equal(weights["blocks.1.mlp_norm.scale"], np.ones(24))
    np.testing.assert_array_equal(weights["blocks.1.mlp_norm.bias"], np.zeros(24))
    np.testing.assert_array_equal(weights["norm.scale"], np.ones(24))
    made_by = Bundle.open(tmp_path / "b").entries["gpt2"].source.made_by
    assert made_by.endswith("--excuse 'h.1.ln_2.*' --excuse h.0.extra --excuse ln_f.weight")
    assert main(["gpt2", str(tmp_path / "b"), "-o", str(tmp_path / "o"), "--to", "torch"]) == 0
    back = load_file(tmp_path / "o" / "model.safetensors")
    assert torch.equal(back["h.0.extra"], state["h.0.extra"])


def test_many_keys_are_shortened_to_their_patterns(source, tmp_path, capsys):
    state, save = source
    for name in list(state):
        if name.startswith("h."):
            del state[name]
    printed = refused(capsys, "gpt2", save(), "-o", tmp_path / "b")
    assert "h.*.mlp.c_fc.weight (2)" in printed


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_listed(source, tmp_path, capsys, value):
    state, save = source
    state["h.0.attn.c_attn.weight"][3, 5] = value
    state["wpe.weight"][:] = value
    before = untrained_bundle(tmp_path / "b")
    kept = (before.path / "bundle.json").read_text()
    printed = refused(capsys, "gpt2", save(), "-o", before.path)
    assert "not finite" in printed
    assert printed.rstrip().endswith("h.0.attn.c_attn.weight, wpe.weight")
    assert (before.path / "bundle.json").read_text() == kept
    assert not list(before.path.glob("gpt2-*"))
    excuse = ["--excuse", "wpe.*", "--excuse", "*c_attn.weight"]
    assert main(["gpt2", save(), "-o", str(before.path), *excuse]) == 0


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.int32, "no floating-point numbers: wpe.weight is int32"),
        (torch.float64, "choose a --precision: wpe.weight is float64"),
    ],
)
def test_weights_that_no_network_computes_in_are_refused(source, tmp_path, capsys, dtype, message):
    state, save = source
    state["wpe.weight"] = state["wpe.weight"].to(dtype)
    assert message in refused(capsys, "gpt2", save(), "-o", tmp_path / "b")


def test_double_precision_can_be_made_single(source, tmp_path):
    state, save = source
    state["wpe.weight"] = state["wpe.weight"].double()
    assert main(["gpt2", save(), "-o", str(tmp_path / "b"), "--precision", "float32"]) == 0


def test_values_too_large_for_the_precision_are_refused(source, tmp_path, capsys):
    state, save = source
    state["wpe.weight"][0, 0] = 1e6
    printed = refused(capsys, "gpt2", save(), "-o", tmp_path / "b", "--precision", "float16")
    assert "too large for float16" in printed
    assert "wpe.embedding" in printed
    assert main(["gpt2", save(), "-o", str(tmp_path / "b"), "--precision", "bfloat16"]) == 0


def test_tensors_of_no_use_can_be_left_out(gpt2, tmp_path):
    """The way back then has a word embedding of one row, which is not used."""
    bundle, out = str(tmp_path / "b"), str(tmp_path / "o")
    assert main(["gpt2", str(gpt2), "-o", bundle, "--drop-unused"]) == 0
    assert main(["gpt2", bundle, "-o", out, "--to", "torch"]) == 0
    loaded, info = transformers.GPT2Model.from_pretrained(out, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.vocab_size == 1


def test_wrong_use_is_one_line(gpt2, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    assert "no such file" in refused(capsys, "gpt2", tmp_path / "no", "-o", tmp_path / "b").lower()
    assert "folder" in refused(capsys, "gpt2", gpt2 / "model.safetensors", "-o", tmp_path / "b")
    assert "a file has its name" in refused(capsys, "gpt2", gpt2, "-o", file)
    assert "give one folder" in refused(capsys, "gpt2", gpt2, gpt2, "-o", tmp_path / "b")
    full = tmp_path / "full"
    full.mkdir()
    (full / "something").write_text("")
    untrained_bundle(tmp_path / "b")
    arguments = "mapper", tmp_path / "b", "-o", full, "--to", "torch"
    assert "exists: choose another output folder" in refused(capsys, *arguments)
    assert "has no 'gpt2'" in refused(
        capsys, "gpt2", tmp_path / "b", "-o", tmp_path / "o", "--to", "torch"
    )
    assert "is not a bundle" in refused(capsys, "gpt2", full, "-o", tmp_path / "o", "--to", "torch")
    for words in (["--precision", "bfloat16"], ["--only", "vae"], ["--ema"], ["--drop-unused"]):
        arguments = "mapper", tmp_path / "b", "-o", tmp_path / "o", "--to", "torch", *words
        assert f"as it is: leave out {words[0]}\n" in refused(capsys, *arguments)
    arguments = "gpt2", gpt2, "-o", tmp_path / "o", "--only", "gpt2"
    assert "gpt2 is one network: leave out --only" in refused(capsys, *arguments)
    assert not (tmp_path / "o").exists()


def test_a_damaged_tensor_that_was_kept_is_not_exported(gpt2, tmp_path, capsys):
    assert main(["gpt2", str(gpt2), "-o", str(tmp_path / "b")]) == 0
    (file,) = (tmp_path / "b").glob("gpt2-*/kept.safetensors")
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    file.write_bytes(whole)
    printed = refused(capsys, "gpt2", tmp_path / "b", "-o", tmp_path / "o", "--to", "torch")
    assert "gpt2 is damaged: kept.safetensors was changed" in printed
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("weights.pth", b"<!DOCTYPE html><html>not found</html>", "is a web page"),
        ("weights.ckpt", LFS, "is a git-lfs pointer"),
        ("weights.safetensors", LFS, "is a git-lfs pointer"),
        ("weights.safetensors", struct.pack("<Q", 10**12) + b"{}", "has a header of 1000000000000"),
        ("weights.safetensors", struct.pack("<Q", 500) + b'{"a":', "is cut short in its header"),
        ("weights.pth", b"", "is empty"),
    ],
    ids=["web page", "lfs", "lfs safetensors", "huge header", "cut header", "empty"],
)
def test_what_is_no_checkpoint_is_one_line(tmp_path, capsys, name, content, said):
    (tmp_path / name).write_bytes(content)
    assert said in refused(capsys, "cavp", tmp_path / name, "-o", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_file_that_would_run_something_is_refused(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"state_dict": {"a": torch.zeros(2)}, "more": Evil()}, tmp_path / "evil.ckpt")
    printed = refused(capsys, "cavp", tmp_path / "evil.ckpt", "-o", tmp_path / "b")
    assert "names posix.system, which runs programs: refused" in printed
    assert not (tmp_path / "ran").exists()


def test_an_index_cannot_lead_outside(source, tmp_path, capsys):
    state, save = source
    save()
    index = {"weight_map": dict.fromkeys(state, "../secret.bin")}
    (tmp_path / "source" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (tmp_path / "source" / "pytorch_model.bin").rename(tmp_path / "secret.bin")
    printed = refused(capsys, "gpt2", tmp_path / "source", "-o", tmp_path / "b")
    assert "would lead outside: ../secret.bin" in printed


def test_a_damaged_bundle_is_not_exported(gpt2, tmp_path, capsys):
    """Orbax restores a flipped bit of a weight without an error."""
    assert main(["gpt2", str(gpt2), "-o", str(tmp_path / "b")]) == 0
    (part,) = (tmp_path / "b").glob("gpt2-*/part-0")
    file = max((f for f in part.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    printed = refused(capsys, "gpt2", tmp_path / "b", "-o", tmp_path / "o", "--to", "torch")
    assert f"{part.parent} is damaged: part-0/" in printed
    assert not (tmp_path / "o").exists()


def test_killed_at_any_moment_the_bundle_is_the_old_or_the_new(gpt2, tmp_path):
    """Benchmarks run this with more kills and a network that takes longer."""
    path = untrained_bundle(tmp_path / "b").path
    old = Bundle.open(path)
    command = [sys.executable, "-m", "convert", "gpt2", str(gpt2), "-o", str(path)]
    started = time.monotonic()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    took = time.monotonic() - started
    moments = np.random.default_rng(0).uniform(0.5, 1.0, 5) * took
    for i, moment in enumerate(moments):
        dtype = ("float16", "bfloat16")[i % 2]
        before = Bundle.open(path)
        process = subprocess.Popen(
            [*command, "--precision", dtype], cwd=ROOT, stdout=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        after = Bundle.open(path)
        stored = {listed.dtype for listed in after.store("gpt2").arrays.values()}
        assert after.entries["gpt2"] == before.entries["gpt2"] or stored == {dtype}
        assert after.damages("gpt2") == []
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    last = Bundle.open(path)
    assert len(list(path.glob("*gpt2-*"))) == 1
    assert all(last.entries[name] == entry for name, entry in old.entries.items())


@jax.jit
def hidden(network, embeds):
    return network(embeds, None)


@pytest.mark.parity
def test_a_converted_network_computes_the_same(gpt2, tmp_path, parity):
    assert main(["gpt2", str(gpt2), "-o", str(tmp_path / "b")]) == 0
    embeds = np.random.default_rng(0).standard_normal((2, 9, 24), np.float32)
    theirs = transformers.GPT2Model.from_pretrained(gpt2, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = theirs(inputs_embeds=torch.tensor(embeds)).last_hidden_state.numpy()
    result = hidden(Bundle.open(tmp_path / "b").load("gpt2"), jnp.asarray(embeds))
    parity("GPT-2, converted", "transformers GPT2Model", result, expected, 1e-4)


def test_everything_may_lie_in_a_store(gpt2, bucket, copies, tmp_path, monkeypatch, capsys):
    """In, into a bundle with another component, and out again; nothing of it stays here."""
    monkeypatch.chdir(tmp_path)
    for file in gpt2.iterdir():
        (bucket / "gpt2" / file.name).put(file)
    bundle, out = bucket / "bundle", bucket / "out"
    kept = write_bundle(tmp_path / "here", {"audiomae": untrained()["audiomae"]})
    publish(kept.path, bundle)
    assert main(["gpt2", str(bucket / "gpt2"), "-o", str(bundle)]) == 0
    assert main(["gpt2", str(bundle), "-o", str(out), "--to", "torch"]) == 0
    capsys.readouterr()
    opened = Bundle.open(bundle)
    assert set(opened.entries) == {"audiomae", "gpt2"}
    assert [opened.damages(name) for name in opened.entries] == [[], []]
    assert opened.entries["audiomae"] == kept.entries["audiomae"]
    back = load_file(kept_copy(out) / "model.safetensors")
    for name, tensor in load_file(gpt2 / "model.safetensors").items():
        assert torch.equal(back[name], tensor)
    assert [p.name for p in tmp_path.iterdir()] == ["here"]
    # Another conversion takes the place of the component, whose folder goes.
    before = opened.entries["gpt2"].folder
    assert main(["gpt2", str(bucket / "gpt2"), "-o", str(bundle), "--precision", "bfloat16"]) == 0
    assert not (bundle / before).exists()
    file = next(f for f in (bundle / Bundle.open(bundle).entries["gpt2"].folder).files())
    file.write_bytes(b"x")
    assert Bundle.open(bundle).damages("gpt2") != []

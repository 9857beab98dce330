"""Repositories of the Hugging Face hub, over a stand-in of it on this machine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from convert.source import resolve
from convert.tensors import SourceError
from mfm_jax.bundle import Bundle, write_bundle
from mfm_jax.cli import main
from mfm_jax.storage.hub import Address, HubError, bundle_path, read_address, snapshot_of
from mfm_jax.storage.paths import TINY_BUNDLE
from tests.hub_server import TOKEN, forget, running_hub, use


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with running_hub() as server:
        use(server.url, tmp_path / "cache", monkeypatch)
        yield server
    forget()


@pytest.fixture
def folder(tmp_path):
    """A small bundle."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    shutil.copy(TINY_BUNDLE / "bundle.json", folder)
    for name in ("listener", "cavp"):
        part = Bundle.open(TINY_BUNDLE).folder(name)
        shutil.copytree(part, folder / part.name)
    return folder


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("hf://org/name", Address("org/name")),
        ("hf://org/name@v1", Address("org/name", "v1")),
        ("hf://org/name/a/b.pth", Address("org/name", None, "a/b.pth")),
        ("hf://org/name@refs%2Fpr%2F1/a/", Address("org/name", "refs/pr/1", "a")),
        ("org/name", None),
        ("gs://org/name", None),
    ],
)
def test_reads_an_address(text, address):
    assert read_address(text) == address
    if address is not None:
        assert read_address(Path(text)) == read_address(str(address)) == address


@pytest.mark.parametrize("rest", ["", "org", "org/", "org/na me", "org/name@", "org/name/../x"])
def test_an_address_of_no_repository(rest):
    with pytest.raises(HubError, match="names no repository: give hf://ORGANISATION/NAME"):
        read_address(f"hf://{rest}")


@pytest.mark.parametrize("form", ["hf://org/name", "org/name", "org/name@v1", "hf://org/name@v1/x"])
def test_only_what_is_needed_is_downloaded(form, hub, folder):
    inside = "x/" if form.endswith("/x") else ""
    repository = hub.repositories["org/name"]
    files = {
        f"{inside}{file.relative_to(folder)}": file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }
    commit = repository.commit("v1", files)
    repository.branches["main"] = commit
    bundle = Bundle.open(form)
    snapshot = snapshot_of(bundle.path)
    assert snapshot.name == commit
    assert bundle.path.relative_to(snapshot).as_posix() == (inside.strip("/") or ".")
    assert {p.name for p in bundle.path.iterdir()} == {"bundle.json"}
    got, written = bundle.load("listener"), Bundle.open(folder).load("listener")
    np.testing.assert_array_equal(got.out.kernel[...], written.out.kernel[...])
    assert bundle.damages("listener") == []
    listener = bundle.entries["listener"].folder
    assert {p.name for p in bundle.path.iterdir()} == {"bundle.json", listener}
    assert not any("cavp" in line for line in hub.asked)


def test_a_process_keeps_to_the_commit_that_it_found(hub, folder):
    first = hub.put("org/name", folder)
    assert Bundle.open("org/name").path.name == first
    (folder / "README.md").write_text("new")
    hub.put("org/name", folder)
    again = Bundle.open("hf://org/name@main"), Bundle.open("org/name")
    assert [bundle.path.name != first for bundle in again] == [True, False]


def test_a_folder_here_comes_first(hub, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, "org/name")
    assert Bundle.open("org/name").path == Path("org/name")
    assert hub.asked == []


def test_a_cut_download_goes_on_where_it_ended(hub, folder, monkeypatch):
    """A file goes on from its last byte, and a process from the files that are there."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)  # otherwise 10 MB
    commit = hub.put("org/name", folder)
    bundle = Bundle.open("org/name")
    files = hub.repositories["org/name"].files(commit)
    name = max((n for n in files if n.startswith("cavp-")), key=lambda n: len(files[n]))
    hub.cut[name] = 1000
    hub.absent.add(f"{bundle.entries['cavp'].folder}/index.json")
    with pytest.raises(HubError, match="start again, which goes on where it ended"):
        bundle.folder("cavp")
    first = [line for line in hub.asked if line.startswith("GET /org")]
    hub.absent.clear()
    hub.asked.clear()
    assert bundle.damages("cavp") == []
    second = [line for line in hub.asked if line.startswith("GET /org")]
    assert 1 <= len(second) < 13
    assert not set(first) & set(second)
    # At once, unless the missing file ended the first try before.
    assert f"GET /org/name/resolve/{commit}/{name} from 1000" in first + second


def test_damage_on_the_way_is_found(hub, folder):
    hub.put("org/name", folder)
    files = hub.repositories["org/name"].files("main")
    name = next(n for n in files if n.startswith("listener") and "/d/" in n)
    files[name] = b"\0" * len(files[name])
    with pytest.raises(ValueError, match="was changed"):
        Bundle.open("org/name").load("listener")


def test_what_cannot_be_read_is_one_line(hub, folder, monkeypatch):
    hub.put("org/name", folder)
    hub.put("org/private", folder)
    hub.repositories["org/private"].private = True
    for address, told in {
        "hf://org/absent": "the hub has no org/absent, or it is private",
        "org/private": "log in with hf auth login",
        "hf://org/name@v9": "org/name has no revision v9: name one that it has after @",
        "hf://org/name/sub": "hf://org/name/sub has no bundle.json: check the address",
    }.items():
        with pytest.raises(HubError, match=told) as error:
            bundle_path(address)
        assert "\n" not in str(error.value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert Bundle.open("org/private").entries


def test_without_a_network(hub, folder, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.put("org/name", folder)
    bundle = Bundle.open("org/name")
    bundle.folder("cavp")
    use("http://127.0.0.1:9", tmp_path / "cache", monkeypatch)
    for offline, told in (
        (False, "check the network and start again, which goes on"),
        (True, "HF_HUB_OFFLINE"),
    ):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        assert Bundle.open("hf://org/name").damages("cavp") == []
        with pytest.raises(HubError, match=told):
            bundle.load("listener")
        with pytest.raises(HubError, match=told):
            bundle_path("org/absent")


def test_a_bundle_is_written_on_top_of_one_in_the_cache(hub, folder, tmp_path):
    """The files in the cache are links, of which copies are files."""
    data = json.loads((folder / "bundle.json").read_text())
    data["components"] = {"listener": data["components"]["listener"]}
    (folder / "bundle.json").write_text(json.dumps(data))
    hub.put("org/name", folder)
    write_bundle(tmp_path / "new", {}, base=bundle_path("org/name"))
    shutil.rmtree(tmp_path / "cache")
    assert Bundle.open(tmp_path / "new").damages("listener") == []
    assert not any(file.is_symlink() for file in (tmp_path / "new").rglob("*"))


def test_sources_of_conversion(hub, tmp_path):
    (tmp_path / "up" / "vae").mkdir(parents=True)
    (tmp_path / "up" / "a.pth").write_bytes(b"a")
    (tmp_path / "up" / "vae" / "config.json").write_text("{}")
    (tmp_path / "up" / "vae" / "image.png").write_bytes(b"b")
    hub.put("org/name", tmp_path / "up")
    hub.put("org/name", tmp_path / "up", branch="v1")
    assert resolve("hf://org/name/a.pth").read_bytes() == b"a"
    vae = resolve("hf://org/name@v1/vae", patterns=["*.json"])
    assert [file.name for file in vae.iterdir()] == ["config.json"]
    assert (resolve("org/name@v1") / "vae" / "image.png").exists()
    with pytest.raises(SourceError, match="names a revision: leave --revision out"):
        resolve("hf://org/name@v1", revision="v2")
    with pytest.raises(HubError, match=r"hf://org/name/b\.pth holds none of b\.pth"):
        resolve("hf://org/name/b.pth")


def test_the_command_says_what_is_missing(hub, folder, capsys):
    hub.put("org/name", folder)
    assert main(["bundle", "show", "hf://org/name"]) == 2
    assert "timechat" in capsys.readouterr().err.removesuffix("is missing\n")


def test_without_the_hubs_library():
    program = """
import sys
sys.modules["huggingface_hub"] = None
from mfm_jax.storage.hub import bundle_path
try:
    bundle_path("hf://org/name")
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout == "this needs huggingface_hub: pip install 'mfm-jax[hub]'\n"

"""`mfm bundle push`, into a folder and to a stand-in of the hub."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from convert.source import open_weights
from mfm_jax.bundle import Bundle, Source, write_bundle
from mfm_jax.bundle.card import Exports, card
from mfm_jax.cli import main
from mfm_jax.storage.hub import Address
from mfm_jax.storage.paths import TINY_BUNDLE
from tests.bundles import CONFIGS, untrained_component
from tests.hub_server import TOKEN, forget, running_hub, use

# The hub's library passes a file to its HTTP library in a way that this one is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("MFM_FILES", str(tmp_path / "files"))
    with running_hub() as server:
        use(server.url, tmp_path / "cache", monkeypatch)
        yield server
    forget()


def small(path, *names, licence="MIT"):
    made = {name: untrained_component(name, CONFIGS[name], 0) for name in names}
    source = Source("a | test *of* it", licence, files=(("a.ckpt", "0" * 64),))
    return write_bundle(path, {n: (c, w, source) for n, (c, w, _) in made.items()})


def test_into_a_folder(tmp_path, capsys):
    report = {
        "protocol": {"clips": 7},
        "systems": ["ours"],
        "metrics": [
            {"key": "a", "label": "A", "unit": "LU", "better": "lower", "digits": 2, "main": True},
            {"key": "b", "label": "B", "unit": "", "better": "", "digits": 2, "main": False},
        ],
        "figures": {"ours": {"a": {"value": 1.234, "low": 1, "high": 2}}},
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    bundle = small(tmp_path / "bundle", "vae", "mapper", licence="CC-BY-NC-4.0")
    heldout = {"metric": "loss", "best": {"step": 3, "value": 0.5}, "last": {"step": 9, "value": 1}}
    (tmp_path / "bundle" / "summary.json").write_text(json.dumps({"heldout": heldout}))
    words = ["bundle", "push", str(bundle.path), "org/name", "--revision", "v1"]
    words += ["--report", str(tmp_path), "--into", str(tmp_path / "new")]
    assert main(words) == 0
    new = tmp_path / "new"
    assert Bundle.open(new).identity == bundle.identity
    assert all(Bundle.open(new).damages(name) == [] for name in bundle.entries)
    assert open_weights(new / "torch" / "audioldm2" / "vae").tensors
    assert {p.name for p in (new / "torch" / "mapper").iterdir()} == {
        "config.json", "fusion.safetensors", "gpt2",
    }  # fmt: skip
    text = (new / "README.md").read_text()
    assert text.startswith('---\nlicense: "cc-by-nc-4.0"\nlibrary_name: "mfm-jax"\ntags:\n- jax\n')
    for line in (
        "Bundle.open('hf://org/name@v1')",
        "It makes no sound by itself: it has no cavp, timechat, unet, vocoder.",
        "| A [LU] | lower | 1.23 (1.00 to 2.00) |",
        "| best | 3 | 0.5 |",
        "Commercial use of the bundle: no, because of `mapper`, `vae`.",
        "  - made by a \\| test \\*of\\* it (mfm-jax",
        f"  - from a.ckpt  sha256 {'0' * 64}",
        "| `mapper` | `torch/mapper` |",
    ):
        assert line in text, text
    assert main(words) == 2
    assert "name another folder with --into" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("licence", "told"),
    [
        ("MIT", 'license: "mit"\nlibrary'),
        ("none", 'license: "unknown"\nlibrary'),
        (
            "MIT AND CC-BY-4.0",
            'license: "other"\nlicense_name: "cc-by-4.0-and-mit"\nlicense_link: "README.md"\n',
        ),
    ],
)
def test_the_licence_of_a_card(licence, told, tmp_path):
    bundle = small(tmp_path / "bundle", "vae", licence=licence)
    assert told in card(bundle, Address("org/name"), Exports({}, {}))


def test_the_card_of_the_miniature_tells_how_to_use_it():
    text = card(Bundle.open(TINY_BUNDLE), Address("org/tiny"), Exports({}, {"unet": "why"}))
    assert "mfm generate clip.mp4 -o out/ --bundle hf://org/tiny\n" in text
    assert "- `unet` is not there: why" in text
    for name in Bundle.open(TINY_BUNDLE).entries:
        assert f"\n| `{name}` |" in text


def test_there_and_back(hub, tmp_path, capsys):
    """What is pushed is opened with the same weights; a second push replaces what is no longer."""
    bundle = small(tmp_path / "bundle", "vae", "mapper")
    push = ["bundle", "push", str(bundle.path), "org/name", "--private"]
    assert main(push) == 0
    address = capsys.readouterr().out.split()[-1]
    repository = hub.repositories["org/name"]
    assert repository.private
    assert address == f"hf://org/name@{repository.branches['main']}"
    assert any(line.startswith("PUT /lfs/") for line in hub.asked)
    opened = Bundle.open(address)
    assert opened.identity == bundle.identity
    got, written = opened.load("vae"), bundle.load("vae")
    np.testing.assert_array_equal(
        got.decoder.conv_in.kernel[...], written.decoder.conv_in.kernel[...]
    )
    repository.files("main")["notes.md"] = b"of a user"
    small(bundle.path, "vae", licence="ISC")
    assert main(push) == 0
    files = repository.files("main")
    folders = {name.split("/")[0] for name in files}
    now = Bundle.open(bundle.path)
    assert folders == {".gitattributes", "README.md", "bundle.json", "notes.md", "torch"} | {
        entry.folder for entry in now.entries.values()
    }
    # The bundle's file comes after all that it names.
    last_two = list(repository.commits.values())[-2:]
    assert [now.entries["vae"].folder.encode() in c["bundle.json"] for c in last_two] == [0, 1]
    assert Path(tmp_path / "files" / "outgoing").exists()
    assert not list(Path(tmp_path / "files" / "outgoing").iterdir())


def test_another_branch(hub, tmp_path):
    bundle = small(tmp_path / "bundle", "vae")
    assert main(["bundle", "push", str(bundle.path), "org/name", "--revision", "v1"]) == 0
    assert set(hub.repositories["org/name"].files("main")) == {".gitattributes"}
    assert Bundle.open("hf://org/name@v1").identity == bundle.identity


def test_what_cannot_be_pushed_is_one_line(hub, tmp_path, capsys, monkeypatch):
    bundle = small(tmp_path / "bundle", "vae")
    hub.put("org/public", tmp_path / "bundle")
    before = dict(hub.repositories["org/public"].branches)

    def said(*words):
        assert main(["bundle", "push", str(bundle.path), *words]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return err

    assert "is there and public: make it private" in said("org/public", "--private")
    assert "no report of mfm evaluate" in said("org/name", "--report", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "log in with hf auth login, or set HF_TOKEN" in said("org/name")
    monkeypatch.delenv("HF_TOKEN")
    assert "log in with hf auth login, or set HF_TOKEN" in said("org/name")
    part = next((bundle.path / bundle.entries["vae"].folder).rglob("commit_success.txt"))
    shutil.copy(bundle.path / "bundle.json", part)
    assert "vae is damaged" in said("org/name")
    with pytest.raises(SystemExit):
        main(["bundle", "push", str(bundle.path), "name"])
    assert "is no repository: give ORGANISATION/NAME" in capsys.readouterr().err
    assert hub.repositories["org/public"].branches == before

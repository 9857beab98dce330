"""Nothing in a bundle is believed: what is damaged, absurd or leads elsewhere is one clear line."""

import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from mfm_jax.bundle import Bundle, BundleError, Settings, write_bundle
from mfm_jax.bundle.bundle import component_checksum
from mfm_jax.encoders import window_spec
from mfm_jax.models.gpt2 import GPT2Config
from mfm_jax.models.text import EmptyTextConfig
from mfm_jax.models.unet import UNetConfig
from mfm_jax.models.vae import VAEConfig
from mfm_jax.storage.weights import named_weights
from tests.bundles import untrained_component

SMALL = {
    "gpt2": GPT2Config(width=8, depth=2, heads=2, positions=4),
    "text": EmptyTextConfig(width=8),
}
SIZES = {
    "vae": VAEConfig(scaling_factor=0.7, channels=(8, 12), resnets=1, groups=4),
    "unet": UNetConfig.tiny(),
}
"""Components that are opened and not loaded."""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    parts = {n: untrained_component(n, c, i) for i, (n, c) in enumerate(SMALL.items())}
    return write_bundle(tmp_path_factory.mktemp("small") / "bundle", parts)


@pytest.fixture
def bundle(written, tmp_path):
    shutil.copytree(written.path, tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


def sealed(bundle, name):
    """Make the checksum of a component fit what its entry and its index say now."""
    file = bundle.path / "bundle.json"
    data = json.loads(file.read_text())
    entry = dataclasses.replace(bundle.entries[name], stored=data["components"][name])
    checksum = component_checksum(name, entry, bundle.path / entry.folder)
    data["components"][name]["checksum"] = checksum
    file.write_text(json.dumps(data))


def said_of(action) -> str:
    """Return the single line of an action that is refused."""
    with pytest.raises(BundleError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def flip(file: Path) -> None:
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 4
    file.write_bytes(bytes(whole))


# Checksums


def test_only_what_is_loaded_is_checked(bundle):
    folder = bundle.path / bundle.entries["text"].folder
    files = (file for file in (folder / "part-0").rglob("*") if file.is_file())
    flip(max(files, key=lambda file: file.stat().st_size))
    bundle.load("gpt2")
    said = said_of(lambda: bundle.load("text"))
    assert (
        f"cannot read the weights of text in bundle {bundle.path}: it is damaged (part-0/" in said
    )
    assert said.endswith("was changed): make it again")


def test_checking_can_be_left_out(bundle, written):
    """Values then come as they are on the disk."""
    file = bundle.path / "bundle.json"
    data = json.loads(file.read_text())
    data["components"]["text"]["source"]["made_by"] = "somebody else"
    file.write_text(json.dumps(data))
    assert "text-" in said_of(lambda: Bundle.open(bundle.path).load("text"))
    for opened in (
        Bundle.open(bundle.path).load("text", verify=False),
        Bundle.open(bundle.path, verify=False).load("text"),
    ):
        for name, weight in named_weights(written.load("text")).items():
            np.testing.assert_array_equal(named_weights(opened)[name], weight)
    assert "text-" in said_of(
        lambda: Bundle.open(bundle.path, verify=False).load("text", verify=True)
    )


@pytest.mark.parametrize("verify", [True, False])
def test_files_that_nobody_can_read_are_never_waited_for(bundle, verify):
    """Orbax waits forever for a pipe. Sizes are compared in any case."""
    opened = Bundle.open(bundle.path, verify=verify)
    folder = bundle.path / bundle.entries["text"].folder
    file = folder / max(opened.store("text").files, key=lambda name: name.startswith("part-0/d/"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    assert "was changed" in said_of(lambda: opened.load("text"))
    for name in (file, folder / "index.json", bundle.path / "bundle.json"):
        name.unlink()
        os.mkfifo(name)
        said = said_of(lambda: Bundle.open(bundle.path, verify=verify).load("text"))
        assert "it is no file" in said or "is not a bundle" in said


def test_added_files_are_found_and_hidden_ones_do_no_harm(bundle):
    part = bundle.path / bundle.entries["text"].folder / "part-0"
    (part / ".DS_Store").write_bytes(b"mac")
    bundle.load("text")
    assert bundle.damages("text") == []
    (part / "d" / "more").write_bytes(b"x")
    assert "part-0/d/more does not belong there" in said_of(lambda: bundle.load("text"))
    (part / "d" / "more").unlink()
    next(file for file in (part / "d").iterdir()).unlink()
    assert "is missing" in said_of(lambda: bundle.load("text"))


# Numbers


def changed(path: Path, place: str, value) -> Path:
    """Write the sizes of a bundle with `value` at a dotted place of its bundle.json."""
    from mfm_jax.bundle import write_sizes

    write_sizes(path, {**SMALL, **SIZES}, Settings.tiny())
    data = json.loads((path / "bundle.json").read_text())
    *inner, last = place.split(".")
    table = data
    for name in inner:
        table = table[int(name) if isinstance(table, list) else name]
    table[int(last) if isinstance(table, list) else last] = value
    (path / "bundle.json").write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            "components.gpt2.config.depth",
            10**7,
            r"gpt2\.config\.depth is 10000000: it must be 1 to 1000",
        ),
        ("components.gpt2.config.depth", 0, r"gpt2\.config\.depth is 0"),
        ("components.gpt2.config.depth", -3, r"gpt2\.config\.depth is -3"),
        ("components.gpt2.config.depth", True, r"gpt2\.config\.depth should be int, not True"),
        ("components.gpt2.config.depth", 2.0, r"gpt2\.config\.depth should be int, not 2.0"),
        ("components.gpt2.config.depth", "2", r"gpt2\.config\.depth should be int, not '2'"),
        ("components.gpt2.config.width", [8], r"gpt2\.config\.width should be int, not \[8\]"),
        ("components.gpt2.config.width", 10**400, r"gpt2\.config\.width is a huge number"),
        ("components.gpt2.config.width", None, r"gpt2\.config\.width should be int, not None"),
        ("components.gpt2.config.epsilon", float("nan"), "is not JSON"),
        ("components.gpt2.config.epsilon", -1e-5, r"gpt2\.config\.epsilon is -1e-05"),
        ("components.gpt2.config", [1], r"gpt2\.config should be a GPT2Config"),
        ("components.gpt2.config", None, r"gpt2\.config should be a GPT2Config"),
        ("components.gpt2.parameters", -1, "gpt2 has no folder, parameters and checksum"),
        ("components.gpt2.parameters", True, "gpt2 has no folder, parameters and checksum"),
        ("components.gpt2.folder", 3, "gpt2 has no folder, parameters and checksum"),
        ("components.gpt2.folder", "gpt2-00000000/../../x", "is no folder of a bundle"),
        ("components.gpt2.source", {"files": [[1, 2]]}, r"gpt2\.source\.files\[0\]"),
        ("components.gpt2.format", [3], r"gpt2 has format \[3\]"),
        ("components.gpt2", 7, "no format, settings and components"),
        ("components.vae.config.channels", [], r"vae\.config\.channels is empty"),
        ("components.vae.config.channels", [8, "12"], r"vae\.config\.channels\[1\] should be int"),
        ("components.vae.config.channels", [8] * 2000000, r"is a list of 2000000"),
        ("components.vae.config.scaling_factor", 1e999, "is not JSON|scaling_factor is inf"),
        ("components.vae.config.groups", 0, r"vae\.config\.groups is 0"),
        ("components.unet.config.attentions.1.0", 7, "reads context 7 of 1"),
        ("components.unet.config.heads", 0, r"unet\.config\.heads is 0"),
        ("components.unet.config.timed", 1, r"unet\.config\.timed should be bool, not 1"),
        ("settings.frames", 0, r"settings\.frames is 0: it must be 1 to 60000"),
        ("settings.frames", 10**9, r"settings\.frames is 1000000000"),
        ("settings.frames", [256], r"settings\.frames should be int"),
        ("settings.overlap", -0.5, r"settings\.overlap is -0.5: it must be a number from 0 to 600"),
        ("settings.guidance", "much", r"settings\.guidance should be float, not 'much'"),
        ("settings.steps", 10**9, r"settings\.steps is 1000000000"),
        ("settings.schedule.train_steps", 10**12, r"schedule\.train_steps is 1000000000000"),
        ("settings.schedule.beta_end", 2.0, r"schedule\.beta_end is 2.0"),
        ("settings.schedule.prediction", "w", "prediction must be 'epsilon' or 'v'"),
        ("settings.schedule.prediction", "epsilon", "schedule or the frames .* were changed"),
        ("settings.schedule.beta_end", 0.02, "schedule or the frames .* were changed"),
        ("settings.frames", 128, "schedule or the frames .* were changed"),
        ("settings.schedule.train_steps", 8, r"settings\.steps is 8, of 8 in training"),
        ("settings.sampler", "euler", r"settings\.sampler is 'euler', not ddim or dpm\+\+"),
        ("settings", None, "no format, settings and components"),
        ("components", [], "no format, settings and components"),
        ("format", "3", "has bundle format '3'"),
        ("format", True, "has bundle format True"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value)[:20],
)
def test_absurd_numbers_and_wrong_types_are_refused(tmp_path, place, value, message):
    path = changed(tmp_path / "b", place, value)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle.open(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gpt2", {"depth": 900}, "depth is 900, and there are only"),
        ("gpt2", {"heads": 3}, "misshaped|cannot be built from its config"),
        ("gpt2", {"width": 1 << 20, "heads": 1 << 20}, "misshaped"),
        ("text", {"tokens": 2}, "misshaped: states"),
    ],
)
def test_a_config_that_does_not_fit_its_weights_is_refused(bundle, name, change, message):
    file = bundle.path / "bundle.json"
    data = json.loads(file.read_text())
    data["components"][name]["config"] |= change
    file.write_text(json.dumps(data))
    sealed(bundle, name)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle.path).load(name)
    assert "is damaged" not in said_of(lambda: Bundle.open(bundle.path, verify=False).load(name))


def test_the_number_of_parameters_is_that_of_the_weights(bundle):
    file = bundle.path / "bundle.json"
    data = json.loads(file.read_text())
    data["components"]["text"]["parameters"] = 7
    file.write_text(json.dumps(data))
    sealed(bundle, "text")
    said = said_of(lambda: Bundle.open(bundle.path).load("text"))
    assert said.endswith("it says 7 parameters and has 8")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"format": 3', "is not JSON"),
        (b"\xff\xfe{}", "is not UTF-8"),
        (b'{"format": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b"[]", "no format, settings and components"),
        (b"", "is not JSON"),
    ],
    ids=["deep", "cut", "utf-16", "long number", "list", "empty"],
)
def test_json_that_cannot_be_read_is_one_line(tmp_path, bundle, content, message):
    (tmp_path / "bundle.json").write_bytes(content)
    assert message in said_of(lambda: Bundle.open(tmp_path))
    (bundle.path / bundle.entries["text"].folder / "index.json").write_bytes(content)
    said_of(lambda: bundle.load("text"))
    assert bundle.damages("text")


def test_settings_that_give_no_window_are_one_line(tmp_path):
    path = changed(tmp_path / "b", "settings.overlap", 2.0)
    assert "cannot overlap by 2.0 s" in said_of(lambda: window_spec(Bundle.open(path)))


# The index of a component


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float33"}, "has the type 'float33', which cannot be read"),
        ({"dtype": "object"}, "has the type 'object', which cannot be read"),
        ({"dtype": 3}, "does not say what 'states' is"),
        ({"shape": 8}, "does not say what 'states' is"),
        ({"shape": [1, -8]}, "impossible shape"),
        ({"shape": [True, 8]}, "impossible shape"),
        ({"shape": [1] * 99}, "impossible shape"),
        ({"shape": [1 << 40, 1 << 40]}, "bytes of arrays in"),
        ({"part": "0"}, "does not say what 'states' is"),
        ({"part": -1}, "part -1, which is no number of a part"),
        ({"part": True}, "part True, which is no number of a part"),
        ({"part": 7}, "part-7 cannot be read"),
        ({"sha256": "0"}, "has no SHA-256"),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_index_that_no_folder_can_have_is_refused(bundle, change, message):
    index = bundle.path / bundle.entries["text"].folder / "index.json"
    data = json.loads(index.read_text())
    data["arrays"]["states"] |= change
    index.write_text(json.dumps(data))
    sealed(bundle, "text")
    assert message in said_of(lambda: Bundle.open(bundle.path).load("text"))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", "a\nb"])
def test_an_index_does_not_lead_outside(bundle, name):
    index = bundle.path / bundle.entries["text"].folder / "index.json"
    data = json.loads(index.read_text())
    data["files"][name] = [1, hashlib.sha256(b"x").hexdigest()]
    index.write_text(json.dumps(data))
    sealed(bundle, "text")
    assert "is no name of a file in it" in said_of(lambda: Bundle.open(bundle.path).load("text"))


def test_links_in_place_of_folders_are_refused(bundle, tmp_path):
    folder = bundle.path / bundle.entries["text"].folder
    (folder / "part-0").rename(tmp_path / "part-0")
    (folder / "part-0").symlink_to(tmp_path / "part-0")
    assert "part-0 is a link" in said_of(lambda: bundle.load("text"))
    (folder / "part-0").unlink()
    (tmp_path / "part-0").rename(folder / "part-0")
    bundle.load("text")
    folder.rename(tmp_path / "text")
    folder.symlink_to(tmp_path / "text")
    assert f"{folder} is a link" in said_of(lambda: bundle.load("text"))
    assert "is a link" in bundle.damages("text")[0]


# Power loss


def test_what_is_named_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    """The real calls are made; this only notes their order."""
    flushed: set[int] = set()
    named = []
    fsync, replace = os.fsync, os.replace

    def flush(handle: int) -> None:
        fsync(handle)
        flushed.add(os.fstat(handle).st_ino)

    def rename(part: Path, target: Path) -> None:
        if Path(part).is_file():
            named.append(target.name)
            around = (p for p in target.parent.rglob("*") if p != target)
            unsafe = [p for p in (target.parent, *around) if p.stat().st_ino not in flushed]
            assert not unsafe, target
        replace(part, target)
        flushed.discard(target.parent.stat().st_ino)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    first = write_bundle(tmp_path / "a", {"text": untrained_component("text", SMALL["text"], 0)})
    part = {"gpt2": untrained_component("gpt2", SMALL["gpt2"], 0)}
    flushed.clear()
    write_bundle(tmp_path / "b", part, base=first.path)
    assert named == ["index.json", "bundle.json"] * 2
    assert {p.stat().st_ino for p in (tmp_path, tmp_path / "b")} <= flushed

"""A path names a file or a folder of this machine, whatever it looks like."""

import os
from pathlib import Path

import pytest

from mfm_jax.cli import main
from mfm_jax.storage.paths import PathError, array_path, local_path

FILES = ("12:30:05.mp4", "pipe:x.mp4", "a b/c:d.mp4", "http:", "C:/clips", "./gs:/x", "-")


@pytest.mark.parametrize("name", FILES)
def test_a_name_with_a_colon_is_a_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(Path(name).parts[0]).mkdir()
    assert local_path(name) == local_path(Path(name)) == Path(name)


@pytest.mark.parametrize("name", ["gs://b/x", "s3://b", "http://h/a.mp4", "file:///a.mp4"])
def test_an_address_is_refused_also_once_it_was_a_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in (name, Path(name)):
        with pytest.raises(PathError, match=r"is an address, .* mount its folder or copy"):
            local_path(given)


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_what_can_be_no_path(name):
    with pytest.raises(PathError, match="is no path: name a file or a folder"):
        local_path(name)


COMMANDS = {
    "generate": ["{}", "-o", "out"],
    "generate -o": ["clip.mp4", "-o", "{}"],
    "generate --bundle": ["clip.mp4", "-o", "out", "--bundle", "{}"],
    "extract": ["{}", "-o", "out"],
    "extract --videos": ["clips.csv", "-o", "out", "--videos", "{}"],
    "extract -o": ["clips.csv", "-o", "{}"],
    "extract --bundle": ["clips.csv", "-o", "out", "--bundle", "{}"],
    "train --config": ["--config", "{}", "--workdir", "out"],
    "train --workdir": ["--config", "tiny", "--workdir", "{}"],
    "convert": ["gpt2", "{}", "-o", "out"],
    "convert --to torch": ["gpt2", "{}", "-o", "out", "--to", "torch"],
    "convert -o": ["gpt2", "gpt2", "-o", "{}"],
    "convert --config": ["cavp", "a.ckpt", "-o", "out", "--config", "{}"],
    "convert --vocabulary": ["timechat", "a.pth", "-o", "out", "--vocabulary", "{}"],
    "bundle": ["verify", "{}"],
    "demo -o": ["-o", "{}"],
    "demo --bundle": ["--bundle", "{}"],
    "plan --json": ["--topology", "v5e:2x2", "--json", "{}"],
    "plan --config": ["--topology", "v5e:2x2", "--config", "{}"],
}
"""Words of each command, with an argument that is a path."""


ARRAYS = (
    "generate --bundle", "extract -o", "extract --bundle", "train --workdir", "convert --to torch",
    "bundle", "demo --bundle",
)  # fmt: skip
"""The arguments that are folders of arrays."""


@pytest.mark.parametrize("command", ARRAYS)
def test_a_folder_of_arrays_has_a_name_in_utf_8(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert said_by(command, os.fsdecode(b"caf\xe9"), capsys).count("is not UTF-8: choose") == 1
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PathError, match="is not UTF-8"):
        array_path(tmp_path / os.fsdecode(b"\xff") / "a")
    assert array_path("é") == Path("é")


def said_by(command, path, capsys, lines=1):
    words = [word.format(path) for word in COMMANDS[command]]
    try:
        code = main([command.split()[0], *words])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr().err
    assert code == 2 or (lines > 1 and code == 1)
    assert 1 <= said.count("\n") <= lines
    return said


ADDRESSES = {
    "gs://no-such-bucket/x": "gs://no-such-bucket",
    "s3://b/x": "credentials",
    "gs:/b/x": "lacks a slash",
    "gcs://b/x": "is an address",
    "hf://org/name": "is an address",
    "hf:/org/name": "lacks a slash",
    "https://h/x": "is an address",
    "file://host/x": "on another machine",
    "gs://": "names no bucket",
}
"""What a user may name, and what is told of it."""
HUB = (
    "generate --bundle", "extract --bundle", "convert", "convert --to torch", "bundle",
    "demo --bundle",
)  # fmt: skip
"""The arguments that may be a repository of the hub, which is not asked in tests."""


@pytest.mark.parametrize("command", COMMANDS)
def test_an_address_of_nothing_is_one_line(
    command, tmp_path, monkeypatch, capsys, store_server, copies
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips.csv").write_text("file\na.mp4\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for address, told in ADDRESSES.items():
        # A video that is not there fails by itself, and then the job.
        said = said_by(command, address, capsys, lines=2)
        if address.startswith("hf://") and command in HUB:
            told = "is not in the cache: unset HF_HUB_OFFLINE"
        if address.startswith("s3://") and command == "train --workdir":
            told = "cannot hold the checkpoints of a run"  # whatever the credentials
        assert told in said, said
        assert [p.name for p in tmp_path.iterdir()] == ["clips.csv"], said

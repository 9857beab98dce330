"""`mfm bundle` tells what is there, and finds what has changed."""

import shutil

from mfm_jax.cli import main
from mfm_jax.storage.paths import TINY_BUNDLE

COMPONENTS = (
    "cavp", "timechat", "audiomae", "mapper", "unet", "adapter", "vae", "vocoder", "listener"
)  # fmt: skip


def test_show_lists_every_component(capsys):
    assert main(["bundle", "show", str(TINY_BUNDLE)]) == 0
    printed = capsys.readouterr().out
    for name in COMPONENTS:
        assert f"\n{name} " in f"\n{printed}"
    assert "1,886,624 parameters  float16" in printed
    assert "licence Apache-2.0" in printed


def test_verify_passes_what_is_as_written(capsys):
    assert main(["bundle", "verify", str(TINY_BUNDLE)]) == 0
    assert capsys.readouterr().out.count("as written") == len(COMPONENTS)


def test_verify_names_what_changed(tmp_path, capsys):
    copy = tmp_path / "bundle"
    shutil.copytree(TINY_BUNDLE, copy)
    (folder,) = copy.glob("vae-*")
    file = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    assert main(["bundle", "verify", str(copy)]) == 1
    printed = capsys.readouterr().out
    assert f"vae: {file.relative_to(folder)} was changed" in printed
    assert printed.count("as written") == len(COMPONENTS) - 1


def test_a_folder_that_is_no_bundle_is_one_line(tmp_path, capsys):
    assert main(["bundle", "verify", str(tmp_path)]) == 2
    assert "is not a bundle" in capsys.readouterr().err

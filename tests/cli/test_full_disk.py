"""A full disk, in every command that writes: one line, nothing half-written, a rerun goes on."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mfm_jax.bundle import write_bundle
from mfm_jax.cli import main
from mfm_jax.inference.requests import Request
from mfm_jax.inference.work import Job, Work
from mfm_jax.media.write import write_frames
from mfm_jax.storage.paths import TINY_BUNDLE
from tests.bundles import SETTINGS, untrained
from tests.full_disk import full_disk
from tests.inference.stand_in import networks
from tests.windows import pair_spec

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A clip with sound, a bundle that extracts features, and a mapper in PyTorch's layout."""
    folder = tmp_path_factory.mktemp("made")
    frames = np.random.default_rng(0).integers(0, 256, (25, 64, 64, 3), np.uint8)
    sound = np.sin(np.arange(16_000) / 9).astype(np.float32)
    (folder / "clips").mkdir()
    write_frames(iter(frames), folder / "clips/a.mp4", fps=25, wave=sound)
    write_bundle(folder / "bundle", {"audiomae": untrained()["audiomae"]}, settings=SETTINGS)
    assert (
        main(["convert", "mapper", str(TINY_BUNDLE), "-o", f"{folder}/torch", "--to", "torch"]) == 0
    )
    # Compiled once, without a limit on the files of JAX's cache.
    extract = ["extract", f"{folder}/clips", "--bundle", f"{folder}/bundle", "--batch", "1"]
    assert main([*extract, "-o", f"{folder}/features"]) == 0
    return folder


COMMANDS = {
    "extract": ["{made}/clips", "--bundle", "{made}/bundle", "--batch", "1", "-o", "{new}"],
    "convert": ["mapper", "{made}/torch", "-o", "{new}"],
    "convert --to torch": ["mapper", str(TINY_BUNDLE), "-o", "{new}", "--to", "torch"],
    "demo": ["-o", "{new}"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line_and_a_rerun_goes_on(command, made, tmp_path, capsys):
    words = [w.format(made=made, new=tmp_path / "new") for w in COMMANDS[command]]
    words = [command.split()[0], *words]
    with full_disk():
        assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "file too large" in said
    assert "make room there and start again" in said
    left = [p.name for p in tmp_path.rglob("*") if p.is_file() or p.name.startswith(".")]
    assert left == []
    if command != "demo":  # which takes longer
        assert main(words) == 0


def test_videos_that_cannot_be_written_fail_each_with_a_line(made, tmp_path):
    spec = pair_spec(seconds=1.28, overlap=0.16, cavp_size=16, timechat_frames=2, timechat_size=16)
    for name in ("new.mp4", "new.mkv", "new.wav"):
        job = Job(Request(made / "clips/a.mp4"), tmp_path / name)
        with full_disk():
            Work([job], spec).run(lambda: networks(lambda items: np.zeros((len(items), 20480))), 1)
        assert "(file too large): make room there and start again" in job.failed
    assert list(tmp_path.iterdir()) == []


def test_output_that_cannot_be_printed_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mfm_jax.cli", "bundle", "show", str(TINY_BUNDLE)],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    line = "mfm bundle: no space left on device: make room and start again\n"
    assert (done.returncode, done.stderr) == (2, line)

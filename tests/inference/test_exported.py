"""Programs beside a bundle are used where everything is the same, and never trusted otherwise."""

import json
import os
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from mfm_jax.bundle import Bundle
from mfm_jax.cli import main
from mfm_jax.inference.exported import FOLDER, FOR, Exports
from mfm_jax.inference.memory import plan
from mfm_jax.inference.pipeline import Sampling, VideoToAudio
from mfm_jax.runtime.compiled import NO_PROGRAMS, Programs
from mfm_jax.runtime.executables import KEY, environment, key_file, purpose_name
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh
from tests.bundles import untrained_bundle
from tests.noise import window

ONE = Layout(make_mesh(MeshConfig(), jax.local_devices()[:1]))
SAMPLING = Sampling("ddim", 2, 2.0)


@pytest.fixture(autouse=True)
def key(tmp_path_factory, monkeypatch):
    """The key of the user of this module."""
    monkeypatch.setenv(KEY, str(tmp_path_factory.getbasetemp() / "exported" / "key"))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A bundle with programs beside it for the settings of `exports`."""
    bundle = tmp_path_factory.mktemp("compiled") / "bundle"
    untrained_bundle(bundle)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY, str(tmp_path_factory.getbasetemp() / "exported" / "key"))
        command = ["bundle", "compile", str(bundle), "--batch", "1", "--sampler", "ddim"]
        assert main([*command, "--steps", "2", "--guidance", "2"]) == 0
    return bundle


@pytest.fixture
def exports(compiled, tmp_path):
    """The exports of a copy of the bundle that a test may change."""
    shutil.copytree(compiled, tmp_path / "bundle")
    return Exports(Bundle.open(tmp_path / "bundle"), ONE, 1, "float32", SAMPLING)


def folder_of(exports: Exports) -> Path:
    (folder,) = (exports.bundle.path / FOLDER).iterdir()
    return folder


def test_generation_calls_them_and_makes_the_same_sound(exports, capsys):
    programs = exports.read(pytest.fail)
    called: list[str] = []

    def recorded(name):
        def call(*arguments):
            called.append(name.split("-")[0])
            return programs.known[name](*arguments)

        return call

    model = VideoToAudio.open(exports.bundle.path, layout=ONE)
    watched = replace(model, programs=Programs({name: recorded(name) for name in programs.known}))
    one = [window(model.spec, 3)]
    np.testing.assert_array_equal(watched(one, 7, SAMPLING), model(one, 7, SAMPLING))
    assert called == ["encode_cavp", "encode_timechat", "predict_loa", "sound_from_loa"]
    # A batch of another size is compiled.
    assert watched([*one, *one], 7, SAMPLING).shape[0] == 2
    assert len(called) == 4
    # What the compiler said of memory is in them, too.
    there, anew = (
        plan(
            exports.bundle, ONE, batch=1, dtype=np.dtype("float32"), sampling=SAMPLING, ready=ready
        )
        for ready in (programs, NO_PROGRAMS)
    )
    assert [s.temporaries for s in there.stages] == pytest.approx(
        [s.temporaries for s in anew.stages], rel=0.2
    )
    assert all(stage.temporaries > 0 for stage in there.stages)
    assert key_file().stat().st_mode & 0o777 == 0o600


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def flip_a_byte(exports, monkeypatch, tmp_path):
    file = next(folder_of(exports).glob("predict_loa-*"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return exports


def cut_short(exports, monkeypatch, tmp_path):
    file = next(folder_of(exports).glob("encode_cavp-*"))
    file.write_bytes(file.read_bytes()[:20])
    return exports


def run_code(exports, monkeypatch, tmp_path):
    file = next(folder_of(exports).glob("encode_cavp-*"))
    file.write_bytes(bytes(32) + pickle.dumps(Bomb(tmp_path / "bomb")))
    return exports


def give_another_name(exports, monkeypatch, tmp_path):
    files = [next(folder_of(exports).glob(f"{n}-*")) for n in ("encode_cavp", "predict_loa")]
    files[0].write_bytes(files[1].read_bytes())
    return exports


def move_to_other_settings(exports, monkeypatch, tmp_path):
    other = replace(exports, sampling=Sampling("ddim", 3, 2.0))
    folder_of(exports).rename(exports.bundle.path / FOLDER / purpose_name(other.purpose()))
    return other


def take_another_key(exports, monkeypatch, tmp_path):
    (tmp_path / "key").write_bytes(bytes(32))
    monkeypatch.setenv(KEY, str(tmp_path / "key"))
    return exports


def take_no_key(exports, monkeypatch, tmp_path):
    monkeypatch.setenv(KEY, str(tmp_path / "none"))
    return exports


def ask_for_another_batch(exports, monkeypatch, tmp_path):
    return replace(exports, batch=2)


def ask_for_another_sampler(exports, monkeypatch, tmp_path):
    return replace(exports, sampling=Sampling("dpm++", 2, 2.0))


def be_another_processor(exports, monkeypatch, tmp_path):
    monkeypatch.setattr("mfm_jax.runtime.executables.instructions", lambda: ["flags: none"])
    return exports


def be_another_version(exports, monkeypatch, tmp_path):
    monkeypatch.setattr("mfm_jax.runtime.executables.code_digest", lambda: "other")
    return exports


def hold_another_bundle(exports, monkeypatch, tmp_path):
    file = exports.bundle.path / "bundle.json"
    data = json.loads(file.read_text())
    data["settings"]["steps"] += 1
    file.write_text(json.dumps(data))
    return replace(exports, bundle=Bundle.open(exports.bundle.path))


def tell_nonsense(exports, monkeypatch, tmp_path):
    (folder_of(exports) / FOR).write_text("[1, ")
    return replace(exports, batch=2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (flip_a_byte, "predict_loa-.* is not sealed with the key"),
        (cut_short, "encode_cavp-.* is not sealed with the key"),
        (run_code, "encode_cavp-.* is not sealed with the key"),
        (give_another_name, "encode_cavp-.* is not sealed with the key"),
        (move_to_other_settings, "is not sealed with the key"),
        (take_another_key, "is not sealed with the key"),
        (take_no_key, "there is no key"),
        (ask_for_another_batch, "they are for another batch$"),
        (ask_for_another_sampler, "they are for another sampling$"),
        (be_another_processor, "they are for another processor$"),
        (be_another_version, "they are for another code of mfm_jax$"),
        (hold_another_bundle, "they are for another bundle$"),
        (tell_nonsense, "there are none$"),
    ],
)
def test_what_does_not_fit_or_is_not_sealed_is_compiled_instead(
    exports, monkeypatch, tmp_path, change, reason
):
    changed = change(exports, monkeypatch, tmp_path)
    told: list[str] = []
    assert changed.read(told.append) is NO_PROGRAMS
    (line,) = told
    assert "\n" not in line
    assert re.search(reason, line), line
    assert not (tmp_path / "bomb").exists()


def test_a_bundle_without_programs_says_nothing(compiled, tmp_path):
    shutil.copytree(compiled, tmp_path / "bundle", ignore=shutil.ignore_patterns(FOLDER))
    bundle = Bundle.open(tmp_path / "bundle")
    assert Exports(bundle, ONE, 1, "float32", SAMPLING).read(pytest.fail) is NO_PROGRAMS


def test_settings_of_jax_that_change_programs_count(monkeypatch):
    before = environment(jax.local_devices()[:1])
    assert environment(jax.local_devices()[:1]) == before
    monkeypatch.setenv("XLA_FLAGS", "--other")
    with jax.default_matmul_precision("bfloat16"):
        after = environment(jax.local_devices()[:1])
    assert {n for n in before if before[n] != after[n]} == {"settings of JAX", "flags of XLA"}

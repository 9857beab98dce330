import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convert.__main__ import main
from convert.cavp import AUDIO, AUDIO_TABLE, TABLE, VIDEO_TABLE
from convert.export import export
from convert.model import OURS
from mfm_jax.bundle import Bundle
from mfm_jax.models.cavp import CAVP, CAVPAudio, CAVPConfig, CAVPVideo
from mfm_jax.models.cnn14 import Cnn14Config
from mfm_jax.runtime.config import to_json
from mfm_jax.storage.weights import abstract, named_weights
from tests.table_checks import check_table

SMALL = dataclasses.replace(
    CAVPConfig.diff_foley(),
    width=8,
    embed=32,
    audio=dataclasses.replace(Cnn14Config.cavp(), widths=(4, 8, 8, 16, 16, 32)),
)


@pytest.mark.parametrize(
    ("manifest", "config"),
    [("manifest.json", CAVPConfig.diff_foley()), ("golden/tiny_manifest.json", SMALL)],
)
@pytest.mark.parametrize(
    ("table", "build", "tower"),
    [(TABLE, CAVP, None), (VIDEO_TABLE, CAVPVideo, "video"), (AUDIO_TABLE, CAVPAudio, "audio")],
    ids=["both", "video", "audio"],
)
def test_table(reference, manifest, config, table, build, tower):
    keys = json.loads((reference / "cavp" / manifest).read_text())
    if tower is not None:
        keys = {k: told for k, told in keys.items() if k.startswith(AUDIO) == (tower == "audio")}
    check_table(table, keys, abstract(lambda rngs: build(config, rngs=rngs)))


def test_way_back_has_every_key_of_the_release(reference):
    """The step counters of BatchNorm are written too, so that a strict load succeeds."""
    manifest = json.loads((reference / "cavp/golden/tiny_manifest.json").read_text())
    net = abstract(lambda rngs: CAVP(SMALL, rngs=rngs))
    ours = {name: np.zeros(a.shape, a.dtype) for name, a in named_weights(net).items()}
    theirs = dict(TABLE.to_theirs(ours))
    assert {k: [list(a.shape), str(a.dtype)] for k, a in theirs.items()} == manifest


@pytest.fixture(scope="module")
def released(reference, tmp_path_factory):
    """A small file like the release's, its `--config`, and its tensors."""
    folder = tmp_path_factory.mktemp("released")
    shapes = json.loads((reference / "cavp/golden/tiny_manifest.json").read_text())
    state = load_file(reference / "cavp/golden/tiny.safetensors")  # stores scalars as [1]
    tensors = {k: a.reshape(shapes[k][0]) for k, a in state.items()}
    save_file(tensors, folder / "cavp.safetensors")
    save_file(
        {k: a for k, a in tensors.items() if not k.startswith(AUDIO)}, folder / "video.safetensors"
    )
    (folder / "config.json").write_text(json.dumps({OURS: to_json(SMALL)}))
    return folder, tensors


def convert(folder, name, bundle):
    config = ["--config", str(folder / "config.json")]
    assert main(["cavp", str(folder / name), "-o", str(bundle), *config]) == 0
    return Bundle.open(bundle)


def written(bundle, out):
    assert main(["cavp", str(bundle.path), "-o", str(out), "--to", "torch"]) == 0
    return load_file(out / "model.safetensors")


def test_two_components_are_one_file_again(released, tmp_path):
    folder, tensors = released
    bundle = convert(folder, "cavp.safetensors", tmp_path / "bundle")
    assert list(bundle.entries) == ["cavp", "cavp_audio"]
    assert bundle.made_together("cavp", "cavp_audio")
    back = written(bundle, tmp_path / "out")
    assert back.keys() == tensors.keys()
    assert all(np.array_equal(back[key], tensors[key]) for key in tensors)
    # The export is read again, with its own config.
    assert main(["cavp", str(tmp_path / "out"), "-o", str(tmp_path / "again")]) == 0
    again = Bundle.open(tmp_path / "again")
    assert again.config("cavp_audio") == bundle.config("cavp_audio") == SMALL
    exported = export(bundle, tmp_path / "exports")
    assert exported.folders == dict.fromkeys(bundle.entries, "exports/cavp")


def test_a_file_without_the_audio_tower_leaves_no_other_one_beside_its_own(released, tmp_path):
    folder, tensors = released
    bundle = convert(folder, "video.safetensors", tmp_path / "bundle")
    assert list(bundle.entries) == ["cavp"]
    assert not bundle.made_together("cavp", "cavp_audio")
    convert(folder, "cavp.safetensors", bundle.path)
    mixed = convert(folder, "video.safetensors", bundle.path)
    assert list(mixed.entries) == ["cavp", "cavp_audio"]
    assert not mixed.made_together("cavp", "cavp_audio")
    back = written(mixed, tmp_path / "out")
    assert back.keys() == {key for key in tensors if not key.startswith(AUDIO)}

import json

import numpy as np
import pytest
import torch

from convert.__main__ import main
from convert.model import CONFIG, OURS
from convert.synchformer import table
from convert.table import ConversionError
from mfm_jax.bundle import Bundle, commercial_use
from mfm_jax.models.synchformer import Synchformer, SynchformerConfig
from mfm_jax.runtime.config import to_json
from mfm_jax.storage.weights import abstract, named_weights
from tests.models.test_synchformer import GOLDEN
from tests.table_checks import check_table

HEAD = "transformer.off_head.weight"


@pytest.fixture(scope="module")
def manifest(reference):
    return json.loads((reference / "synchformer/manifest.json").read_text())


def test_table_fits_the_released_checkpoint(manifest):
    config = SynchformerConfig.released()
    check_table(table(config), manifest, abstract(lambda rngs: Synchformer(config, rngs=rngs)))


def test_table_fits_the_reduced_sizes(reference):
    """All sizes differ there, so that a missing transpose fails."""
    keys = {}
    for part in ("video", "audio", "head"):
        file = reference / f"synchformer/golden/tiny_{part}_manifest.json"
        keys |= json.loads(file.read_text())
    check_table(table(GOLDEN), keys, abstract(lambda rngs: Synchformer(GOLDEN, rngs=rngs)))


@pytest.mark.parametrize(
    ("lost", "added", "says"),
    [
        (HEAD, "", f"missing: {HEAD}"),
        ("", "afeat_extractor.ast.classifier.weight", r"unknown: afeat_extractor\.ast\.classifier"),
        (HEAD, "transformer.sync_head.weight", r"missing: .*unknown: transformer\.sync_head"),
    ],
    ids=["missing", "unknown", "the synchronizability model"],
)
def test_other_networks_are_refused(manifest, lost, added, says):
    keys = {*manifest, added} - {lost, ""}
    with pytest.raises(ConversionError, match=says):
        table(SynchformerConfig.released()).check_keys(keys)


def saved(tmp_path, state) -> list[str]:
    torch.save(state, tmp_path / "x.pth")
    (tmp_path / CONFIG).write_text(json.dumps({OURS: to_json(GOLDEN)}))
    sizes = ["--config", str(tmp_path / CONFIG)]
    return ["synchformer", str(tmp_path / "x.pth"), "-o", str(tmp_path / "b"), *sizes]


def test_files_are_read_flat_and_nested_and_others_refused(tmp_path, capsys):
    shapes = named_weights(abstract(lambda rngs: Synchformer(GOLDEN, rngs=rngs)))
    rng = np.random.default_rng(0)
    ours = {name: rng.standard_normal(leaf.shape, np.float32) for name, leaf in shapes.items()}
    state = {key: torch.tensor(array) for key, array in table(GOLDEN).to_theirs(ours)}
    nested = {"model": {f"module.{key}": tensor for key, tensor in state.items()}}
    for spelling in (state, nested):
        assert main(saved(tmp_path, spelling)) == 0
        bundle = Bundle.open(tmp_path / "b")
        found = named_weights(bundle.load("synchformer", verify=True))
        assert all(np.array_equal(found[name], array) for name, array in ours.items())
    licence = bundle.entries["synchformer"].source.licence
    assert (licence, commercial_use(licence)) == ("MIT", True)
    capsys.readouterr()
    assert main(saved(tmp_path, {k: v for k, v in state.items() if k != "aproj.bias"})) == 2
    assert "missing: aproj.bias" in capsys.readouterr().err

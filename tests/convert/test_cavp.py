import dataclasses
import json

import numpy as np
import pytest

from convert.cavp import TABLE, VIDEO_TABLE
from mfm_jax.models.cavp import CAVP, CAVPConfig, CAVPVideo
from mfm_jax.models.cnn14 import Cnn14Config
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
    ("table", "build"), [(TABLE, CAVP), (VIDEO_TABLE, CAVPVideo)], ids=["both", "video"]
)
def test_table(reference, manifest, config, table, build):
    keys = json.loads((reference / "cavp" / manifest).read_text())
    check_table(table, keys, abstract(lambda rngs: build(config, rngs=rngs)))


def test_way_back_has_every_key_of_the_release(reference):
    """The step counters of BatchNorm are written too, so that a strict load succeeds."""
    manifest = json.loads((reference / "cavp/golden/tiny_manifest.json").read_text())
    net = abstract(lambda rngs: CAVP(SMALL, rngs=rngs))
    ours = {name: np.zeros(a.shape, a.dtype) for name, a in named_weights(net).items()}
    theirs = dict(TABLE.to_theirs(ours))
    assert {k: [list(a.shape), str(a.dtype)] for k, a in theirs.items()} == manifest

import json

from convert.cnn14 import TABLE
from mfm_jax.models.cnn14 import Cnn14Config, Cnn14Tagger
from mfm_jax.storage.weights import abstract
from tests.table_checks import check_table


def test_table(reference):
    manifest = json.loads((reference / "metrics/manifest.json").read_text())
    net = abstract(lambda rngs: Cnn14Tagger(Cnn14Config.panns(), rngs=rngs))
    check_table(TABLE, manifest, net)

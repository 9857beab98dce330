import json

from convert.vae import TABLE
from mfm_jax.models.vae import VAE, VAEConfig
from mfm_jax.weights import abstract, count
from tests.table_checks import check_table


def test_table_fits_the_released_checkpoint(reference):
    manifest = json.loads((reference / "audioldm2" / "manifest_vae.json").read_text())
    config = VAEConfig.audioldm2(scaling_factor=0.41)
    module = abstract(lambda rngs: VAE(config, rngs=rngs))
    assert count(module) == 55_376_873
    check_table(TABLE, manifest, module)

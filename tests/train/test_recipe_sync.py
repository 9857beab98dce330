"""The adapter that tells a frozen UNet when: what is trained, what is kept, and what uses it."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.bundle import Bundle, BundleError, write_bundle
from mfm_jax.data.sources import ClipFiles
from mfm_jax.errors import SettingError
from mfm_jax.inference.pipeline import Sampling, SoundNetworks, VideoToAudio, latents_from_loa
from mfm_jax.models.audiomae import LOA, pool_loa
from mfm_jax.storage.weights import abstract, named_weights, with_weights
from mfm_jax.train.recipes.mapper import MapperRecipe
from mfm_jax.train.recipes.stage2 import Stage2Recipe
from mfm_jax.train.recipes.sync import SyncRecipe
from tests.bundles import CONFIGS, untrained_bundle, untrained_component
from tests.feature_folder import write_features
from tests.train.running import run_config

BOTH = LOA(grid=(16, 8), pool=(8, 8), fine=(1, 8))
COARSE = BOTH.grids[0]


def with_mapper(path, base: Bundle, loa: LOA) -> Bundle:
    """Return a copy of a bundle whose mapper predicts `loa`."""
    mapper = untrained_component("mapper", replace(CONFIGS["mapper"], loa=loa), 3)
    return write_bundle(path, {"mapper": mapper}, base=base.path)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Bundle:
    return untrained_bundle(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> Bundle:
    """The bundle that a run of the shipped config leaves after three steps."""
    folder = tmp_path_factory.mktemp("sync")
    for part in ("train", "heldout"):
        write_features(base, folder / "features" / part, 4)
    fields = [f"recipe.bundle={base.path}", f"recipe.source.path={folder / 'features'}"]
    steps = ["steps=3", "batch=4", "optimizer.warmup_steps=0", "log_every=1"]
    assert run_config("tiny_sync", folder / "run", [*fields, *steps]) == 0
    return Bundle.open(folder / "run")


@pytest.fixture(scope="module")
def ready(trained, tmp_path_factory) -> VideoToAudio:
    """The networks of sound with the adapter, as `mfm generate` opens them."""
    bundle = with_mapper(tmp_path_factory.mktemp("ready"), trained, BOTH)
    adapter = untrained_component("adapter", trained.config("adapter"), 4)
    write_bundle(bundle.path, {"adapter": adapter})
    return VideoToAudio.open(bundle.path, only=["mapper", "unet", "vae", "vocoder"])


def latents(model: VideoToAudio, networks: SoundNetworks, loa) -> np.ndarray:
    keys = jax.random.split(jax.random.key(0), len(loa))
    sampling = Sampling(model.settings.sampler, steps=2, guidance=2.0)
    found = latents_from_loa(
        networks, loa, keys, None, None, settings=model.settings, sampling=sampling
    )
    return np.asarray(found)


def test_the_adapter_is_trained_and_the_unet_keeps_its_bits(base, trained):
    assert set(trained.entries) == {*base.entries, "adapter"}
    assert trained.entries["unet"].checksum == base.entries["unet"].checksum
    weights = named_weights(trained.load("adapter"))
    moved = [name for name, w in weights.items() if name.startswith("levels") and np.any(w)]
    assert {name.rpartition(".")[2] for name in moved} == {"kernel", "bias"}
    adapter = trained.entries["adapter"]
    assert adapter.config.loa == BOTH
    assert [name for name, _ in adapter.source.trained_with] == ["audiomae", "unet", "vae"]


def test_both_grids_are_those_of_their_own_pools_and_times():
    tokens = np.random.default_rng(0).standard_normal((2, 129, 5)).astype(np.float32)
    found = BOTH.pooled(tokens)
    assert isinstance(found, np.ndarray)
    assert found.shape == (2, BOTH.tokens, 5) == (2, 2 + 16, 5)
    np.testing.assert_array_equal(found[:, :2], pool_loa(tokens, (16, 8), (8, 8)))
    np.testing.assert_array_equal(found[:, 2:], pool_loa(tokens, (16, 8), (1, 8)))
    np.testing.assert_allclose(BOTH.times()[:2], [0.64, 1.92], rtol=1e-6)
    np.testing.assert_allclose(BOTH.times()[2:], 0.08 + 0.16 * np.arange(16), rtol=1e-6)
    with pytest.raises(ValueError, match="3 patches along time"):
        LOA((16, 8), (8, 8), fine=(3, 8))


def test_generation_reads_both_grids(ready):
    """Without the adapter's last layers, the sound is that of the UNet and the first grid."""
    networks = ready.networks.sound_networks
    loa = jax.random.normal(jax.random.key(1), (1, BOTH.tokens, 128))
    made = latents(ready, networks, loa)
    unet, adapter = networks.unet.unet, networks.unet.adapter
    later = latents(ready, networks, loa.at[0, -1].multiply(-1.0))
    assert np.abs(later - made)[0, -4:].max() > 1e-4
    nothing = {n: jnp.zeros_like(w) if n.startswith("levels") else w
               for n, w in named_weights(adapter).items()}  # fmt: skip
    silent = type(networks.unet)(unet, with_weights(adapter, nothing))
    as_before = latents(ready, networks._replace(unet=silent), loa)
    _, coarse, _ = untrained_component("mapper", replace(CONFIGS["mapper"], loa=COARSE), 3)
    plain = latents(ready, networks._replace(unet=unet, mapper=coarse), loa[:, : COARSE.tokens])
    np.testing.assert_array_equal(as_before, plain)


def test_stage_2_reads_through_the_adapter(trained, tmp_path):
    bundle = with_mapper(tmp_path / "b", trained, BOTH)
    module = abstract(Stage2Recipe(bundle=str(bundle.path)).build)
    assert module.adapted().adapter.config == trained.config("adapter")


def test_networks_that_read_other_grids_are_refused(base, trained, tmp_path):
    with pytest.raises(BundleError, match="reads 16 x 8 patches pooled by 8 x 8 and 1 x 8"):
        VideoToAudio.open(trained.path)
    alone = with_mapper(tmp_path / "alone", base, BOTH)
    with pytest.raises(BundleError, match="no adapter that reads it: train one"):
        VideoToAudio.open(alone.path)
    with pytest.raises(BundleError, match="train a mapper with that"):
        MapperRecipe(
            source=ClipFiles(str(trained.path.parent / "features")), bundle=str(trained.path)
        ).check(tmp_path)
    with pytest.raises(SettingError, match="features or attention, not 'words'"):
        _ = SyncRecipe(bundle=str(base.path), kind="words").network

"""A bundle of untrained tiny networks, for tests that only need it to run."""

import atexit
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import jax
import numpy as np
from jax import numpy as jnp

from mfm_jax.bundle import Bundle, Settings, Source, write_bundle
from mfm_jax.bundle.limits import abstract_network
from mfm_jax.diffusion import Schedule
from mfm_jax.mapper import MapperConfig
from mfm_jax.models.audiomae import LOA, AudioMAEConfig
from mfm_jax.models.cavp import CAVPConfig
from mfm_jax.models.gpt2 import GPT2Config
from mfm_jax.models.timechat import TimeChatConfig
from mfm_jax.models.unet import UNetConfig
from mfm_jax.models.vae import VAEConfig
from mfm_jax.models.vocoder import VocoderConfig
from mfm_jax.storage.weights import cast, named_weights, with_weights

TINY = {
    "cavp": CAVPConfig.tiny(),
    "timechat": TimeChatConfig.tiny(),
    "audiomae": AudioMAEConfig.tiny(),
    "mapper": MapperConfig(
        encoders=(("cavp", 32, 64), ("timechat", 16, 96)),
        loa_width=128,
        loa=LOA(grid=(16, 8), pool=(1, 8)),
        gpt2=GPT2Config.tiny(),
        head=True,
    ),
    "unet": UNetConfig.tiny(),
    "vae": VAEConfig.tiny(),
    "vocoder": VocoderConfig.tiny(),
}
"""The networks of the miniature."""
CONFIGS = {
    "cavp": replace(TINY["cavp"], blocks=(1, 1, 1, 1)),
    "timechat": replace(
        TINY["timechat"],
        vit=replace(TINY["timechat"].vit, depth=1),
        image_qformer=replace(TINY["timechat"].image_qformer, depth=1, cross_every=1),
        video_qformer=replace(TINY["timechat"].video_qformer, depth=1, cross_every=1),
    ),
    "audiomae": replace(TINY["audiomae"], depth=1, averaged=1),
    "mapper": replace(TINY["mapper"], gpt2=replace(TINY["mapper"].gpt2, depth=1)),
    "unet": replace(TINY["unet"], channels=(8, 16), attentions=((), (0,)), groups=4),
    "vae": replace(TINY["vae"], channels=(8, 8, 16), groups=4),
    "vocoder": replace(TINY["vocoder"], channels=64),
}
"""Networks with the same inputs and outputs, which are faster to open, to compile and to run."""
SETTINGS = Settings(
    schedule=Schedule(prediction="v"), frames=256, overlap=0.32, steps=3, guidance=2.0
)


def filled(network, seed: int):
    """Fill an abstract network with random weights, much faster than its initialisers do."""
    rng = np.random.default_rng(seed)

    def draw(name, leaf):
        if name.endswith(("scale", "var", "std")):
            return np.ones(leaf.shape)
        fan_in = np.prod(leaf.shape[:-1]) if name.endswith("kernel") else 400
        return rng.standard_normal(leaf.shape) / np.sqrt(fan_in)

    # Unlike `jnp.asarray`, `device_put` compiles no program for each shape.
    weights = {
        n: jax.device_put(draw(n, w).astype(w.dtype)) for n, w in named_weights(network).items()
    }
    return with_weights(network, weights)


@jax.jit
def in_half(network):
    """Return a network of bfloat16, cast by one program and not by one for each shape."""
    return cast(network, jnp.bfloat16)


def untrained_component(name: str, config, seed: int) -> tuple:
    """Return an untrained network as `write_bundle` takes it."""
    network = filled(abstract_network(name, config), seed)
    return config, network, Source("tests/bundles.py", "none")


@cache
def untrained() -> dict:
    """Return config, network and source of every component."""
    return {
        name: untrained_component(name, config, i)
        for i, (name, config) in enumerate(CONFIGS.items())
    }


@cache
def _written(**changes) -> Path:
    """Write the untrained bundle once for all tests of this process."""
    folder = Path(mkdtemp(prefix="untrained-"))
    atexit.register(shutil.rmtree, folder)
    return write_bundle(folder, untrained(), settings=replace(SETTINGS, **changes)).path


def untrained_bundle(path: Path, **changes) -> Bundle:
    """Copy the untrained bundle to `path`, with changes of `SETTINGS`."""
    shutil.copytree(_written(**changes), path, dirs_exist_ok=True)
    return Bundle.open(path)

"""The programs of training and generation with shapes instead of arrays, for any devices.

They are the programs that `train.py` and `mfm_jax.inference.pipeline` run.
"""

import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp
from jax.experimental import topologies
from jax.typing import DTypeLike

from mfm_jax.bundle import COMPONENTS, Bundle
from mfm_jax.bundle.windows import sentence_length, window_spec
from mfm_jax.errors import SettingError
from mfm_jax.inference.encoders import (
    CAVPFrames,
    TimeChatFrames,
    encode_cavp,
    encode_timechat,
)
from mfm_jax.inference.pipeline import Sampling, SoundNetworks, Text, predict_loa, sound_from_loa
from mfm_jax.mapper import Stream
from mfm_jax.mapper.fusion import stream_of
from mfm_jax.runtime.sharding import Layout
from mfm_jax.storage.weights import abstract, cast, named_weights, with_weights
from mfm_jax.train.recipe import TrainConfig, TrainSetup
from mfm_jax.train.step import weight_shardings

MEGACORE = {"v4": {"chip_config_name": "megacore"}}
"""Options by generation with which a chip is one device."""


@dataclass(frozen=True)
class Program:
    """A jitted function and the shapes of its arguments, with their shardings."""

    name: str
    function: Any  # jitted
    arguments: tuple[Any, ...]
    options: dict[str, Any]  # its static arguments

    def traced(self, layout: Layout) -> Any:
        """Trace the function on the mesh."""
        with jax.set_mesh(layout.mesh):
            return self.function.trace(*self.arguments, **self.options)


def tpu_slice(name: str) -> list[jax.Device]:
    """Return the devices of a TPU slice such as "v5e:4x4", which need not exist.

    Raises:
        SettingError: libtpu is not installed, or there is no such slice.
    """
    # Otherwise libtpu queries the machine, and allows only one process at a time.
    quiet = {
        "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16", "TPU_WORKER_HOSTNAMES": "localhost",
    }  # fmt: skip
    for variable, value in quiet.items():
        os.environ.setdefault(variable, value)
    options = MEGACORE.get(name.split(":")[0], {})
    try:
        return list(
            topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
        )
    except Exception as error:  # of many types: JAX passes on the errors of libtpu
        if "not installed" in str(error):
            raise SettingError(
                "compiling for TPUs needs libtpu (but no TPU): pip install 'mfm-jax[tpu]'"
            ) from None
        raise SettingError(
            f"there is no TPU slice {name!r}: give a generation and a shape, such as "
            f"v5e:4x4, v5p:4x4x4 or v6e:16x16 ({str(error).splitlines()[0]})"
        ) from None


def training(config: TrainConfig, layout: Layout) -> Program:
    """Return the training step of `train.py`.

    Raises:
        SettingError: the devices do not divide the batch, or the recipe does not know its shapes.
    """
    setup = TrainSetup.of(config, layout)
    batch = {
        name: jax.ShapeDtypeStruct(
            (config.batch, *spec.shape), spec.dtype, sharding=layout.batch(config.batch)
        )
        for name, spec in config.recipe.element_spec().items()
    }
    return Program("training step", setup.step(), (setup.abstract_state(), batch), {})


def generation(
    bundle: Bundle,
    layout: Layout,
    *,
    batch: int,
    dtype: DTypeLike = jnp.bfloat16,
    sampling: Sampling | None = None,
) -> list[Program]:
    """Return the programs that `VideoToAudio` runs for `batch` windows, in their order.

    Raises:
        BundleError: a network is missing.
        SettingError: the devices do not divide the batch.
    """
    settings, spec = bundle.settings, window_spec(bundle)
    sharding = layout.batch(batch)
    sampling = sampling or Sampling(settings.sampler, settings.steps, settings.guidance)

    def array(dtype: Any, *sizes: int) -> Any:
        return jax.ShapeDtypeStruct((batch, *sizes), dtype, sharding=sharding)

    def network(name: str) -> Any:
        return _abstract_component(bundle, name, layout, dtype)

    mapper = network("mapper")
    frames, size = spec.cavp_frames, spec.cavp_size
    cavp = CAVPFrames(array(jnp.uint8, frames, size, size, 3), array(jnp.float32, frames))
    frames, size = spec.timechat_frames, spec.timechat_size
    words = frames, sentence_length(bundle)
    timechat = TimeChatFrames(
        array(jnp.uint8, frames, size, size, 3), array(jnp.float32, frames),
        array(jnp.int32, *words), array(jnp.bool_, *words),
    )  # fmt: skip
    streams = {
        stream_of(name): Stream(array(dtype, tokens, width), array(jnp.float32, tokens))
        for name, tokens, width in mapper.config.encoders
    }
    unet = network("unet")
    text, states = None, None
    if len(unet.config.contexts) > 1:
        words_of = bundle.config("text")
        text = network("text")
        states = Text(
            array(dtype, words_of.tokens, words_of.width), array(jnp.bool_, words_of.tokens)
        )
    networks = SoundNetworks(mapper, unet, network("vae"), network("vocoder"), text)
    loa = array(jnp.float32, mapper.config.loa.tokens, mapper.config.loa_width)
    keys = array(jax.random.key(0).dtype)
    return [
        Program("CAVP", encode_cavp, (network("cavp"), cavp), {}),
        Program(
            "TimeChat",
            encode_timechat,
            (network("timechat"), timechat),
            {"tensor": mapper.config.timechat},
        ),
        Program("mapper", predict_loa, (mapper, streams), {}),
        Program(
            "AudioLDM2",
            sound_from_loa,
            (networks, loa, keys, states, states),
            {"settings": settings, "sampling": sampling},
        ),
    ]


def _abstract_component(bundle: Bundle, name: str, layout: Layout, dtype: DTypeLike) -> nnx.Module:
    """Return a component with shapes in `dtype` and their shardings instead of weights."""
    module = abstract(partial(COMPONENTS[name].build, bundle.config(name)))
    shapes = jax.eval_shape(partial(cast, dtype=dtype), named_weights(module))
    shardings = weight_shardings(module, layout)
    weights: dict[str, Any] = {
        n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings[n]) for n, x in shapes.items()
    }
    return with_weights(module, weights)

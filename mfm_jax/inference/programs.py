"""The programs of generation with shapes instead of arrays, for any devices.

They are the programs that `mfm_jax.inference.pipeline` runs, known before a weight is read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp
from jax.typing import DTypeLike

from mfm_jax.bundle import Bundle
from mfm_jax.bundle.adapted import adapted_unet
from mfm_jax.encoders import encoder_network, read_in_generation, stack_windows, window_spec
from mfm_jax.inference.pipeline import Sampling, SoundNetworks, Text, predict_loa, sound_from_loa
from mfm_jax.inference.prompts import LENGTH, encode_tokens
from mfm_jax.mapper import MapperConfig, Stream
from mfm_jax.mapper.fusion import stream_of
from mfm_jax.media.windows import blank_window
from mfm_jax.models.adapters import AdaptedUNet, AdapterConfig
from mfm_jax.runtime.sharding import Layout
from mfm_jax.storage.weights import cast, named_axes, named_weights, with_weights


@dataclass(frozen=True)
class Program:
    """A jitted function and the shapes of its arguments, with their shardings."""

    name: str
    function: Any  # jitted
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]  # its static arguments
    stage: str = ""  # of generation: "text", "encoders", "mapper" or "diffusion"

    def traced(self, layout: Layout) -> Any:
        """Trace the function on the mesh."""
        with jax.set_mesh(layout.mesh):
            return self.function.trace(*self.arguments, **self.options)


def generation(
    bundle: Bundle,
    layout: Layout,
    *,
    batch: int,
    dtype: DTypeLike = jnp.bfloat16,
    sampling: Sampling | None = None,
    tokens: int | None = None,
) -> list[Program]:
    """Return the programs that `VideoToAudio` runs for `batch` windows, in their order.

    Args:
        tokens: of the texts, if the UNet reads text; those of the empty text if None.

    Raises:
        BundleError: a network is missing.
        SettingError: the devices do not divide the batch.
    """
    settings, encoders = bundle.settings, read_in_generation(bundle)
    sharding = layout.batch(batch)
    sampling = sampling or Sampling(settings.sampler, settings.steps, settings.guidance)

    def array(dtype: Any, *sizes: int) -> Any:
        return jax.ShapeDtypeStruct((batch, *sizes), dtype, sharding=sharding)

    def network(name: str) -> Any:
        return abstract_network(bundle, name, layout, dtype)

    one = stack_windows(encoders, [blank_window(window_spec(bundle, encoders))])
    frames = jax.tree.map(lambda x: array(x.dtype, *x.shape[1:]), one)
    mapper = network("mapper")
    streams = {}
    unet = adapted_unet(bundle, network)
    adapter = unet.adapter.config if isinstance(unet, AdaptedUNet) else None
    for name, length, width in (*mapper.config.encoders, *(adapter.encoders if adapter else ())):
        stream = stream_of(name)
        kind = jnp.float32 if encoders[stream].formula else dtype
        streams[stream] = Stream(array(kind, length, width), array(jnp.float32, length))
    text, states = None, None
    if len(unet.config.contexts) > 1:
        words_of = bundle.config("text")
        length = words_of.tokens if tokens is None else tokens
        text = network("text")
        states = Text(array(dtype, length, words_of.width), array(jnp.bool_, length))
    networks = SoundNetworks(mapper, unet, network("vae"), network("vocoder"), text)
    loa = array(jnp.float32, mapper.config.loa.tokens, mapper.config.loa_width)
    keys = array(jax.random.key(0).dtype)

    def picked(config: MapperConfig | AdapterConfig) -> dict[str, Stream]:
        return {name: streams[name] for name in config.streams}

    video = () if adapter is None else (None, picked(adapter))
    return [
        *(
            Program(
                encoder.title,
                encoder.encode,
                (encoder_network(encoder, name, network), frames[name]),
                encoder.options,
                "encoders",
            )
            for name, encoder in encoders.items()
        ),
        Program("mapper", predict_loa, (mapper, picked(mapper.config)), {}, "mapper"),
        Program(
            "AudioLDM2",
            sound_from_loa,
            (networks, loa, keys, states, states, *video),
            {"settings": settings, "sampling": sampling},
            "diffusion",
        ),
    ]


def text_encoder(bundle: Bundle, layout: Layout, dtype: DTypeLike = jnp.bfloat16) -> Program:
    """Return the program that encodes a prompt.

    Raises:
        BundleError: the bundle has no T5.
    """

    def array(dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((1, LENGTH), dtype, sharding=layout.replicated)

    t5 = abstract_network(bundle, "t5", layout, dtype)
    return Program("T5", encode_tokens, (t5, array(jnp.int32), array(jnp.bool_)), {}, "text")


def abstract_network(bundle: Bundle, name: str, layout: Layout, dtype: DTypeLike) -> nnx.Module:
    """Return a component with shapes in `dtype` and their shardings instead of weights."""
    module = bundle.abstract(name)
    axes = named_axes(module)
    shapes = jax.eval_shape(partial(cast, dtype=dtype), named_weights(module))
    weights: dict[str, Any] = {
        n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout.weight(axes[n], x.shape))
        for n, x in shapes.items()
    }
    return with_weights(module, weights)

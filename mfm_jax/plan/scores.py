"""The program of DeSync with shapes instead of arrays."""

import jax
from jax import numpy as jnp
from jax.typing import DTypeLike

from mfm_jax.bundle import Bundle
from mfm_jax.inference.desync import desync_logits
from mfm_jax.inference.programs import Program, abstract_network
from mfm_jax.media.segments import segment_count
from mfm_jax.runtime.sharding import Layout


def desync(
    bundle: Bundle, layout: Layout, *, batch: int, dtype: DTypeLike = jnp.bfloat16
) -> Program:
    """Return the program of DeSync for `batch` clips as long as a window of the bundle.

    Raises:
        BundleError: the bundle has no Synchformer.
        SettingError: the devices do not divide the batch.
    """
    network, sharding = abstract_network(bundle, "synchformer", layout, dtype), layout.batch(batch)
    config = bundle.config("synchformer")
    frames = int(config.fps * bundle.settings.seconds + 1e-9)
    segments = segment_count(frames, config.video.frames)
    pixels = (batch, frames, *config.video.image, 3)
    mel = (batch, segments, config.audio.columns, config.audio.bins)
    arguments = (
        network,
        jax.ShapeDtypeStruct(pixels, jnp.uint8, sharding=sharding),
        jax.ShapeDtypeStruct(mel, jnp.float32, sharding=sharding),
    )
    return Program("DeSync", desync_logits, arguments, {})

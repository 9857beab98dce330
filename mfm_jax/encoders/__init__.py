"""Video encoders: the frames of a window become tokens with times, which a mapper fuses.

An encoder is a class in a file of its own, listed here. It says which frames it sees (`View`),
stacks them, and encodes them with a component of the bundle. Everything else (decoding,
extraction, generation, plans of memory, mappers) knows encoders by their names alone.
"""

from mfm_jax.encoders.bundled import (
    ENCODERS,
    bundled_names,
    component_of,
    encode_windows,
    encoder_network,
    open_encoder,
    open_encoders,
    read_in_generation,
    stack_windows,
    window_spec,
)
from mfm_jax.encoders.encoder import Encoder

__all__ = [
    "ENCODERS",
    "Encoder",
    "bundled_names",
    "component_of",
    "encode_windows",
    "encoder_network",
    "open_encoder",
    "open_encoders",
    "read_in_generation",
    "stack_windows",
    "window_spec",
]

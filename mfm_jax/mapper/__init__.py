"""The mapper: fuses the video encoders' tokens and predicts LOA.

It does not know where features come from.
"""

from mfm_jax.mapper.mapper import GPT2Mapper, LinearMapper, Mapper, MapperConfig, build_mapper
from mfm_jax.models.streams import Stream, Streams

__all__ = [
    "GPT2Mapper",
    "LinearMapper",
    "Mapper",
    "MapperConfig",
    "Stream",
    "Streams",
    "build_mapper",
]

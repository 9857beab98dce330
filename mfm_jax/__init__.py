"""MFM-Mapper in JAX: sound for silent video from frozen foundation models and a small mapper.

    import mfm_jax

    mfm_jax.generate("silent.mp4", "sound.mp4")

These names are imported on first use, so that `import mfm_jax` alone is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mfm_jax.bundle import Bundle
    from mfm_jax.inference.generate import generate
    from mfm_jax.inference.pipeline import Sampling, VideoToAudio
    from mfm_jax.runtime.sharding import Layout

__version__ = "0.1.0"

__all__ = ["Bundle", "Layout", "Sampling", "VideoToAudio", "generate"]

_MODULES = {
    "Bundle": "mfm_jax.bundle",
    "Layout": "mfm_jax.runtime.sharding",
    "Sampling": "mfm_jax.inference.pipeline",
    "VideoToAudio": "mfm_jax.inference.pipeline",
    "generate": "mfm_jax.inference.generate",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

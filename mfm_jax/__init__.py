"""MFM-Mapper in JAX: sound for silent video from frozen foundation models and a small mapper."""

__version__ = "0.1.0"

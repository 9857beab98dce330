"""Shape letters and array types used in every public signature.

Tensors carry their shape in the annotation, `Float[Array, "B T D"]`, and the letters mean the same
everywhere:

    B batch        T frames or time    L text/token length   S source (key) length
    N heads        K head width        D model width         F feed-forward width      V vocabulary
    C channels     H, W height, width  M mel bins            A audio samples

The annotations are checked at run time by the test suite. At run time in production jaxtyping is
not needed: without it the names below stand for `jax.Array` and check nothing.
"""

from jax import Array

try:
    from jaxtyping import Bool, Float, Int, Shaped, UInt8
except ImportError:

    class _Unchecked:
        """Stands for a jaxtyping annotation where jaxtyping is not installed."""

        def __class_getitem__(cls, item):
            return item[0]

    Bool = Float = Int = Shaped = UInt8 = _Unchecked  # type: ignore[misc,assignment]

__all__ = ["Array", "Bool", "Float", "Int", "Shaped", "UInt8"]

"""Shape letters and array types used in every public signature.

Tensors carry their shape in the annotation, `Float[Array, "B T D"]`, and the letters mean the same
everywhere:

    B batch        T frames or time    L text/token length   S source (key) length
    N heads        K head width        D model width         F feed-forward width      V vocabulary
    C channels     H, W height, width  M mel bins            A audio samples
    P prefix or prompt length          Q query tokens        E width of a second space, as LOA's
    G patches of a grid

A digit tells another size of the same kind from the first: `H2` rows after a convolution, `C2`
channels.

The test suite checks the annotations at run time. jaxtyping is not needed otherwise: without it the
names below stand for `jax.Array` and check nothing.
"""

from jax import Array

try:
    from jaxtyping import Bool, Float, Int, Shaped, UInt8
except ImportError:

    class _Unchecked:
        """Replaces jaxtyping's annotations where jaxtyping is not installed."""

        def __class_getitem__(cls, item):
            return item[0]

    Bool = Float = Int = Shaped = UInt8 = _Unchecked  # type: ignore[misc,assignment]

__all__ = ["Array", "Bool", "Float", "Int", "Shaped", "UInt8"]

"""Dense maps and tables of vectors, with the logical axes of their weights."""

from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers.initial import drawn, lecun_normal

_normal = drawn(nnx.initializers.normal(0.02))


def linear(
    width_in: int,
    width_out: int,
    axes: tuple[str | None, str | None] = ("embed", "mlp"),
    *,
    bias: bool = True,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """Return a Linear whose `kernel` is `[width_in, width_out]` with logical `axes`.

    There is no dtype argument anywhere in the networks: weights carry the precision. Cast the
    weights and the network computes in that type.
    """
    return nnx.Linear(
        width_in,
        width_out,
        use_bias=bias,
        kernel_init=lecun_normal,
        kernel_metadata={"axes": axes},
        bias_metadata={"axes": axes[1:]},
        rngs=rngs,
    )


def embedding(rows: int, width: int, *, rngs: nnx.Rngs) -> nnx.Embed:
    """Return a lookup table `embedding` of `[rows, width]`, read by integer index."""
    vectors = nnx.Embed(
        rows,
        width,
        embedding_init=_normal,
        embedding_metadata={"axes": ("vocab", "embed")},
        rngs=rngs,
    )
    vectors.dtype = None  # Embed would keep the type it was made in, whatever its weight is cast to
    return vectors


def table(*shape: int, rngs: nnx.Rngs, stddev: float = 0.02) -> nnx.Param:
    """Return learned vectors `[..., width]`: class tokens, queries, absolute positions."""
    values = stddev * rngs.params.normal(shape, jnp.float32)
    return nnx.Param(values, axes=(None,) * (len(shape) - 1) + ("embed",))

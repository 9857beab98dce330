import jax
import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.layers.boundary import finished

X = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4), np.float32))


def error(x, through):
    return (jnp.sin(through(x)) ** 2).sum()


@pytest.mark.parametrize("value", [0.3, np.nan, np.inf], ids=str)
def test_neither_value_nor_gradient_changes(value):
    x = X.at[0, 0].set(value)
    for function in (error, jax.grad(error)):
        np.testing.assert_array_equal(function(x, finished), function(x, lambda y: y))


def test_under_transformations():
    for change in (jax.jit, jax.vmap, jax.checkpoint):
        found = jax.grad(lambda x, change=change: change(lambda y: error(y, finished))(x).sum())(X)
        expected = jax.grad(error)(X, lambda y: y)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("platform", "branches"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_only_a_cpu_gets_a_branch(platform, branches):
    exported = jax.export.export(jax.jit(jax.grad(error), static_argnums=1), platforms=[platform])
    text = exported(X, finished).mlir_module()
    assert ("stablehlo.compare" in text) == branches

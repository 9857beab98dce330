"""What one kind of device computes in another way is the same on all."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mfm_jax.layers import MLP, layer_norm, linear
from mfm_jax.layers.backend import as_rows, gradient_once, prenorm, project
from mfm_jax.layers.mlp import gelu_tanh
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.storage.weights import abstract, initialise, named_weights, with_weights
from mfm_jax.train.step import cast

X = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4), np.float32))
SIZES = GPT2Config(width=64, depth=2, heads=2, positions=48)


def build(rngs):
    return GPT2(SIZES, rngs=rngs)


def hidden_and_gradients():
    """All hidden states of a GPT-2, and its gradients for a random direction of them."""
    network = initialise(build, 0)
    embeds, direction = jax.random.normal(jax.random.key(1), (2, 4, 48, 64))

    def objective(weights):
        hidden = with_weights(abstract(build), weights)(embeds)
        return (hidden * direction).sum(), hidden

    gradients, hidden = jax.jit(jax.grad(objective, has_aux=True))(named_weights(network))
    return {**gradients, "hidden": hidden}


def test_what_gpus_are_given_is_the_same(monkeypatch):
    plain = hidden_and_gradients()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert as_rows(jnp.zeros((2, 3, 4))).shape == (6, 4)
    for_gpus = hidden_and_gradients()
    for name, expected in plain.items():
        np.testing.assert_allclose(for_gpus[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("biased", [False, True])
def test_products_take_up_scale_and_bias_of_a_norm(biased):
    norm = layer_norm(12, epsilon=1e-5, rngs=nnx.Rngs(0))
    product = linear(12, 7, bias=biased, rngs=nnx.Rngs(1))
    keys = jax.random.split(jax.random.key(0), 4)
    weights = norm.scale, norm.bias, *([product.bias] if biased else [])
    for weight, key in zip(weights, keys, strict=False):
        weight[...] = jax.random.normal(key, weight.shape)
    x = 3 + 2 * jax.random.normal(keys[3], (2, 5, 12))
    expected = product(norm(x))
    np.testing.assert_allclose(project(product, norm(x), None), expected, atol=1e-6)
    np.testing.assert_allclose(project(product, norm.standardise(x), norm), expected, atol=1e-5)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_the_mesh_in_use_says_what_is_compiled_for(platform, monkeypatch):
    """Also where its devices are not there, and on a machine with others: as `mfm plan` does."""
    mesh = jax.sharding.AbstractMesh(
        (1,), ("data",), abstract_device=jax.sharding.AbstractDevice("any", 1, platform)
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu" if platform == "gpu" else "gpu")
    norm, x = layer_norm(4, epsilon=1e-5, rngs=nnx.Rngs(0)), jnp.ones((2, 3, 4))
    found = []

    def trace(x):
        found.extend((as_rows(x).shape, prenorm(norm, x)[1]))

    with jax.sharding.use_abstract_mesh(mesh):
        jax.eval_shape(trace, x)  # nothing can be computed on a mesh without devices
    assert tuple(found) == (((6, 4), norm) if platform == "gpu" else ((2, 3, 4), None))


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuBLAS needs an NVIDIA GPU")
def test_cublas_computes_the_gelu_with_the_product():
    keys = jax.random.split(jax.random.key(0), 2)
    x, direction = (jax.random.normal(key, (4, 48, 64)) for key in keys)

    def value(mlp, x):
        y = mlp(x)
        return (y.astype(jnp.float32) * direction).sum(), y

    def gradients(dtype):
        build = partial(MLP, 64, 256, activation=gelu_tanh)
        weights = cast(named_weights(initialise(build, 0)), dtype)
        mlp = with_weights(abstract(build), weights)
        program = jax.jit(nnx.grad(value, argnums=(0, 1), has_aux=True))
        given = mlp, x.astype(jnp.bfloat16).astype(dtype)
        return jax.tree.leaves(program(*given)), program.lower(*given).compile().as_text()

    made, program = gradients("bfloat16")
    assert '"epilogue":"BIAS_GELU_AUX"' in program
    with jax.default_matmul_precision("highest"):
        expected, _ = gradients("float32")
    for one, two in zip(made, expected, strict=True):
        assert jnp.linalg.norm(one.astype(jnp.float32) - two) < 0.02 * jnp.linalg.norm(two)


def error(x, through):
    return (jnp.sin(through(x)) ** 2).sum()


@pytest.mark.parametrize("value", [0.3, np.nan, np.inf], ids=str)
def test_neither_value_nor_gradient_changes(value):
    x = X.at[0, 0].set(value)
    for function in (error, jax.grad(error)):
        np.testing.assert_array_equal(function(x, gradient_once), function(x, lambda y: y))


def test_under_transformations():
    for change in (jax.jit, jax.vmap, jax.checkpoint):
        found = jax.grad(
            lambda x, change=change: change(lambda y: error(y, gradient_once))(x).sum()
        )(X)
        expected = jax.grad(error)(X, lambda y: y)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("platform", "branches"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_only_a_cpu_gets_a_branch(platform, branches):
    exported = jax.export.export(jax.jit(jax.grad(error), static_argnums=1), platforms=[platform])
    text = exported(X, gradient_once).mlir_module()
    assert ("stablehlo.compare" in text) == branches

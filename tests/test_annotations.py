"""What the suite checks at run time: types, and that sizes of one name are equal in one call."""

import jax
import numpy as np
import pytest
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation

from mfm_jax.data.loader import clips_of
from mfm_jax.layers.backend import add
from mfm_jax.typing import Array, Float
from tests.annotations import jaxtyped

checked = jaxtyped(typechecker=beartype)
TWO, THREE = (jax.device_put(np.zeros((n, n), np.float32)) for n in (2, 3))


@checked
def first(x: Float[Array, "N N"], y: Float[Array, "N N"] | None = None) -> Float[Array, " N"]:
    return x[0] if y is None else inner(y)


@checked
def inner(x: Float[Array, "N N"]) -> Float[Array, " N"]:
    return x[0]


@checked
def wide(x: Float[Array, "N N"]) -> Float[Array, " N"]:
    return x.reshape(-1)


@checked
def given(x: Float[Array, "N N"], n: int) -> Float[Array, " {n}"]:
    return x[0]


@checked
def named(names: list[str], x: Float[Array, "..."] | None = None) -> int:
    return len(names)


def test_what_fits_passes():
    assert first(TWO).shape == (2,)
    assert first(TWO, TWO).shape == (2,)
    assert given(THREE, 3).shape == (3,)
    assert named(["a"]) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: first(np.zeros((2, 2), np.float32)),
        lambda: first(TWO[0]),
        lambda: first(TWO[:1]),
        lambda: first(TWO, THREE),
        lambda: first(TWO.astype(int)),
        lambda: wide(TWO),
        lambda: named([1]),
        lambda: named("a"),
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(BeartypeCallHintViolation):
        call()


def test_a_call_within_a_call_has_sizes_of_its_own():
    @checked
    def outer(x: Float[Array, "N N"]) -> Float[Array, "N N"]:
        inner(THREE)
        return x

    assert outer(TWO).shape == (2, 2)


def test_a_size_that_is_an_argument_is_checked():
    with pytest.raises(TypeError, match="return value"):
        given(THREE, 2)


@pytest.mark.parametrize(
    "call", [lambda: add(TWO, THREE), lambda: clips_of(24, batch="8", seed=0, number=0)]
)
def test_the_package_is_checked(call):
    with pytest.raises(BeartypeCallHintViolation):
        call()

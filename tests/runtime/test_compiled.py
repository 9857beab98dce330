"""Programs that are compiled already are called where they fit, and the functions elsewhere."""

from functools import partial
from threading import Event, Timer

import jax
import pytest
from jax import numpy as jnp

from mfm_jax.runtime.compiled import Programs, in_background, program_name


@partial(jax.jit, static_argnames="times")
def scaled(x, *, times: int):
    return x * times


def known(times: int, call) -> Programs:
    name = program_name(scaled, [jax.ShapeDtypeStruct((3,), jnp.float32)], {"times": times})
    return Programs({name: call})


@pytest.mark.parametrize(
    ("x", "times", "expected"),
    [
        (jnp.ones(3), 2, "program"),
        (jnp.ones(3), 3, "function"),
        (jnp.ones(4), 2, "function"),
        (jnp.ones(3, jnp.bfloat16), 2, "function"),
    ],
)
def test_a_program_is_called_for_its_own_shapes_types_and_options(x, times, expected):
    found = known(2, lambda x: "program")(scaled, x, times=times)
    assert isinstance(found, str) == (expected == "program")


def test_a_program_that_refuses_its_arguments_gives_way_to_the_function():
    def refuse(x):
        raise ValueError("compiled for another device")

    assert known(2, refuse)(scaled, jnp.ones(3), times=2).tolist() == [2.0, 2.0, 2.0]


def test_programs_that_are_still_being_read_are_waited_for():
    ready = Event()

    def read() -> Programs:
        assert ready.wait(10)
        return known(2, lambda x: "program")

    # The check of annotations looks into `known`, and waits already when it is made.
    Timer(0.1, ready.set).start()
    programs = in_background(read)
    assert programs(scaled, jnp.ones(3), times=2) == "program"
    assert len(list(programs.known)) == 1

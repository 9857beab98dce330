"""Freed memory is kept from one call to the next: counted in pages that the system hands out."""

import os
import subprocess
import sys

import pytest

CALLS, SIDE = 20, 4096
PAGES = 4 * SIDE * SIDE // os.sysconf("SC_PAGE_SIZE")
CHILD = f"""
import resource, sys
import jax
from jax import numpy as jnp
from mfm_jax.runtime.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()


@jax.jit
def wide_between_narrow(narrow):  # 64 MiB of intermediate values
    return (narrow @ narrow.T) @ narrow


def pages_of_calls():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({CALLS}):
        wide_between_narrow(narrow).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


narrow = jnp.ones(({SIDE}, 8))
pages_of_calls()  # what is kept finds its places
print(pages_of_calls())
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc, so of Linux")


def pages_of_a_call(how: str, **environment: str) -> float:
    """The mean of calls after as many that are not counted."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, how],
        env=own | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(ran.stdout) / CALLS


def test_intermediate_values_take_few_new_pages():
    assert pages_of_a_call("keep") < PAGES / 4
    assert pages_of_a_call("leave") >= PAGES  # or there would be nothing to keep


def test_does_nothing_where_the_user_has_told_the_c_library():
    assert pages_of_a_call("keep", MALLOC_TOP_PAD_="0") >= PAGES


def test_does_nothing_beside_the_plugin_of_an_accelerator(tmp_path):
    (tmp_path / "jax_plugins").mkdir()
    asked = pages_of_a_call("keep", PYTHONPATH=str(tmp_path), JAX_PLATFORMS="")
    assert asked >= PAGES

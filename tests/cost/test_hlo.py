"""Work of compiled programs: on one device against XLA's count, on eight by hand."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax import lax
from jax import numpy as jnp

from mfm_jax.cost.flops import count_flops
from mfm_jax.cost.hlo import HLOError, sent_by, work
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.storage.weights import initialise

pytestmark = pytest.mark.usefixtures("no_program_cache")
ROOT = Path(__file__).parents[2]
X, W = jnp.zeros((8, 64)), jnp.zeros((64, 64))
ONE = 2 * 8 * 64 * 64


def text(function, *arguments) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_a_loop_counts_as_often_as_it_runs():
    def looped(x, w):
        return lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=7)[0]

    assert work(text(looped, X, W)).flops == 7 * ONE


def test_a_loop_that_ends_when_it_likes_is_an_error():
    def until(x, w):
        return lax.while_loop(lambda c: c[0, 0] < 1, lambda c: jnp.sin(c @ w), x)

    with pytest.raises(HLOError, match="no known trip count"):
        work(text(until, X, W))


def test_a_step_of_gpt2_does_what_is_written():
    network = initialise(lambda rngs: GPT2(GPT2Config.tiny(), rngs=rngs), 0)
    embeds = jnp.zeros((4, 32, 128))
    step = jax.grad(lambda n, x: (n(x) ** 2).sum())
    found = work(text(step, network, embeds))
    assert found.flops == pytest.approx(count_flops(step, network, embeds), rel=0.02)
    assert found.collectives == []


def test_memory_is_read_and_written_once():
    """Two arrays in, one out: one fusion."""
    x = jnp.zeros((1024, 1024))
    assert work(text(lambda x, y: jnp.sin(x) * y, x, x)).bytes == 3 * x.nbytes


def test_of_an_array_that_is_looked_up_in_only_the_rows_count():
    table, ids = jnp.zeros((100_000, 64)), jnp.zeros((8,), jnp.int32)
    assert work(text(lambda t, i: t[i] * 2.0, table, ids)).bytes < table.nbytes / 100


def test_exchange_between_eight_devices():
    """The bytes that devices send, as the docstring of `tests.cost.exchanges` derives them."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.cost.exchanges"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    size = 4 * 64 * 64
    assert json.loads(process.stdout.splitlines()[-1]) == {
        "sum": {"all-reduce": 2 * size * 7 // 8},
        "gather": {"all-gather": size * 7 // 8},
        "pair": {"all-reduce": 2 * size // 2},
        "loop": {"all-reduce": 5 * 2 * (4 * 8 * 64) // 2},
    }


TPU = """\
HloModule jit_f, is_scheduled=true, num_partitions=16

%cond (p: (s32[], bf16[8,2048])) -> pred[] {
  %p = (s32[]{:T(128)}, bf16[8,2048]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %end = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[]{:T(512)} compare(%i, %end), direction=LT
}

%body (q: (s32[], bf16[8,2048])) -> (s32[], bf16[8,2048]) {
  %q = (s32[]{:T(128)}, bf16[8,2048]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%q), index=0
  %x = bf16[8,2048]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%q), index=1
  %w = bf16[2048,2048]{1,0:T(8,128)(2,1)} constant({...})
  %c = bf16[8,2048]{1,0:T(8,128)(2,1)S(1)} convolution(%x, %w), dim_labels=bf_io->bf
  %r = bf16[8,2048]{1,0:T(8,128)(2,1)S(1)} all-reduce(%c), channel_id=8, GROUPS, to_apply=%add
  %one = s32[]{:T(128)} constant(1)
  %i.2 = s32[]{:T(128)} add(%i.1, %one)
  ROOT %t = (s32[]{:T(128)}, bf16[8,2048]{1,0:T(8,128)(2,1)S(1)}) tuple(%i.2, %r)
}

ENTRY %main (a: bf16[8,2048]) -> bf16[8,2048] {
  %a = bf16[8,2048]{1,0:T(8,128)(2,1)} parameter(0)
  %s = (bf16[8,2048]{1,0:T(8,128)(2,1)S(1)}, bf16[8,2048]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%a)
  %d = bf16[8,2048]{1,0:T(8,128)(2,1)S(1)} copy-done(%s)
  %z = s32[]{:T(128)} constant(0)
  %u = (s32[]{:T(128)}, bf16[8,2048]{1,0:T(8,128)(2,1)S(1)}) tuple(%z, %d)
  %l = (s32[]{:T(128)}, bf16[8,2048]{1,0:T(8,128)(2,1)S(1)}) while(%u), condition=%cond, body=%body
  ROOT %g = bf16[8,2048]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%l), index=1
}
"""  # noqa: E501
"""A loop as it is written for a TPU, cut down: it does not say how often it runs, products are
convolutions, and what lies in memory on the chip is marked S(1)."""


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7},{8,9},{10,11},{12,13},{14,15}}", (0, 1)),
        ("replica_groups=[4,4]<=[2,4,2]T(2,1,0)", (0, 8, 2, 10)),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=4] {'a','b'}", (0, 4, 8, 12)),
        ("replica_groups=mesh['a'=4,'c'=4], device_ids=([2,4,2]T(1,0,2)) {'c'}", (0, 1, 8, 9)),
        ("replica_groups={}", tuple(range(16))),
    ],
)
def test_a_program_for_a_tpu(groups, devices):
    found = work(TPU.replace("GROUPS", groups))
    assert found.flops == 5 * 2 * 8 * 2048 * 2048
    # The weights from the large memory each time, and the counter; what comes in, once.
    assert found.bytes == 2 * (5 * 2048 * 2048 + 8 * 2048) + 5 * 3 * 4
    (exchange,) = found.collectives
    n = len(devices)
    assert exchange == ("all-reduce", 2 * (2 * 8 * 2048) * (n - 1) // n, devices, 5)


def test_a_kernel_of_our_own_says_what_it_does():
    found = work(
        """HloModule m, num_partitions=1
ENTRY %main (a: bf16[2,8,128]) -> bf16[2,8,128] {
  %a = bf16[2,8,128] parameter(0)
  ROOT %b = bf16[2,8,128] custom-call(%a), custom_call_target="tpu_custom_call", \
backend_config={"custom_call_config":{"body":"x","cost_estimate":{"flops":"743","transcendentals":"2"}}}
}
"""
    )
    assert found.flops == 743
    assert found.bytes == 2 * 2 * 2 * 8 * 128


def test_what_goes_to_other_slices_is_counted_apart():
    """Each of two slices adds up what its chips have; the network adds up the slices."""
    found = work(
        """HloModule m, num_partitions=8
ENTRY %main (a: f32[512]) -> f32[512] {
  %a = f32[512] parameter(0)
  %r = f32[128] reduce-scatter(%a), channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}
  %t = token[] after-all()
  %s = (f32[128], u32[], token[]) send(%r, %t), channel_id=2, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %sd = token[] send-done(%s), channel_id=2
  %v = (f32[128], u32[], token[]) recv(%t), channel_id=1, is_host_transfer=true
  %vd = (f32[128], token[]) recv-done(%v), channel_id=1
  %x = f32[128] get-tuple-element(%vd), index=0
  ROOT %g = f32[512] all-gather(%x), channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}
}
"""
    )
    assert sent_by(found.collectives) == {
        "reduce-scatter": 4 * 512 * 3 // 4,
        "DCN all-reduce": 4 * 128 * 2 // 2,
        "all-gather": 4 * 128 * 3,
    }

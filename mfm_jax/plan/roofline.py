"""How long a program takes at least, by the published figures of the devices it runs on.

A bound and not a forecast: nobody reaches a peak. "How to Scale Your Model", part 1 and 3
(jax-ml.github.io/scaling-book), is the source of the model.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from mfm_jax.cost import hlo
from mfm_jax.cost.chips import HOP, Chip
from mfm_jax.cost.flops import jaxpr_flops
from mfm_jax.plan.programs import Program
from mfm_jax.runtime.sharding import Layout

SPARE = 0.1
"""Share of a device's memory that should stay free: what else runs there has to live, too."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    peak: int  # the most at any moment, with the program itself
    arguments: int  # of it, what the program is given: weights, moments, a batch
    available: float  # by the page of the device

    @property
    def free(self) -> float:
        """The share that stays free at the peak."""
        return 1 - self.peak / self.available


@dataclass(frozen=True)
class Estimate:
    """Of a program on a number of devices; what is of one device says so."""

    name: str
    devices: int
    flops: int  # of all devices, as the program is written
    device_flops: int  # as compiled: with what a mesh makes several devices do alike
    device_bytes: int  # to and from its memory
    memory: Memory
    sent: dict[str, int]  # bytes that a device sends, by the kind of exchange
    compute: float  # seconds of a device, if nothing else took time
    traffic: float
    exchange: float

    @property
    def intensity(self) -> float:
        """Operations for each byte of memory."""
        return self.device_flops / max(1, self.device_bytes)

    @property
    def alike(self) -> float:
        """The share of the arithmetic that several devices do alike, or anew."""
        return max(0.0, 1 - self.flops / max(1, self.devices * self.device_flops))

    @property
    def fastest(self) -> float:
        """Seconds where arithmetic, memory and exchange all run beside each other."""
        return max(self.compute, self.traffic, self.exchange)

    @property
    def slowest(self) -> float:
        """Seconds where the exchange waits for all else."""
        return max(self.compute, self.traffic) + self.exchange

    @property
    def bound(self) -> str:
        """What takes longest."""
        named = {"arithmetic": self.compute, "memory": self.traffic, "exchange": self.exchange}
        return max(named, key=lambda name: named[name])

    def to_json(self) -> dict[str, Any]:
        """As JSON: bytes, operations and seconds."""
        return {
            "program": self.name,
            "devices": self.devices,
            "flops": self.flops,
            "flops_per_device": self.device_flops,
            "flops_alike": round(self.alike, 4),
            "bytes_per_device": self.device_bytes,
            "flops_per_byte": round(self.intensity, 1),
            "peak_bytes": self.memory.peak,
            "argument_bytes": self.memory.arguments,
            "memory_free": round(self.memory.free, 4),
            "sent_bytes": self.sent,
            "seconds": {
                "arithmetic": self.compute,
                "memory": self.traffic,
                "exchange": self.exchange,
                "fastest": self.fastest,
                "slowest": self.slowest,
            },
            "bound_by": self.bound,
        }


class DoesNotFit(ValueError):
    """A program that needs more memory than a device has; the message says what to change."""


def estimate(program: Program, layout: Layout, chip: Chip) -> Estimate:
    """Compile `program` for the devices of `layout` and measure what comes out.

    Raises:
        DoesNotFit: it needs more memory than there is.
        HLOError: the compiled program is not understood.
    """
    traced = program.traced(layout)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(_advice(program, str(error), layout)) from None
    analysis = compiled.memory_analysis()
    found = hlo.work(compiled.as_text())
    devices = list(layout.mesh.devices.flat)
    return Estimate(
        name=program.name,
        devices=len(devices),
        flops=jaxpr_flops(traced.jaxpr.jaxpr),
        device_flops=found.flops,
        device_bytes=found.bytes,
        memory=Memory(
            analysis.peak_memory_in_bytes + analysis.generated_code_size_in_bytes,
            analysis.argument_size_in_bytes,
            chip.memory,
        ),
        sent=hlo.sent_by(found.collectives),
        compute=found.flops / chip.flops,
        traffic=found.bytes / chip.bandwidth,
        exchange=sum((c.times * seconds(c, chip, devices) for c in found.collectives), 0.0),
    )


def seconds(exchange: hlo.Collective, chip: Chip, devices: Sequence[Any]) -> float:
    """Of an exchange between chips of a torus: its bytes over the links it can use, and the way.

    A group that lies along several axes uses the ports of all of them. An axis shorter than a ring
    has an end, whose chip has one neighbour.
    """
    places = np.array([devices[i].coords for i in exchange.group])
    whole = np.ptp(np.array([device.coords for device in devices]), axis=0) + 1
    lengths = np.ptp(places, axis=0) + 1
    if exchange.kind == "collective-permute":
        return exchange.bytes / chip.link + int((lengths - 1).sum()) * HOP
    ports, hops = 0, 0
    for length, most in zip(lengths, whole, strict=True):
        ring = length == most and most % chip.wraps == 0
        if length > 1:
            ports += 2 if ring else 1
            hops += length // 2 if ring else length - 1
    both_ways = 2 if exchange.kind == "all-reduce" else 1
    return exchange.bytes / (max(1, ports) * chip.link) + both_ways * int(hops) * HOP


BYTES = r"([\d.]+[KMGT]?)"


def _advice(program: Program, error: str, layout: Layout) -> str:
    said = re.search(
        rf"{BYTES}\) exceeds available HBM \({BYTES}|Used {BYTES} of {BYTES} hbm", error
    )
    used = said and [size for size in said.groups() if size]
    given = sum(
        np.prod(x.sharding.shard_shape(x.shape), dtype=float) * x.dtype.itemsize
        for x in jax.tree.leaves(program.arguments)
        if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    )
    needs = f"needs {used[0]} of {used[1]} on each device" if used else "needs too much memory"
    shape = dict(layout.mesh.shape)
    return (
        f"{program.name} does not fit: {needs}, {given / 2**30:.1f} GiB of it weights, moments and "
        f"the batch. For less of these raise mesh.fsdp ({shape['fsdp']}) or mesh.tensor "
        f"({shape['tensor']}); for less of the rest raise compute.accumulate, set "
        "compute.remat=blocks, or lower batch"
    )

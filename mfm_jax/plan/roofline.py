"""Bound the time of a program from below, by the published peak figures of its devices.

This is not a forecast, as programs do not reach the peak figures. The model is that of "How to
Scale Your Model", parts 1 and 3 (jax-ml.github.io/scaling-book).
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
from mfm_jax.inference.programs import Program
from mfm_jax.runtime.sharding import Layout

SPARE = 0.1
"""Share of a device's memory that should stay free for other programs."""


@dataclass(frozen=True)
class Memory:
    """Memory of one device in bytes."""

    peak: int  # with the program itself
    arguments: int  # the part for weights, moments and the batch
    available: float  # by the specification of the device

    @property
    def free(self) -> float:
        """The share of memory that stays free at the peak."""
        return 1 - self.peak / self.available


@dataclass(frozen=True)
class Estimate:
    """Work and least time of a program on a number of devices."""

    name: str
    devices: int
    flops: int  # of all devices, as the program is written
    device_flops: int  # of one device as compiled, replicated work included
    device_bytes: int  # to and from the memory of one device
    memory: Memory
    sent: dict[str, int]  # bytes that a device sends, by kind of collective
    compute: float  # seconds of a device, if nothing else took time
    traffic: float
    exchange: float

    @property
    def intensity(self) -> float:
        """Operations for each byte of memory."""
        return self.device_flops / max(1, self.device_bytes)

    @property
    def replicated(self) -> float:
        """The share of the arithmetic that is replicated or recomputed."""
        return max(0.0, 1 - self.flops / max(1, self.devices * self.device_flops))

    @property
    def fastest(self) -> float:
        """Seconds if arithmetic, memory traffic and communication all overlap."""
        return max(self.compute, self.traffic, self.exchange)

    @property
    def slowest(self) -> float:
        """Seconds if communication does not overlap with anything."""
        return max(self.compute, self.traffic) + self.exchange

    @property
    def bound(self) -> str:
        """The resource that takes longest: "arithmetic", "memory" or "exchange"."""
        named = {"arithmetic": self.compute, "memory": self.traffic, "exchange": self.exchange}
        return max(named, key=lambda name: named[name])

    def to_json(self) -> dict[str, Any]:
        """Return the estimate as JSON: bytes, operations and seconds."""
        return {
            "program": self.name,
            "devices": self.devices,
            "flops": self.flops,
            "flops_per_device": self.device_flops,
            "flops_alike": round(self.replicated, 4),
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
    """Compile `program` for the devices of `layout` and estimate its time.

    Raises:
        DoesNotFit: it needs more memory than a device has.
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
    """Return the time of a collective on a torus: its bytes over the links it can use, and latency.

    What goes to other slices takes the network, whose latency no specification has.

    A group that lies along several axes uses the ports of all of them. An axis that is not a ring
    has ends, whose chips have one neighbour.
    """
    if exchange.kind.startswith(hlo.BETWEEN_SLICES):
        return exchange.bytes / chip.network
    coordinates = np.array([devices[i].coords for i in exchange.group])
    extents = np.ptp(np.array([device.coords for device in devices]), axis=0) + 1
    lengths = np.ptp(coordinates, axis=0) + 1
    if exchange.kind == "collective-permute":
        return exchange.bytes / chip.link + int((lengths - 1).sum()) * HOP
    ports, hops = 0, 0
    for length, extent in zip(lengths, extents, strict=True):
        ring = length == extent and extent % chip.wraps == 0
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

"""Published figures of accelerators.

TPUs: the system architecture pages of docs.cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x), as
of November 2026; they give the bandwidth between chips for both directions of all ports, and the
network cards of a host, which its chips share.
GPUs: the data sheets of NVIDIA's A100, H100 and H200 SXM, dense bfloat16.
"""

from dataclasses import dataclass

HOP = 1e-6
"""Approximate seconds that a message takes to the next chip. No specification has it; this is from
"How to Scale Your Model", part 3 (jax-ml.github.io/scaling-book)."""


@dataclass(frozen=True)
class Chip:
    """Peak figures of one device."""

    name: str
    flops: float  # bfloat16 operations a second
    memory: float  # bytes
    bandwidth: float  # bytes a second between memory and chip
    link: float = 0.0  # bytes a second out of one port; a chip has two for each axis of the torus
    wraps: int = 0  # an axis whose length is a multiple of this is a ring
    network: float = 0.0  # bytes a second out of a chip to other slices (DCN)


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 275e12, 32.0 * 2**30, 1228e9, 50e9, wraps=4, network=6.25e9),
        Chip("v5e", 197e12, 16e9, 819e9, 50e9, wraps=16, network=3.125e9),
        Chip("v5p", 459e12, 95.0 * 2**30, 2765e9, 100e9, wraps=4, network=6.25e9),
        Chip("v6e", 918e12, 32e9, 1638e9, 100e9, wraps=16, network=12.5e9),
        # A device is half a chip: the page gives 2307 TFLOPs, 192 GiB and 7380 GB/s a chip.
        Chip("tpu7x", 1153.5e12, 96.0 * 2**30, 3690e9, 100e9, wraps=4, network=6.25e9),
        Chip("a100", 312e12, 80e9, 2039e9),
        Chip("h100", 989.4e12, 80e9, 3350e9),
        Chip("h200", 989.4e12, 141e9, 4800e9),
    )
}

DEVICE_KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
"""Chips by JAX's name for them (`jax.Device.device_kind`)."""


def chip_of(kind: str) -> Chip | None:
    """Return the figures of a device of this `device_kind`, or None if it is not listed."""
    if kind in DEVICE_KINDS:
        return CHIPS[DEVICE_KINDS[kind]]
    return next((CHIPS[n] for n in ("a100", "h100", "h200") if n.upper() in kind), None)


def peak_flops(kind: str) -> float | None:
    """Return the peak bfloat16 operations a second of this `device_kind`, or None if unknown."""
    chip = chip_of(kind)
    return None if chip is None else chip.flops

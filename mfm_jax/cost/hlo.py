"""Count a compiled program's operations, memory traffic and communication on one device.

The text of the program is parsed, as XLA's `cost_analysis` counts the body of a loop only once. The
format (openxla.org/xla/operation_semantics) is not guaranteed, so a shape or a loop that is not
understood is an error.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mfm_jax.cost.arithmetic import Axis, convolution, dot

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute",
)  # fmt: skip
BETWEEN_SLICES = "DCN"
"""How the kinds of collectives between slices begin, such as "DCN all-reduce"."""
FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "while", "conditional", "call", "domain", "async-start",
)  # fmt: skip
"""Operations without memory traffic; the body of a loop or a call is counted separately."""

BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16,
    "s32": 32, "u32": 32, "s64": 64, "u64": 64, "f16": 16, "bf16": 16, "f32": 32, "f64": 64,
    "c64": 64, "c128": 128, "token": 0, "opaque": 0,
}  # fmt: skip


class Shape(NamedTuple):
    """Type and shape of an array in a program."""

    dtype: str
    sizes: tuple[int, ...]
    on_chip: bool  # otherwise in HBM

    @property
    def bytes(self) -> int:
        """Size of the elements, without padding."""
        bits = 8 if self.dtype.startswith("f8") else BITS[self.dtype]
        return math.prod(self.sizes) * bits // 8

    @property
    def hbm_bytes(self) -> int:
        """Bytes in HBM."""
        return 0 if self.on_chip else self.bytes


@dataclass(frozen=True)
class Operation:
    """An operation, which is one line of a program."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of the result: several for a tuple
    operands: tuple[str, ...]
    inside: str  # the text between its parentheses
    about: str  # attributes
    root: bool

    def attribute(self, name: str) -> str | None:
        """Return an attribute up to the next comma or blank, with its braces."""
        found = re.search(rf"\b{name}=(\{{.*?\}}|[^\s,]+)", self.about)
        return None if found is None else found[1].lstrip("%")

    def numbers(self, name: str) -> list[int]:
        """Return an attribute that is a list of numbers."""
        return [int(n) for n in re.findall(r"\d+", self.attribute(name) or "")]


Computation = Mapping[str, Operation]


class Collective(NamedTuple):
    """A collective operation between devices."""

    kind: str
    bytes: int  # that a device sends (for a reduction, in both phases)
    group: tuple[int, ...]  # the group of device 0, as indices of the mesh's devices
    times: int  # executions in a run of the program


@dataclass
class Work:
    """The work of one device in one run of the program."""

    flops: int = 0
    bytes: int = 0  # to and from HBM
    collectives: list[Collective] = field(default_factory=list)

    def add(self, other: "Work", times: int) -> None:
        """Add `other`, multiplied by `times`."""
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        self.collectives += [c._replace(times=c.times * times) for c in other.collectives]


class HLOError(ValueError):
    """A compiled program that this module does not understand."""


def work(text: str) -> Work:
    """Count the work of a compiled program (`jax.stages.Compiled.as_text()`).

    Raises:
        HLOError: a part is not understood.
    """
    return Program(text).work


class Program:
    """A parsed compiled program."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, Computation] = dict(_computations(text))
        partitions = re.search(r"num_partitions=(\d+)", text.split("\n", 1)[0])
        self.devices = int(partitions[1]) if partitions else 1
        entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.M)
        if entry is None:
            raise HLOError("the program has no entry computation")
        self.entry = entry[1]
        self._done: dict[str, Work] = {}
        self._channels: set[tuple[str, str]] = set()

    @cached_property
    def work(self) -> Work:
        """The work of the entire program."""
        return self._work_of(self.entry)

    def _work_of(self, name: str) -> Work:
        if name not in self._done:
            total, computation = Work(), self.computations[name]
            for operation in computation.values():
                total.add(self._operation_work(operation, computation), 1)
            self._done[name] = total
        return self._done[name]

    def _operation_work(self, operation: Operation, computation: Computation) -> Work:
        if operation.opcode == "while":
            total = Work()
            total.add(self._work_of(operation.attribute("body") or ""), self._trip_count(operation))
            return total
        if operation.opcode == "conditional":
            # The branch with the most work.
            return max(map(self._work_of, _called(operation)), key=lambda w: (w.flops, w.bytes))
        kind = operation.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            return Work(collectives=self._collectives(kind, operation, computation))
        if operation.opcode.endswith(("-done", "-update")) or operation.opcode == "recv":
            return Work()
        if operation.opcode == "send":
            return Work(collectives=[_between_slices(operation)])
        total = Work(
            flops=self._products(operation, computation),
            bytes=self._traffic(operation, computation),
        )
        for name in _called(operation):
            inner = self._work_of(name)
            # Traffic inside a fusion never leaves the chip.
            fused = operation.opcode == "fusion"
            total.add(Work(inner.flops, 0 if fused else inner.bytes, inner.collectives), 1)
        return total

    def _trip_count(self, operation: Operation) -> int:
        """Return the trip count of a loop: an attribute, or the constant it counts up to from 0.

        Raises:
            HLOError: it has neither.
        """
        known = re.search(r'known_trip_count":\{"n":"(\d+)"', operation.about)
        if known:
            return int(known[1])
        condition = self.computations[operation.attribute("condition") or ""]
        root = next(o for o in condition.values() if o.root)
        if root.opcode == "fusion":  # the comparison is inside a fusion
            (name,) = _called(root)
            fused = self.computations[name]
            condition = {**condition, **fused}
            root = next(o for o in fused.values() if o.root)
        ends = [o for o in condition.values() if o.opcode == "constant"]
        if root.opcode == "compare" and "direction=LT" in root.about and len(ends) == 1:
            return int(ends[0].inside)
        raise HLOError(f"the loop {operation.name} has no known trip count")

    def _products(self, operation: Operation, computation: Computation) -> int:
        if operation.opcode == "dot":
            left = computation[operation.operands[0]].shapes[0].sizes
            contracted = [left[axis] for axis in operation.numbers("lhs_contracting_dims")]
            return dot(operation.shapes[0].sizes, contracted)
        if operation.opcode == "convolution":
            return _convolution_flops(operation, computation)
        # A kernel of our own says what it does.
        told = re.search(r'"cost_estimate":\{"flops":"(\d+)"', operation.about)
        return int(told[1]) if told else 0

    def _traffic(self, operation: Operation, computation: Computation) -> int:
        if operation.opcode in FREE:
            return 0
        if operation.opcode == "custom-call" and "Bitcast" in operation.about:
            return 0
        read = [computation[name].shapes for name in operation.operands if name in computation]
        if operation.opcode in ("copy-start", "slice-start"):
            # The result is a tuple of destination, source and context.
            there = operation.shapes[0] if operation.opcode == "copy-start" else _last(operation)
            (source, *_), *_ = read
            return min(source.bytes, there.bytes) * ((not source.on_chip) + (not there.on_chip))
        if operation.opcode == "fusion":
            (name,) = _called(operation)
            return _fused_traffic(self.computations[name])
        if operation.opcode in ("dynamic-slice", "gather", "slice"):
            return 2 * operation.shapes[0].bytes * (not read[0][0].on_chip)
        if operation.opcode == "dynamic-update-slice":
            return 2 * read[1][0].bytes * (not operation.shapes[0].on_chip)
        written = sum(shape.hbm_bytes for shape in operation.shapes)
        return written + sum(shape.hbm_bytes for shapes in read for shape in shapes)

    def _collectives(
        self, kind: str, operation: Operation, computation: Computation
    ) -> list[Collective]:
        channel = operation.attribute("channel_id")
        if channel is not None:
            # An asynchronous collective appears once for each operation that it overlaps with.
            if (kind, channel) in self._channels:
                return []
            self._channels.add((kind, channel))
        group = self._group(operation)
        size = sum(s.bytes for o in operation.operands for s in computation[o].shapes)
        n = len(group)
        sent = {
            "all-gather": size * (n - 1),
            "all-reduce": 2 * size * (n - 1) // n,
            "collective-permute": size,
        }.get(kind, size * (n - 1) // n)
        return [Collective(kind, sent, group, 1)] if n > 1 or kind == "collective-permute" else []

    def _group(self, operation: Operation) -> tuple[int, ...]:
        """Return the devices of the group of device 0."""
        about = operation.about
        if "source_target_pairs" in about:
            pairs = re.findall(r"\{(\d+),(\d+)\}", about.split("source_target_pairs=")[1])
            a, b = max(pairs, key=lambda pair: abs(int(pair[0]) - int(pair[1])))
            return (int(a), int(b))
        if found := re.search(
            rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({IOTA}\))? \{{([^}}]*)\}}", about
        ):
            sizes = {n: int(s) for n, s in re.findall(r"'(\w+)'=(\d+)", found[1])}
            wanted = re.findall(r"'(\w+)'", found[4])
            ids = _iota(found[2] or str(math.prod(sizes.values())), found[3])
            cut = tuple(slice(None) if name in wanted else 0 for name in sizes)
            return tuple(ids.reshape(list(sizes.values()))[cut].ravel().tolist())
        if found := re.search(rf"replica_groups=\[(\d+),(\d+)\]<={IOTA}", about):
            ids = _iota(found[3], found[4]).reshape(int(found[1]), int(found[2]))
            return tuple(ids[0].tolist())
        if found := re.search(r"replica_groups=\{\{([\d,]+)\}", about):
            return tuple(_integers(found[1]))
        if "replica_groups={}" in about:
            return tuple(range(self.devices))
        raise HLOError(f"the groups of devices of {operation.name} are not understood")


def _between_slices(operation: Operation) -> Collective:
    """Return what a chip sends to chips of other slices, through its host and the network (DCN).

    XLA writes the part of a collective that lies between slices as a transfer to its "megascale"
    runtime, which gets what the chip contributes.

    Raises:
        HLOError: the transfer is another one.
    """
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', operation.about)
    slices = re.search(r'_xla_megascale_target="\{([\d,]+)\}', operation.about)
    if kind is None or slices is None:
        raise HLOError(f"where {operation.name} sends to is not understood")
    size, n = operation.shapes[0].bytes, len(_integers(slices[1]))
    sent = {"ALL_REDUCE": 2 * size * (n - 1) // n, "ALL_GATHER": size * (n - 1)}
    name = f"{BETWEEN_SLICES} {kind[1].lower().replace('_', '-')}"
    return Collective(name, sent.get(kind[1], size * (n - 1) // n), tuple(range(n)), 1)


def _called(operation: Operation) -> list[str]:
    """Return the computations that an operation calls, except those applied to scalars."""
    if operation.opcode in ("fusion", "call", "async-start"):
        name = operation.attribute("calls") or operation.attribute("to_apply")
        return [] if name is None else [name]
    if operation.opcode == "conditional":
        names = ("branch_computations", "true_computation", "false_computation")
        given = " ".join(operation.attribute(name) or "" for name in names)
        return re.findall(r"[\w.\-]+", given)
    return []


def _fused_traffic(inside: Computation) -> int:
    """Return the bytes that a fusion reads and writes; of an array that it slices, the slices."""
    total = 0
    for parameter in (o for o in inside.values() if o.opcode == "parameter"):
        readers = [o for o in inside.values() if parameter.name in o.operands]
        for shape in parameter.shapes:
            if readers and all(_slices(o, parameter.name) for o in readers):
                pieces = (o.shapes[0].bytes for o in readers if "update" not in o.opcode)
                total += sum(pieces) * (not shape.on_chip)
            else:
                total += shape.hbm_bytes
    for root in _roots(inside):
        if root.opcode == "dynamic-update-slice":
            piece = inside[root.operands[1]].shapes[0]
            total += piece.bytes * (not root.shapes[0].on_chip)
        else:
            total += sum(shape.hbm_bytes for shape in root.shapes)
    return total


def _roots(inside: Computation) -> list[Operation]:
    root = next(o for o in inside.values() if o.root)
    return [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]


def _slices(operation: Operation, name: str) -> bool:
    """Return whether an operation only slices its operand `name`, or updates a slice in place."""
    if operation.opcode in ("dynamic-slice", "gather", "slice", "dynamic-update-slice"):
        return operation.operands[0] == name and name not in operation.operands[1:]
    return False


def _last(operation: Operation) -> Shape:
    """Return the array that a `slice-start` writes: the last of its tuple that is not a scalar."""
    return [shape for shape in operation.shapes if shape.sizes][-1]


def _convolution_flops(operation: Operation, computation: Computation) -> int:
    left, kernel = (computation[name].shapes[0].sizes for name in operation.operands[:2])
    output = operation.shapes[0].sizes
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", operation.about)
    if labels is None:
        raise HLOError(f"the axes of {operation.name} have no labels")
    of_left, of_kernel, of_output = labels[1], labels[2], labels[3]
    window = _window(operation.about)
    space = []
    for i in range(len(left) - 2):
        given = {key: values[i] for key, values in window.items()}
        space.append(
            Axis(
                left[of_left.index(str(i))],
                output[of_output.index(str(i))],
                kernel[of_kernel.index(str(i))],
                int(given.get("stride", 1)),
                int(str(given.get("pad", "0_0")).split("_")[0]),
                int(given.get("lhs_dilate", 1)),
                int(given.get("rhs_dilate", 1)),
            )
        )
    batch, channels = output[of_output.index("b")], output[of_output.index("f")]
    return convolution(batch, channels, kernel[of_kernel.index("i")], space)


def _window(about: str) -> dict[str, list[str]]:
    found = re.search(r"window=\{([^}]*)\}", about)
    if found is None:
        return {}
    return {key: value.split("x") for key, value in (part.split("=") for part in found[1].split())}


IOTA = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
"""Pattern of an iota: consecutive numbers in an array of these sizes, transposed by this order."""


def _iota(sizes: str, order: str | None) -> np.ndarray:
    ids = np.arange(math.prod(_integers(sizes))).reshape(_integers(sizes))
    return ids.transpose(_integers(order)) if order else ids


def _integers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _computations(text: str) -> Iterator[tuple[str, Computation]]:
    name = ""
    lines: list[str] = []
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$", line)
        if head and not line.startswith(" "):
            name, lines = head[1], []
        elif line.startswith("}") and name:
            yield name, {operation.name: operation for operation in map(_operation, lines)}
            name = ""
        elif name and " = " in line:
            lines.append(line)


def _operation(line: str) -> Operation:
    left, right = line.strip().split(" = ", 1)
    kind, rest = _split_type(right)
    opcode, rest = rest.split("(", 1)
    inside, about = _balanced(rest)
    return Operation(
        name=left.removeprefix("ROOT ").lstrip("%"),
        opcode=opcode,
        shapes=tuple(_shapes(kind)),
        operands=tuple(re.findall(r"%([\w.\-]+)", inside)),
        inside=inside,
        about=about,
        root=left.startswith("ROOT "),
    )


def _split_type(text: str) -> tuple[str, str]:
    """Split a type from the text behind it."""
    if text.startswith("("):
        inside, rest = _balanced(text[1:])
        return inside, rest.lstrip()
    kind, rest = text.split(" ", 1)
    return kind, rest


def _balanced(text: str) -> tuple[str, str]:
    """Split the text before the closing parenthesis from the text behind it."""
    depth = 1
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return text[: match.start()], text[match.end() :]
    raise HLOError(f"a parenthesis is not closed in {text[:80]!r}")


def _shapes(kind: str) -> Iterator[Shape]:
    for dtype, sizes, layout in re.findall(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](\{[^}]*\})?", kind):
        memory = re.search(r"S\((\d+)\)", layout)
        bounds = tuple(int(n.strip("<=")) for n in sizes.split(",") if n)
        yield Shape(dtype, bounds, memory is not None and memory[1] != "0")


def sent_by(collectives: Sequence[Collective]) -> dict[str, int]:
    """Return the bytes that a device sends, by kind of collective."""
    total: dict[str, int] = {}
    for collective in collectives:
        total[collective.kind] = total.get(collective.kind, 0) + collective.bytes * collective.times
    return total

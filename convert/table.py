"""Map the names and layouts of released weights to ours, and back: one table per network.

A row has their name, our name and, where the layouts differ, how the axes move. Names use `*` for
an index that both sides share. The move is one einops pattern, which inverts by swapping its sides,
and a row inverts by swapping its columns, so the way back needs no second mapping.
"""

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from einops import rearrange

from convert.tensors import line
from mfm_jax.errors import UserError

Names = str | tuple[str, ...]
Sizes = Mapping[str, int]
Shape = tuple[int, ...]
Arrays = Mapping[str, np.ndarray]


class ConversionError(UserError):
    """A checkpoint that does not fit its table; the message lists the weights concerned."""

    def __init__(self, message: str) -> None:
        super().__init__(line(message))


@dataclass(frozen=True)
class Row:
    """`theirs` becomes `ours`, rearranged by `move` (einops, read from theirs to ours).

    With a tuple of names on one side, the move's first axis there is split into, or stacked from,
    those weights: `Row("attn.qkv.weight", ("attn.q.kernel", "attn.k.kernel",
    "attn.v.kernel"), "(s o) i -> s i o")`.
    """

    theirs: Names
    ours: Names
    move: str | None = None

    def read(self, theirs: list[np.ndarray], sizes: Sizes) -> list[np.ndarray]:
        """Convert theirs to ours."""
        return _moved(theirs, self.move, len(_several(self.ours)), sizes)

    def write(self, ours: list[np.ndarray], sizes: Sizes) -> list[np.ndarray]:
        """Convert ours to theirs."""
        return _moved(ours, _flipped(self.move), len(_several(self.theirs)), sizes)


@dataclass(frozen=True)
class Rows:
    """Vectors of theirs are the first rows of one table of ours, whose other rows are not used."""

    theirs: tuple[str, ...]
    ours: str
    rows: int

    def read(self, theirs: list[np.ndarray], sizes: Sizes) -> list[np.ndarray]:
        """Convert theirs to ours; rows without a vector are zeros."""
        table = np.zeros((self.rows, *theirs[0].shape), theirs[0].dtype)
        table[: len(theirs)] = theirs
        return [table]

    def write(self, ours: list[np.ndarray], sizes: Sizes) -> list[np.ndarray]:
        """Convert ours to theirs."""
        return list(ours[0][: len(self.theirs)])


@dataclass(frozen=True)
class Tied:
    """`copy` on their side repeats `source`: optional, checked to be equal, and not read."""

    copy: str
    source: str


@dataclass(frozen=True)
class Computed:
    """A constant tensor of theirs that we do not have, one for each weight of ours called `beside`.

    It is optional there; the way back fills it with `value`.
    """

    theirs: str
    beside: str
    value: float
    shape: Shape
    dtype: str


@dataclass(frozen=True)
class Ignore:
    """Keys of theirs (a pattern, `*` for anything) that are not read, and the reason.

    The tensors are kept for the way back, unless they belong to another network (`foreign`). Where
    our network has the `value` built in, a tensor with another is one of another network.
    """

    pattern: str
    reason: str
    foreign: bool = False
    # Returns the values that a tensor must have, from its key and shape.
    value: Callable[[str, Shape], np.ndarray] | None = None


Rule = Row | Rows


class Unit(NamedTuple):
    """A rule with its indices filled in: their tensors and our weights."""

    rule: Rule
    theirs: tuple[str, ...]
    ours: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """The rows of one network. `sizes` binds axis letters; a letter has one meaning per table."""

    rows: tuple[Rule | Tied | Computed, ...]
    ignore: tuple[Ignore, ...] = ()
    sizes: Sizes = field(default_factory=dict)

    @property
    def rules(self) -> list[Rule]:
        """The rows that convert weights."""
        return [row for row in self.rows if isinstance(row, Rule)]

    @property
    def tied(self) -> list[Tied]:
        """The rows for tensors that repeat others."""
        return [row for row in self.rows if isinstance(row, Tied)]

    def to_ours(self, theirs: Arrays) -> Iterator[tuple[str, np.ndarray]]:
        """Yield our `(name, array)` one row at a time, reading `theirs` lazily.

        Raises:
            ConversionError: a key is read by no row or by two, or is missing; or a tied copy
                differs.
        """
        self.check_keys(theirs.keys())
        for unit in self.units(theirs, "theirs"):
            arrays = unit.rule.read([theirs[name] for name in unit.theirs], self.sizes)
            yield from zip(unit.ours, arrays, strict=True)
        for row in self.tied:
            copy = theirs.get(row.copy)
            if copy is not None and not np.array_equal(copy, theirs[row.source]):
                raise ConversionError(f"{row.copy} should repeat {row.source} and does not")

    def to_theirs(
        self,
        ours: Arrays,
        *,
        order: Callable[[str], int] | None = None,
        wanted: Callable[[str], bool] = lambda key: True,
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield their `(name, array)` one row at a time, tied copies and computed tensors included.

        Args:
            order: sort key of our weights, if `ours` is read in pieces; a row comes when the last
                of its weights does.
            wanted: selects names of theirs to yield; no weight is read for others.

        Raises:
            ConversionError: a weight of ours is written by no row, or is missing.
        """
        units = list(self.units(ours, "ours"))
        written = {name for unit in units for name in unit.ours}
        wrong = sorted(written.symmetric_difference(ours))
        if wrong:
            raise ConversionError(f"the table and the network differ in {', '.join(wrong)}")
        if order is not None:
            units.sort(key=lambda unit: max(map(order, unit.ours)))
        copies = {row.source: row.copy for row in self.tied}
        for unit in units:
            names = [(key, copies.get(key, key)) for key in unit.theirs]
            if not any(wanted(key) for pair in names for key in pair):
                continue
            arrays = unit.rule.write([ours[name] for name in unit.ours], self.sizes)
            for pair, array in zip(names, arrays, strict=True):
                yield from ((key, array) for key in dict.fromkeys(pair) if wanted(key))
        yield from ((key, array) for key, array in self.computed(ours) if wanted(key))

    def computed(self, ours: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the constant tensors of theirs that belong to a network with the weights `ours`."""
        ours = tuple(ours)
        for row in self.rows:
            if isinstance(row, Computed):
                for indices in _indices((row.beside,), ours):
                    yield (
                        _fill(row.theirs, indices),
                        np.full(row.shape, row.value, np.dtype(row.dtype)),
                    )

    def knows(self, key: str) -> bool:
        """Return whether the table says something of the tensor `key` of theirs."""
        return self._names.fullmatch(key) is not None or self.ignored(key)

    @cached_property
    def _names(self) -> re.Pattern[str]:
        names = [name for row in self.rules for name in _several(row.theirs)]
        names += [row.theirs for row in self.rows if isinstance(row, Computed)]
        names += [row.copy for row in self.tied]
        return re.compile("|".join(_matcher(name).pattern for name in names))

    def value(self, key: str, shape: Shape) -> np.ndarray | None:
        """Return the values that a tensor which is not read must have, if that is known."""
        for row in self.ignore:
            if row.value is not None and fnmatch.fnmatchcase(key, row.pattern):
                return row.value(key, shape)
        return None

    def ignored(self, key: str) -> bool:
        """Return whether the table has `key` as one that is not read."""
        return any(fnmatch.fnmatchcase(key, row.pattern) for row in self.ignore)

    def kept(self, key: str) -> bool:
        """Return whether a tensor that is not read still belongs to the network."""
        matching = [row for row in self.ignore if fnmatch.fnmatchcase(key, row.pattern)]
        return bool(matching) and not any(row.foreign for row in matching)

    def optional(self, ours: Iterable[str]) -> set[str]:
        """Return the keys of theirs that a complete checkpoint may lack."""
        return {row.copy for row in self.tied} | {key for key, _ in self.computed(ours)}

    def shapes(self, ours: Mapping[str, Shape]) -> dict[str, Shape]:
        """Return key and shape of every tensor of theirs, given the shapes of our weights."""
        # Nothing is allocated: all elements of an array share one address.
        nothing = {name: np.broadcast_to(np.int8(0), shape) for name, shape in ours.items()}
        return {key: array.shape for key, array in self.to_theirs(nothing)}

    def check_keys(self, keys: Iterable[str]) -> None:
        """Check that every key is read once or ignored, and every row without a star has its key.

        Raises:
            ConversionError: lists the unknown, doubly read and missing keys.
        """
        keys = set(keys)
        units = list(self.units(keys, "theirs"))
        found = {id(unit.rule) for unit in units}
        readers = Counter(name for unit in units for name in unit.theirs)
        readers.update(row.copy for row in self.tied)
        lacking = [rule for rule in self.rules if id(rule) not in found]
        absent = {name for rule in lacking for name in _several(rule.theirs) if "*" not in name}
        optional = {row.copy for row in self.tied}
        computed = [_matcher(row.theirs) for row in self.rows if isinstance(row, Computed)]
        readers.update(k for k in keys for pattern in computed if pattern.fullmatch(k))
        raise_if_any(
            "the checkpoint does not fit",
            {
                "missing": (readers.keys() - keys - optional) | absent,
                "unknown": {k for k in keys - readers.keys() if not self.ignored(k)},
                "claimed by two rows": {k for k in keys if readers[k] > 1},
            },
        )

    def units(self, names: Iterable[str], side: str) -> Iterator[Unit]:
        """Yield every rule for every set of indices with which it matches any of `names`."""
        names = tuple(name for name in names if side == "ours" or not self.ignored(name))
        for rule in self.rules:
            for indices in _indices(_several(getattr(rule, side)), names):
                theirs, ours = (
                    tuple(_fill(n, indices) for n in _several(column))
                    for column in (rule.theirs, rule.ours)
                )
                yield Unit(rule, theirs, ours)


def raise_if_any(what: str, keys: Mapping[str, Iterable[str]]) -> None:
    """Raise one error that lists keys by what is wrong with them, if there are any.

    Raises:
        ConversionError: any of the lists has a key.
    """
    listed = {label: sorted(names) for label, names in keys.items()}
    parts = [f"{label}: {', '.join(_shortened(n))}" for label, n in listed.items() if n]
    if parts:
        raise ConversionError(f"{what}: " + "; ".join(parts))


def _shortened(names: list[str], most: int = 16) -> list[str]:
    """Return the names; many are summarised as patterns with their number of names."""
    if len(names) <= most:
        return names
    patterns = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)
    said = [f"{p} ({n})" if n > 1 else p for p, n in patterns.items()]
    return said if len(said) <= 2 * most else [*said[:most], f"and {len(said) - most} more"]


def _moved(arrays: list[np.ndarray], move: str | None, into: int, sizes: Sizes) -> list[np.ndarray]:
    """Stack several arrays, rearrange, and unstack into `into` arrays."""
    array = np.stack(arrays) if len(arrays) > 1 else arrays[0]
    if move is not None:
        left, right = (side.split() for side in move.replace("(", " ( ").split("->"))
        bound = {k: v for k, v in sizes.items() if re.search(rf"\b{k}\b", move)}
        if into > 1:
            bound[right[0]] = into
        if len(arrays) > 1:
            bound[left[0]] = len(arrays)
        array = rearrange(array, move, **bound)
    return list(array) if into > 1 else [array]


def _flipped(move: str | None) -> str | None:
    return None if move is None else " -> ".join(reversed([s.strip() for s in move.split("->")]))


def _several(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _matcher(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", r"(\d+)"))


def _fill(pattern: str, indices: Sequence[str]) -> str:
    parts = pattern.split("*")
    if len(parts) - 1 != len(indices):
        raise ConversionError(f"{pattern!r} has {len(parts) - 1} stars, its partner {len(indices)}")
    return parts[0] + "".join(i + p for i, p in zip(indices, parts[1:], strict=True))


@lru_cache(maxsize=1024)
def _indices(names: tuple[str, ...], keys: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Return the index tuples with which any of `names` is in `keys`, in numeric order.

    A table goes through the same keys several times: to check them, and to read them.
    """
    matchers = [_matcher(n) for n in names]
    found = {m.groups() for r in matchers for m in map(r.fullmatch, keys) if m}
    return tuple(sorted(found, key=lambda groups: tuple(map(int, groups))))

"""One table per network says how its released weights are named and laid out, in both directions.

A row says: their name, our name and, where the layout differs, how the axes move. Names use `*`
for an index that carries across. The move is one einops pattern, which inverts by swapping its
sides, and a row inverts by swapping its columns, so there is no second mapping for the way back.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from einops import rearrange

Names = str | tuple[str, ...]
Weights = Mapping[str, np.ndarray]


class ConversionError(ValueError):
    """A checkpoint that does not fit its table; the message lists the weights concerned."""


@dataclass(frozen=True)
class Row:
    """`theirs` becomes `ours`, rearranged by `move` (einops, read from theirs to ours).

    A tuple of names on one side means that the move's first axis there is split into, or stacked
    from, those weights: `Row("attn.qkv.weight", ("attn.q.kernel", "attn.k.kernel",
    "attn.v.kernel"), "(s o) i -> s i o")`.
    """

    theirs: Names
    ours: Names
    move: str | None = None


@dataclass(frozen=True)
class Tied:
    """`copy` on their side repeats `source`: not read, checked to be equal, written again."""

    copy: str
    source: str


@dataclass(frozen=True)
class WeightNorm:
    """`gain` and `direction` on their side make one weight `gain * direction / |direction|`.

    The norm runs over all axes but the first. The way back writes the norm as gain and the weight
    as direction: the effective weight is the same, the sign of the gain is not recoverable.
    """

    gain: str
    direction: str
    ours: str
    move: str | None = None


@dataclass(frozen=True)
class Computed:
    """A weight of theirs that we compute instead; `value` writes it back, given its shape."""

    theirs: str
    value: float


@dataclass(frozen=True)
class Ignore:
    """Keys of theirs (a pattern with `*` for anything) that are not read, and why."""

    pattern: str
    reason: str


def _one(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _matcher(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", r"(\d+)"))


def _fill(pattern: str, indices: Sequence[str]) -> str:
    parts = pattern.split("*")
    if len(parts) - 1 != len(indices):
        raise ConversionError(f"{pattern!r} has {len(parts) - 1} stars, its partner {len(indices)}")
    return parts[0] + "".join(i + p for i, p in zip(indices, parts[1:], strict=True))


def _flip(move: str | None) -> str | None:
    return None if move is None else " -> ".join(reversed([s.strip() for s in move.split("->")]))


@dataclass(frozen=True)
class Table:
    """The rows of one network. `sizes` binds axis letters of the moves, one meaning per table."""

    rows: tuple[Row | Tied | WeightNorm | Computed, ...]
    ignore: tuple[Ignore, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)

    def _move(self, arrays: list[np.ndarray], move: str | None, into: int) -> list[np.ndarray]:
        """Stack (if several), rearrange, unstack (if `into` is several)."""
        array = np.stack(arrays) if len(arrays) > 1 else arrays[0]
        if move is not None:
            left, right = (side.split() for side in move.replace("(", " ( ").split("->"))
            sizes = {k: v for k, v in self.sizes.items() if re.search(rf"\b{k}\b", move)}
            if into > 1:
                sizes[right[0]] = into
            if len(arrays) > 1:
                sizes[left[0]] = len(arrays)
            array = rearrange(array, move, **sizes)
        return list(array) if into > 1 else [array]

    def to_ours(self, theirs: Weights) -> Iterator[tuple[str, np.ndarray]]:
        """Yield our `(name, array)` one row at a time, reading `theirs` lazily.

        Raises:
            ConversionError: keys that no row reads, that two rows read, or that a row lacks.
        """
        self.check_keys(theirs.keys())
        for row in self.rows:
            if isinstance(row, Row):
                for indices in _indices(_one(row.theirs), theirs):
                    arrays = [theirs[_fill(n, indices)] for n in _one(row.theirs)]
                    names = [_fill(n, indices) for n in _one(row.ours)]
                    yield from zip(names, self._move(arrays, row.move, len(names)), strict=True)
            elif isinstance(row, WeightNorm):
                for indices in _indices((row.gain, row.direction), theirs):
                    g, v = (theirs[_fill(n, indices)] for n in (row.gain, row.direction))
                    norm = np.sqrt(np.sum(v**2, axis=tuple(range(1, v.ndim)), keepdims=True))
                    (weight,) = self._move([g * v / norm], row.move, 1)
                    yield _fill(row.ours, indices), weight
            elif isinstance(row, Tied):
                copy, source = theirs.get(row.copy), theirs[row.source]
                if copy is not None and not np.array_equal(copy, source):
                    raise ConversionError(f"{row.copy} should repeat {row.source} and does not")

    def to_theirs(
        self, ours: Weights, manifest: Mapping[str, Sequence] | None = None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield their `(name, array)`; `manifest` gives the shapes of `Computed` weights.

        Raises:
            ConversionError: weights of ours that no row writes.
        """
        written: set[str] = set()
        for row in self.rows:
            if isinstance(row, Row):
                for indices in _indices(_one(row.ours), ours):
                    names = [_fill(n, indices) for n in _one(row.ours)]
                    written.update(names)
                    moved = self._move(
                        [ours[n] for n in names], _flip(row.move), len(_one(row.theirs))
                    )
                    yield from zip(
                        [_fill(n, indices) for n in _one(row.theirs)], moved, strict=True
                    )
            elif isinstance(row, WeightNorm):
                for indices in _indices((row.ours,), ours):
                    written.add(_fill(row.ours, indices))
                    (v,) = self._move([ours[_fill(row.ours, indices)]], _flip(row.move), 1)
                    norm = np.sqrt(np.sum(v**2, axis=tuple(range(1, v.ndim)), keepdims=True))
                    yield _fill(row.gain, indices), norm
                    yield _fill(row.direction, indices), v
            elif isinstance(row, Computed):
                for key, (shape, dtype) in (manifest or {}).items():
                    if _matcher(row.theirs).fullmatch(key):
                        yield key, np.full(shape, row.value, dtype)
        for row in self.rows:
            if isinstance(row, Tied):
                yield from ((row.copy, a) for n, a in self.to_theirs_of(row.source, ours))
        lost = sorted(set(ours) - written)
        if lost:
            raise ConversionError(f"no row writes {', '.join(lost)}")

    def to_theirs_of(self, key: str, ours: Weights) -> Iterator[tuple[str, np.ndarray]]:
        """Their weight `key` alone, for its tied copies."""
        rows = tuple(r for r in self.rows if isinstance(r, Row) and r.theirs == key)
        needed = {n: ours[n] for r in rows for n in _one(r.ours)}
        yield from Table(rows, sizes=self.sizes).to_theirs(needed)

    def check_keys(self, keys: Iterable[str]) -> None:
        """Every key is read once or ignored, and every row that has no star finds its key.

        Raises:
            ConversionError: lists the unknown, doubly read and missing keys.
        """
        keys = set(keys)
        readers: dict[str, int] = dict.fromkeys(keys, 0)
        missing: set[str] = set()
        for row in self.rows:
            if isinstance(row, Tied):
                readers.update({row.copy: readers[row.copy] + 1} if row.copy in readers else {})
                continue
            names = {Row: lambda r: _one(r.theirs), Computed: lambda r: (r.theirs,)}.get(
                type(row), lambda r: (r.gain, r.direction)
            )(row)
            found = [_fill(n, i) for i in _indices(names, keys) for n in names]
            if not found and not isinstance(row, Computed):
                missing.update(names)
            for key in found:
                if key in keys:
                    readers[key] += 1
                elif not isinstance(row, Computed):
                    missing.add(key)
        unknown = sorted(
            k
            for k, n in readers.items()
            if n == 0 and not any(_glob(i.pattern, k) for i in self.ignore)
        )
        twice = sorted(k for k, n in readers.items() if n > 1)
        parts = [
            f"{label}: {', '.join(names)}"
            for label, names in (
                ("missing", sorted(missing)),
                ("unknown", unknown),
                ("claimed by two rows", twice),
            )
            if names
        ]
        if parts:
            raise ConversionError("the checkpoint does not fit: " + "; ".join(parts))


def _glob(pattern: str, key: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), key) is not None


def _indices(names: tuple[str, ...], keys: Iterable[str]) -> list[tuple[str, ...]]:
    """The index tuples for which any of `names` occurs among `keys`, in numeric order."""
    matchers = [_matcher(n) for n in names]
    found = {m.groups() for key in keys for r in matchers if (m := r.fullmatch(key))}
    return sorted(found, key=lambda groups: tuple(map(int, groups)))

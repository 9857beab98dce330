"""Bring weights into a bundle: check them against the network, then stream them through the table.

Nothing is read before every name and shape has been checked. Only one row of the table at a time is
in memory, beside the part of the bundle that is being written.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from convert.safetensors_file import write
from convert.table import Shape, Table, raise_if_any
from convert.tensors import Tensor, digest, excused
from mfm_jax.bundle import Bundle, Component, Settings, Source, combined, write_bundle
from mfm_jax.bundle.limits import abstract_component
from mfm_jax.diffusion import Schedule
from mfm_jax.storage.weights import named_weights

PRECISIONS = ("float32", "float16", "bfloat16")
"""The precisions that networks compute in."""
PIECE = 1 << 20
"""Elements that are compared at once."""
KEPT = "kept.safetensors"
"""File in a component's folder with the tensors of the source that our network does not read.

With them the way back restores the entire source. Its metadata `tied` lists the source's tied
copies.
"""


@dataclass(frozen=True)
class Incoming:
    """A component in its source files."""

    component: str
    config: Any
    table: Table
    tensors: Mapping[str, Tensor]  # by the names of the table
    files: tuple[Path, ...]  # that were read
    licence: str
    add_files: Callable[[Path], None] = lambda folder: None


@dataclass(frozen=True)
class Derived:
    """A component that is computed from others, on demand."""

    component: str
    config: Any
    weights: Callable[[], Iterable[tuple[str, np.ndarray]]]
    origins: tuple[Incoming, ...]  # the components that it is computed from

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of all origins."""
        return tuple(file for origin in self.origins for file in origin.files)

    @property
    def licence(self) -> str:
        """The licences of all origins."""
        return combined(origin.licence for origin in self.origins)


@dataclass(frozen=True)
class Choices:
    """The user's options for a conversion."""

    made_by: str  # the command
    dtype: Any = None  # of the stored floating-point weights; None: as in the source
    excuse: Sequence[str] = ()  # patterns of keys that may be missing, unknown, misshaped or NaN
    keep: bool = True  # also the tensors that our network does not read
    progress: Callable[[int], None] = lambda size: None  # receives the bytes read

    def unexcused(self, keys: Iterable[str]) -> set[str]:
        """Return the keys that match no pattern of `excuse`."""
        return {key for key in keys if not excused(key, self.excuse)}


@dataclass
class Reading(Mapping[str, np.ndarray]):
    """The arrays of a source, read on demand; those that the user excused are filled in."""

    tensors: Mapping[str, Tensor]
    filled: Mapping[str, Shape] = field(default_factory=dict)
    progress: Callable[[int], None] = lambda size: None
    broken: list[str] = field(default_factory=list)  # keys read so far that are not finite

    def __getitem__(self, key: str) -> np.ndarray:
        if key in self.filled:
            return _filler(key, self.filled[key])
        array = self.tensors[key].read()
        self.progress(array.nbytes)
        if not finite(array):
            self.broken.append(key)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter({**self.tensors, **self.filled})

    def __len__(self) -> int:
        return len({**self.tensors, **self.filled})


@dataclass(frozen=True)
class Fit:
    """The tensors of a source, by what the network does with them."""

    read: tuple[str, ...]  # keys whose tensors the table reads
    filled: Mapping[str, Shape]  # keys without a tensor that fits, excused
    kept: tuple[str, ...]  # keys that the network does not read


def fit(incoming: Incoming, choices: Choices) -> Fit:
    """Compare the names and shapes of the source with those of the network.

    Raises:
        ConversionError: lists the missing, unknown and misshaped keys that no pattern excuses, and
            those in a precision that networks do not compute in.
        SettingError: the config makes no sense.
    """
    network = abstract_component(incoming.component, incoming.config, len(incoming.tensors))
    ours = {name: tuple(leaf.shape) for name, leaf in named_weights(network).items()}
    table = incoming.table
    expected, optional = table.shapes(ours), table.optional(ours)
    found = {k: t.shape for k, t in incoming.tensors.items() if not table.ignored(k)}
    computed = {key for key, _ in table.computed(ours)}
    missing = expected.keys() - found.keys() - optional
    unknown = found.keys() - expected.keys()
    both = (expected.keys() & found.keys()) - computed
    misshaped = {key for key in both if expected[key] != found[key]}
    said = {k: f"{k} is {found[k]}, should be {expected[k]}" for k in misshaped}
    raise_if_any(
        f"{incoming.component}: the checkpoint does not fit (--excuse PATTERN lets keys pass)",
        {
            "missing": choices.unexcused(missing),
            "unknown": choices.unexcused(unknown),
            "misshaped": [said[k] for k in choices.unexcused(misshaped)],
        },
    )
    _check_precision(incoming, both - misshaped, choices)
    kept = [k for k in incoming.tensors if table.kept(k) or k in computed or k in unknown]
    dropped = {*kept, *misshaped, *(k for k in incoming.tensors if table.ignored(k))}
    return Fit(
        read=tuple(k for k in incoming.tensors if k not in dropped),
        filled={k: expected[k] for k in sorted(missing | misshaped)},
        kept=tuple(kept),
    )


def _check_precision(incoming: Incoming, keys: Iterable[str], choices: Choices) -> None:
    """Check that weights are floating-point numbers in a precision that networks compute in."""
    said = {k: f"{k} is {incoming.tensors[k].dtype}" for k in keys}
    integers = {k for k in said if not is_float(incoming.tensors[k].dtype)}
    unusual = {k for k in said if incoming.tensors[k].dtype.name not in PRECISIONS} - integers
    raise_if_any(
        f"{incoming.component}: weights that cannot be used as they are",
        {
            "no floating-point numbers": [said[k] for k in integers],
            "choose a --precision": [said[k] for k in unusual if choices.dtype is None],
        },
    )


def _check_values(incoming: Incoming, choices: Choices) -> None:
    """Check tensors whose values our network has built in: others tell another network."""
    wrong = set()
    for key, tensor in incoming.tensors.items():
        expected = incoming.table.value(key, tensor.shape)
        if expected is None:
            continue
        if expected.shape != tensor.shape or not _close(tensor.read(), expected):
            wrong.add(key)
    raise_if_any(
        f"{incoming.component}: this is another network, with the same names but another front end "
        "or other masks (--excuse PATTERN lets keys pass)",
        {"not as in the release": choices.unexcused(wrong)},
    )


def _close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Return whether an array has the expected values but for the rounding of any precision."""
    room = 1e-2 * np.max(np.abs(expected), initial=0.0)
    pairs = zip(_pieces(found), _pieces(expected), strict=True)
    return all(bool(np.all(np.abs(a.astype(np.float64) - b) <= room)) for a, b in pairs)


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the elements in C order, a few at once."""
    flat = array.reshape(-1)
    yield from (flat[start : start + PIECE] for start in range(0, len(flat), PIECE))


def to_bundle(
    path: Path,
    parts: Sequence[Incoming | Derived],
    choices: Choices,
    schedule: Schedule | None = None,
) -> Bundle:
    """Write components into the bundle at `path`, new or existing: all or none.

    Raises:
        ConversionError: a source does not fit its network, or holds values that are not finite.
        SourceError: a file cannot be read.
        BundleError: `path` is not a bundle.
    """
    fits = [fit(part, choices) if isinstance(part, Incoming) else None for part in parts]
    for part in parts:
        if isinstance(part, Incoming):
            _check_values(part, choices)

    def scheduled(settings: Settings) -> Settings:
        return settings if schedule is None else replace(settings, schedule=schedule)

    # Another thread computes the checksums of the source files at the same time.
    with ThreadPoolExecutor(1) as beside:
        sums = {file: beside.submit(digest, file) for part in parts for file in part.files}
        components = {
            part.component: _component(part, fitted, choices, sums)
            for part, fitted in zip(parts, fits, strict=True)
        }
        try:
            return write_bundle(path, components, settings=scheduled)
        except BaseException:
            beside.shutdown(wait=False, cancel_futures=True)
            raise


def _component(
    part: Incoming | Derived,
    fitted: Fit | None,
    choices: Choices,
    sums: Mapping[Path, Future[str]],
) -> Component:
    def source() -> Source:
        files = tuple((file.name, sums[file].result()) for file in part.files)
        return Source(choices.made_by, combined([part.licence]), files)

    if isinstance(part, Derived):
        return Component(part.config, part.weights(), source)
    assert fitted is not None
    weights = _weights(part, fitted, choices)
    return Component(part.config, weights, source, partial(_add_files, part, fitted, choices))


def _weights(incoming: Incoming, fitted: Fit, choices: Choices) -> Iterator[tuple[str, np.ndarray]]:
    """Yield our weights one by one; values that are not finite are reported after the last."""
    tensors = {key: incoming.tensors[key] for key in fitted.read}
    reading = Reading(tensors, fitted.filled, choices.progress)
    overflown = []
    for name, array in incoming.table.to_ours(reading):
        if choices.dtype is not None:
            with np.errstate(over="ignore"):
                cast = array.astype(choices.dtype)
            if finite(array) and not finite(cast):
                overflown.append(name)
            array = cast
        yield name, array
    raise_if_any(
        f"{incoming.component}: values that are no numbers (--excuse PATTERN lets keys pass)",
        {"not finite": choices.unexcused(reading.broken)},
    )
    raise_if_any(
        f"{incoming.component}: values too large for {np.dtype(choices.dtype or float)}",
        {"choose another --precision": overflown},
    )


def _add_files(incoming: Incoming, fitted: Fit, choices: Choices, folder: Path) -> None:
    incoming.add_files(folder)
    kept = {key: incoming.tensors[key] for key in fitted.kept if choices.keep}
    write(
        folder / KEPT,
        {key: (tensor.dtype, tensor.shape) for key, tensor in kept.items()},
        Reading(kept, progress=choices.progress).items(),
        {"tied": json.dumps([r.copy for r in incoming.table.tied if r.copy in incoming.tensors])},
    )


def is_float(dtype: np.dtype) -> bool:
    """Return whether a dtype is floating-point, including those of ml_dtypes."""
    return dtype.name.startswith(("bfloat", "float"))


def finite(array: np.ndarray) -> bool:
    """Return whether all elements are finite; integers always are."""
    if not is_float(array.dtype):
        return True
    if array.dtype.name == "bfloat16":
        # Finite numbers have an exponent that is not all ones; the test of ml_dtypes is slow.
        return not bool(((array.view(np.uint16) & 0x7F80) == 0x7F80).any())
    return bool(np.isfinite(array).all())


def _filler(key: str, shape: Shape) -> np.ndarray:
    """Return the replacement of an excused tensor: ones for gains and variances, else zeros."""
    gain = key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1)
    return np.full(shape, float(gain), np.float32)


def renamed(
    tensors: Mapping[str, Tensor], rename: Callable[[str], str], excuse: Sequence[str]
) -> dict[str, Tensor]:
    """Rename tensors; of two that get the same name, if excused, the last is taken.

    Raises:
        ConversionError: two tensors get the same name and no pattern excuses it.
    """
    counted = Counter(map(rename, tensors))
    twice = {key for key, times in counted.items() if times > 1 and not excused(key, excuse)}
    what = "two tensors for one name (--excuse PATTERN takes the last)"
    raise_if_any(what, {"duplicated": twice})
    return {rename(key): tensor for key, tensor in tensors.items()}


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors with `prefix` before their names."""
    return {prefix + key: tensor for key, tensor in tensors.items()}


def without_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix`, which is removed."""
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}

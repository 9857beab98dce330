"""Equivalent spellings of the names of tensors, and averages of weights among them.

Wrappers put their name in front of a network's, or between its parts: `module.` (data parallelism),
`_orig_mod.` (torch.compile), `model.` (a trainer's). Weight norm saves two tensors for a weight, in
an older and a newer spelling. Averages (EMA) are saved beside the weights under a prefix.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from convert.incoming import renamed
from convert.source import Averaged
from convert.table import ConversionError, raise_if_any
from convert.tensors import Tensor
from convert.torch_file import is_average

ANYWHERE = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of a name that a wrapper adds anywhere in it."""
IN_FRONT = ("model", "net", "network", "state_dict")
"""Parts of a name that a trainer adds in front of it."""
GAIN, DIRECTION = "_g", "_v"
"""What weight norm adds to the name of a weight for its two tensors."""
PARAMETRIZED = {"original0": GAIN, "original1": DIRECTION}
"""The last parts of the names in `parametrizations.weight`."""
COUNTED = "n_averaged"
"""The counter in the averages of torch's `AveragedModel`, which have no prefix."""
COUNTERS = (COUNTED, "num_updates", "decay", "initted", "step")
"""What averages have beside the weights."""

Known = Callable[[str], bool]
"""Whether a network has a tensor of this name."""


def spelled(
    tensors: Mapping[str, Tensor], known: Known, excuse: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Return the tensors under the names that the network knows; unknown names stay.

    Weight norm is folded: the two tensors become one, which is computed when it is read.

    Raises:
        ConversionError: two tensors get the same name and no pattern in `excuse` lets them.
    """

    def read(name: str) -> bool:
        return known(name) or (name.endswith((GAIN, DIRECTION)) and known(name[: -len(GAIN)]))

    return _folded(renamed(tensors, lambda name: _spelled(name, read), excuse), known)


def _spelled(name: str, known: Known) -> str:
    """Return the known name among those that wrappers may have made `name` of."""
    candidate = _without_parametrization(name)
    if known(candidate):
        return candidate
    parts = [part for part in candidate.split(".") if part not in ANYWHERE]
    while parts:
        if known(".".join(parts)):
            return ".".join(parts)
        if parts[0] not in IN_FRONT:
            break
        del parts[0]
    return name


def _without_parametrization(name: str) -> str:
    """Return what older files call a tensor of weight norm."""
    match name.split("."):
        case [*front, "parametrizations", weight, ("original0" | "original1") as last]:
            return ".".join([*front, weight + PARAMETRIZED[last]])
    return name


class Folded(Tensor):
    """A weight that weight norm saves as two: `gain * direction / |direction|`.

    The norm is over the axes along which the gain does not change; over all axes but the first, as
    a rule.
    """

    def __init__(self, gain: Tensor, direction: Tensor) -> None:
        super().__init__(direction.file, direction.offset, direction.dtype, direction.shape)
        object.__setattr__(self, "gain", gain)
        object.__setattr__(self, "direction", direction)

    gain: Tensor
    direction: Tensor

    def read(self) -> np.ndarray:
        """Read both tensors and compute the weight in float32."""
        gain, direction = (t.read().astype(np.float32) for t in (self.gain, self.direction))
        rest = tuple(a for a in range(direction.ndim) if a >= gain.ndim or gain.shape[a] == 1)
        norm = np.sqrt(np.sum(direction**2, axis=rest, keepdims=True))
        with np.errstate(divide="ignore", invalid="ignore"):
            return (gain * direction / norm).astype(self.direction.dtype)


def _folded(tensors: Mapping[str, Tensor], known: Known) -> dict[str, Tensor]:
    """Fold the pairs of weight norm whose weight the network knows and which fit each other."""
    folded = dict(tensors)
    for name, gain in tensors.items():
        weight = name[: -len(GAIN)]
        direction = tensors.get(weight + DIRECTION)
        if not name.endswith(GAIN) or direction is None or weight in tensors or not known(weight):
            continue
        if _fit(gain.shape, direction.shape):
            del folded[name], folded[weight + DIRECTION]
            folded[weight] = Folded(gain, direction)
    return folded


def _fit(gain: tuple[int, ...], direction: tuple[int, ...]) -> bool:
    """Return whether a gain scales a direction along some of its axes, or as a whole."""
    if not gain or set(gain) == {1}:
        return True
    same = len(gain) == len(direction)
    return same and all(g in (1, d) for g, d in zip(gain, direction, strict=True))


def without_averages(
    tensors: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """Divide tensors into the weights and their averages; also return where these are."""
    if COUNTED in tensors:
        return {}, {name: t for name, t in tensors.items() if name != COUNTED}, COUNTED
    prefixes = {name: _prefix(name) for name in tensors}
    raw = {name: tensor for name, tensor in tensors.items() if not prefixes[name]}
    averages = {n.removeprefix(p): tensors[n] for n, p in prefixes.items() if p}
    return raw, averages, next((f"{p}*" for p in prefixes.values() if p), "")


def _prefix(name: str) -> str:
    """Return the beginning of a name up to the part that says that it is averaged, or ""."""
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        if is_average(part):
            return ".".join(parts[: i + 1]) + "."
        if part not in (*ANYWHERE, *IN_FRONT):
            break
    return ""


def averaged(weights: Mapping[str, Tensor], averages: Averaged) -> dict[str, Tensor]:
    """Return the weights, each replaced by its average; what is not averaged stays.

    The average of `model.a.b` may be called `a.b`, or `ab`: buffers have no dots, so Latent
    Diffusion's average leaves them out.

    Raises:
        ConversionError: the averages have no names, or are of other weights.
    """
    inner, outer, _ = without_averages(averages.tensors)
    tensors = outer or inner  # an average of a whole trainer has the raw weights as well
    places: dict[str, set[str]] = {}
    for name in weights:
        for spelling in _spellings(name):
            places.setdefault(spelling, set()).add(name)
    found, strange = dict(weights), []
    for name, tensor in tensors.items():
        place = next((places[s] for s in _spellings(name) if len(places.get(s, ())) == 1), None)
        if place is not None:
            found[next(iter(place))] = tensor
        elif name.split(".")[-1] not in COUNTERS:
            strange.append(name)
    raise_if_any(f"{averages.where}: averages of other weights", {"unknown": strange})
    if not averages.named or not tensors:
        raise ConversionError(f"{averages.where} has averages without names: leave out --ema")
    return found


def _spellings(name: str) -> Iterable[str]:
    """Yield a name as it is, without wrappers, and without dots."""
    yield name
    parts = [part for part in name.split(".") if part not in ANYWHERE]
    while len(parts) > 1 and parts[0] in IN_FRONT:
        yield ".".join(parts)
        yield "".join(parts)
        del parts[0]
    yield ".".join(parts)
    yield "".join(parts)

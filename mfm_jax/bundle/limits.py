"""Limits of the numbers in a bundle: what is absurd is refused before anything is built from it.

They are far beyond every network that is known, and near enough that nothing asks for all memory or
never ends. The names are those of the fields of the configs, so the same limits hold for a bundle,
an export and the files of other libraries.
"""

import math
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

from flax import nnx

from mfm_jax.bundle.components import COMPONENTS
from mfm_jax.errors import SettingError, first_line
from mfm_jax.runtime.config import to_json
from mfm_jax.storage.weights import abstract

LARGEST = 1 << 20
"""The largest size, and the longest list."""
ABOVE: Mapping[str, int] = {
    "attentions": 0, "vocabulary": 0, "window": 0, "stride": 0,
}  # fmt: skip
"""The smallest value of whole numbers that may be less than 1."""
MOST: Mapping[str, int] = {
    "depth": 1000, "decoder_depth": 1000, "resnets": 1000, "blocks": 1000, "averaged": 1000,
    "frames": 60_000, "steps": 1000, "train_steps": 10_000, "size": 4096, "image": 4096,
    "mels": 4096, "patch": 4096, "grid": 4096, "pool": 4096, "rates": 4096, "kernels": 4096,
    "block_kernels": 4096, "dilations": 4096, "compression": 4096,
}  # fmt: skip
"""The largest value of whole numbers that must stay below `LARGEST`."""
RANGES: Mapping[str, tuple[float, float]] = {
    "beta_start": (0.0, 1.0), "beta_end": (0.0, 1.0), "dropout": (-1e-9, 1.0), "fps": (0.0, 1000.0),
    "overlap": (-1e-9, 600.0), "guidance": (-1e-9, 1000.0), "patch_seconds": (0.0, 600.0),
    "seconds_per_row": (0.0, 600.0), "epsilon": (0.0, 1.0),
}  # fmt: skip
"""Between which two values numbers must lie; by default above 0 and below a million."""
MAY_BE_EMPTY = ("attentions", "contexts", "stems")
"""The lists that a network can do without."""
COUNTS = ("depth", "decoder_depth", "resnets", "blocks")
"""The fields that say how often a part of a network is repeated."""
FEW = 64
"""So often a part may be repeated in any network; some configs have fields that are not used."""
TABLE = 1 << 27
"""Numbers at most in a table that is computed when a network is built."""


def check_numbers(data: Any, where: str, name: str = "") -> None:
    """Check every number in the JSON of a config or of settings.

    Args:
        where: names the number in errors.
        name: of the field that holds `data`.

    Raises:
        SettingError: a number is not finite, too small or too large; names the first.
    """
    if isinstance(data, dict):
        for key, value in data.items():
            check_numbers(value, f"{where}.{key:.50}", key)
    elif isinstance(data, list | tuple):
        if not data and name not in MAY_BE_EMPTY:
            raise SettingError(f"{where} is empty")
        if len(data) > LARGEST:
            raise SettingError(f"{where} is a list of {len(data)}: at most {LARGEST} make sense")
        for i, value in enumerate(data):
            check_numbers(value, f"{where}[{i}]", name)
    elif isinstance(data, int) and not isinstance(data, bool) and name not in RANGES:
        low, high = ABOVE.get(name, 1), MOST.get(name, LARGEST)
        if not low <= data <= high:
            raise SettingError(f"{where} is {_short(data)}: it must be {low} to {high}")
    elif isinstance(data, int | float) and not isinstance(data, bool):
        above, below = RANGES.get(name, (0.0, 1e6))
        if not above < data < below:
            raise SettingError(
                f"{where} is {_short(data)}: it must be a number from {max(above, 0.0):g} to "
                f"{below:g}"
            )


def abstract_network(name: str, config: Any) -> nnx.Module:
    """Return the network of a component with shapes instead of weights."""
    return nnx.clone(_built(name, config))


@lru_cache(maxsize=64)
def _built(name: str, config: Any) -> nnx.Module:
    """Build a network once: that takes a third of the time of opening a bundle."""
    return abstract(partial(COMPONENTS[name].build, config))


def abstract_component(name: str, config: Any, arrays: int) -> nnx.Module:
    """Return the network of a component with shapes instead of weights, if its config makes sense.

    Args:
        arrays: the number of weights that there are for it.

    Raises:
        SettingError: a number is absurd, or the fields of the config do not go together.
    """
    told = to_json(config)
    check_numbers(told, f"{name}.config")
    check_counts(told, arrays, f"{name}.config")
    try:
        return abstract_network(name, config)
    except Exception as error:
        # What does not go together fails anywhere in a network, in many ways.
        reason = f"{first_line(error):.500}"
        raise SettingError(f"{name} cannot be built from its config ({reason})") from error


def check_counts(config: Any, arrays: int, where: str) -> None:
    """Check that a network of `arrays` weights can have as many parts as its config says.

    Raises:
        SettingError: it would have more, or would compute too large a table when it is built.
    """
    if not isinstance(config, dict):
        return
    for name, value in config.items():
        check_counts(value, arrays, f"{where}.{name}")
    most = max(arrays, FEW)
    for name in COUNTS:
        value = config.get(name, 1)
        count = sum(value) if isinstance(value, list) else value
        if count > most:
            raise SettingError(f"{where}.{name} is {value}, and there are only {arrays} weights")
    levels = config.get("channels")
    repeated = [config.get("depth", 1), config.get("resnets", 1)]
    total = math.prod(repeated) * (len(levels) if isinstance(levels, list) else 1)
    if total > most:
        raise SettingError(f"{where} asks for {total} parts, and there are only {arrays} weights")
    if {"frames", "mels", "patch", "width"} <= config.keys():
        patches = config["frames"] * config["mels"] // config["patch"] ** 2
        if patches * config["width"] > TABLE:
            raise SettingError(f"{where} asks for a table of {patches} positions: too many")


def _short(value: int | float) -> str:
    """Return a number as text, which long ones would fill."""
    return "a huge number" if isinstance(value, int) and abs(value) > 10**30 else repr(value)

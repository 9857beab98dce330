"""Finds what lies beside the package: `train.py`, `configs/`, `convert/` and `miniature/`.

In a checkout these are at its top level. A wheel carries them in `mfm_jax/toplevel`, because as
top-level modules of an environment their names would collide with those of other projects.
"""

import runpy
import sys
import traceback
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from mfm_jax.errors import UsageError, UserError, first_line
from mfm_jax.storage.copies import kept_copy
from mfm_jax.storage.paths import user_path

PACKAGE = Path(__file__).parents[1]
CARRIED = PACKAGE / "toplevel"


def in_checkout() -> bool:
    """Return False if a wheel was installed."""
    return not CARRIED.is_dir()


def folder() -> Path:
    """Return the folder that holds `train.py` and its neighbours."""
    return PACKAGE.parent if in_checkout() else CARRIED


def module(name: str) -> ModuleType:
    """Import a module of that folder, which takes precedence over others of the same name."""
    top = str(folder())
    if sys.path[0] != top:
        sys.path.insert(0, top)
    return import_module(name)


def config_names() -> list[str]:
    """Return the names of the shipped configs."""
    return sorted(file.stem for file in (folder() / "configs").glob("*.py"))


def config_file(name_or_file: str) -> Path:
    """Find a config by the path of its file or by the name of a shipped one.

    Raises:
        UsageError: there is neither.
    """
    file = user_path(name_or_file)
    if file.is_file():
        return kept_copy(file)
    if name_or_file in config_names():
        return folder() / "configs" / f"{name_or_file}.py"
    raise UsageError(
        f"there is no config {name_or_file}: give a file, or one of {', '.join(config_names())}"
    )


def read_config(name_or_file: str, assignments: Iterable[str] = ()) -> Any:
    """Return a config with the fields that `--set` changes.

    Raises:
        UsageError: there is no such config, or it cannot be run.
        SettingError: no such field, or a value of another type.
    """
    from mfm_jax.runtime.config import override

    file = config_file(name_or_file)
    try:
        config = runpy.run_path(str(file))["get_config"]()
    except UserError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = [f" at line {frame.lineno}" for frame in frames if frame.filename == str(file)]
        what = f"{type(error).__name__}{where[-1] if where else ''}: {first_line(error)}"
        raise UsageError(f"{file} is no config with a function get_config ({what})") from None
    from mfm_jax.train.recipe import TrainConfig  # which the config has imported

    if not isinstance(config, TrainConfig):
        kind = type(config).__name__
        raise UsageError(f"get_config in {file} returns no TrainConfig but a {kind}: correct it")
    return override(config, assignments)

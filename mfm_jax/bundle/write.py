"""Write a bundle or components of one. Several processes may do so at the same time."""

import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
from jax import numpy as jnp
from jax.typing import DTypeLike

from mfm_jax.bundle.adapted import misfit
from mfm_jax.bundle.bundle import (
    COMPONENT_FOLDER,
    FORMAT,
    TRAINED,
    Bundle,
    BundleError,
    Entry,
    component_checksum,
    entry_json,
    parse,
    trained,
)
from mfm_jax.bundle.components import COMPONENTS, Settings, Source
from mfm_jax.runtime import signals
from mfm_jax.runtime.config import to_json
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.files import (
    flush,
    flush_tree,
    new_folder,
    publish,
    remove_folder,
    remove_tree,
    signature,
    write_text,
)
from mfm_jax.storage.index import INDEX
from mfm_jax.storage.locks import is_locked, locked, locked_new_folder
from mfm_jax.storage.parts import remove_parts, report_full_disk
from mfm_jax.storage.paths import user_path
from mfm_jax.storage.scratch import scratch
from mfm_jax.storage.store import StoreError, write_store
from mfm_jax.storage.weights import named_weights


class Component(NamedTuple):
    """A component to be written."""

    config: Any
    # A network, or a stream of its weights by name, of which only a part is in memory.
    weights: nnx.Module | Iterable[tuple[str, Any]]
    source: Source | Callable[[], Source]  # a function is called after the weights are written
    # Writes additional files into the component's folder.
    add_files: Callable[[Path], None] = lambda folder: None


def write_bundle(
    path: Path,
    components: Mapping[str, Component | tuple[Any, nnx.Module, Source]],
    *,
    settings: Settings | Callable[[Settings], Settings] | None = None,
    base: Path | None = None,
    dtype: DTypeLike | None = None,
) -> Bundle:
    """Write `components` into the bundle at `path`, new or existing.

    An adapter that is there already and does not fit what is written is left out with a warning.

    Args:
        settings: new settings, or a function from the present ones to new ones. By default a new
            bundle gets those of `base`, or the defaults.
        base: a bundle from which other components are copied (by hard links where possible).
        dtype: precision of the stored floating-point weights; unchanged by default.

    Raises:
        BundleError: a component's name is unknown, `path` is not a bundle or a new folder, or an
            adapter does not fit the other components.
        SettingError: the settings or a config make no sense.
    """
    path = user_path(path)
    if isinstance(path, StorePath):
        with _staged(path) as here:
            write_bundle(here, components, settings=settings, base=base, dtype=dtype)
        return Bundle.open(path)
    if unknown := sorted(components.keys() - COMPONENTS.keys()):
        raise BundleError(f"unknown component {unknown[0]!r}; known are {', '.join(COMPONENTS)}")
    if path.exists() and not path.is_dir():
        raise BundleError(f"{path} is a file: choose another folder for the bundle")
    _existing(path)
    with report_full_disk(path), _folder(path), ExitStack() as stack:
        written = {}
        for name, component in components.items():
            folder = stack.enter_context(_new_component(path, name))
            written[name] = _write_component(name, Component(*component), folder, dtype)
        with locked(path):
            # Read now, as another process may have written to the bundle in the meantime.
            old, from_base = _existing(path), Bundle.open(base) if base else None
            present = next((b.settings for b in (old, from_base) if b is not None), Settings())
            entries = {**(old.entries if old else {}), **written}
            if from_base is not None:
                entries |= _take_over(from_base, path, entries)
            if reason := misfit(entries, components):
                told = f"because {reason}: train one for this bundle (configs/base_sync.py)"
                if "adapter" in components:
                    raise BundleError(f"the adapter does not fit bundle {path}, {told}")
                warnings.warn(f"the adapter is left out of bundle {path}, {told}", stacklevel=2)
                del entries["adapter"]
            if settings is None:
                settings = present
            _commit(path, settings(present) if callable(settings) else settings, entries)
    return Bundle.open(path)


@contextmanager
def _staged(path: StorePath) -> Iterator[Path]:
    """Yield a copy on this machine of a bundle in a store, and write what is new in it there.

    A reader sees the bundle of before or the new one: components never change under their names,
    and `bundle.json` is written when all are there.

    Raises:
        BundleError: another process has written to the bundle meanwhile.
    """
    before, file = signature(path / "bundle.json"), path / "bundle.json"
    with scratch(path.name) as here:
        if old := _existing(path):
            (here / "bundle.json").write_bytes(file.read_bytes())
            for name, entry in old.entries.items():
                copy_tree(old.folder(name), here / entry.folder)
        yield here
        if signature(file) != before:
            raise BundleError(f"{path} was written to by another process: start again")
        names = (found.relative_to(path).parts for found in path.files())
        there = {parts[0] for parts in names if len(parts) > 1}
        keep = {folder.name for folder in here.iterdir() if folder.is_dir()}
        for folder in sorted(keep - there):
            publish(here / folder, path / folder, last=INDEX)
        write_text(file, (here / "bundle.json").read_text(encoding="utf-8"))
        for folder in there - keep:
            if COMPONENT_FOLDER.fullmatch(folder):
                remove_tree(path / folder)


def write_sizes(path: Path, configs: Mapping[str, Any], settings: Settings | None = None) -> None:
    """Write a bundle with configs and no weights, for programs that need only the sizes.

    Raises:
        BundleError: there is a bundle at `path`.
    """
    if (path / "bundle.json").exists():
        raise BundleError(f"{path} is a bundle with weights: choose another folder")
    path.mkdir(parents=True, exist_ok=True)
    nowhere = Source("no weights", "none")
    entries = {n: Entry(c, f"{n}-00000000", nowhere, 0) for n, c in configs.items()}
    _commit(path, settings or Settings(), entries)


def _existing(path: Path) -> Bundle | None:
    return Bundle.open(path) if (path / "bundle.json").exists() else None


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Make the folder of a bundle; a new one goes again if nothing comes into it."""
    new = not path.exists()
    path.mkdir(parents=True, exist_ok=True)
    flush(path.parent)

    def remove() -> None:
        if new:
            with suppress(OSError):  # another process may have written something
                path.rmdir()

    with signals.undone(remove):
        try:
            yield
        except BaseException:
            remove()
            raise


@contextmanager
def _new_component(path: Path, name: str) -> Iterator[Path]:
    """Make a folder for a component, locked until `bundle.json` names it or writing fails."""
    folder = path / f"{name}-{secrets.token_hex(4)}"
    remove = partial(_remove_unless_named, path, folder)
    with signals.undone(remove), locked_new_folder(folder):
        try:
            yield folder
        except BaseException:
            remove()
            raise


def _remove_unless_named(path: Path, folder: Path) -> None:
    with suppress(FileNotFoundError):
        if folder.name in (path / "bundle.json").read_text():
            return
    remove_folder(folder)


def _write_component(
    name: str, component: Component, folder: Path, dtype: DTypeLike | None
) -> Entry:
    config, weights, source, add_files = component
    arrays = named_weights(weights).items() if isinstance(weights, nnx.Module) else weights
    counted = _Counter(arrays, dtype)
    add_files(folder)
    try:
        write_store(folder, counted)
    except StoreError as error:
        raise BundleError(f"cannot write {name} into {folder.parent}: {error}") from None
    told = source if isinstance(source, Source) else source()
    entry = Entry(config, folder.name, told, counted.parameters)
    return replace(entry, checksum=component_checksum(name, entry, folder))


class _Counter:
    """Passes arrays on in the wanted precision and counts their elements."""

    def __init__(self, arrays: Iterable[tuple[str, Any]], dtype: DTypeLike | None) -> None:
        self.arrays, self.dtype, self.parameters = arrays, dtype, 0

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        for name, array in self.arrays:
            self.parameters += array.size
            if self.dtype is not None and jnp.issubdtype(array.dtype, jnp.floating):
                array = array.astype(self.dtype)
            yield name, array


def _take_over(base: Bundle, path: Path, entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Copy the components of `base` that are not in `entries`, and return their entries.

    The copies are on the disk afterwards.
    """
    others = {name: entry for name, entry in base.entries.items() if name not in entries}
    for name, entry in others.items():
        shutil.rmtree(path / entry.folder, ignore_errors=True)  # from a run that was killed
        with new_folder(path / entry.folder) as folder:
            copy_tree(base.folder(name), folder)
            flush_tree(folder)
    return others


def copy_tree(source: Path, target: Path) -> None:
    """Copy a folder, by hard links where possible."""
    shutil.copytree(source, target, dirs_exist_ok=True, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        # A file in the hub's cache is a link, to which Linux would make another one.
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copy2(source, target)


def _commit(path: Path, settings: Settings, entries: Mapping[str, Entry]) -> None:
    """Name the new folders in `bundle.json`, then remove folders that are not named or locked.

    Power may fail at any moment: the folders are on the disk before `bundle.json` names them, and
    that is before the old folders go.

    Raises:
        SettingError: the settings or a config make no sense, so the bundle could not be opened.
    """
    data = {
        "format": FORMAT,
        "settings": to_json(settings),
        TRAINED: trained(settings),
        "components": {n: entry_json(entries[n]) for n in COMPONENTS if n in entries},
    }
    parse(data)
    flush(path)
    with signals.not_ending():  # then the new folders are removed, or named
        write_text(path / "bundle.json", json.dumps(data, indent=1) + "\n")
    remove_parts(path)
    keep = {entry.folder for entry in entries.values()}
    for folder in path.iterdir():
        if (
            COMPONENT_FOLDER.fullmatch(folder.name)
            and folder.name not in keep
            and folder.is_dir()
            and not is_locked(folder)
        ):
            shutil.rmtree(folder, ignore_errors=True)

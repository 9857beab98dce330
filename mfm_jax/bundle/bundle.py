"""Opening a bundle.

`bundle.json` holds the format, the settings and, for each component, its config, where its weights
come from, and the folder they lie in (`mfm_jax.storage.store`) with a checksum. A component's
folder is never changed once it is named there, and `bundle.json` is replaced in one step: a bundle
is the old one or the new one.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from mfm_jax.bundle import format2
from mfm_jax.bundle.components import COMPONENTS, Settings, Source
from mfm_jax.bundle.limits import abstract_component, check_numbers
from mfm_jax.errors import SettingError, UserError, first_line, system_reason
from mfm_jax.runtime.config import from_json, to_json
from mfm_jax.runtime.sharding import Axes
from mfm_jax.storage.copies import kept_copy
from mfm_jax.storage.hub import bundle_path, complete
from mfm_jax.storage.index import INDEX, Listed, StoreError, read_json
from mfm_jax.storage.retries import AddressError
from mfm_jax.storage.store import Store
from mfm_jax.storage.verify import require, verified, verify_together
from mfm_jax.storage.weights import (
    WeightError,
    abstract,
    check_weights,
    named_axes,
    named_weights,
    with_weights,
)

FORMAT = 3
READABLE = (2, FORMAT)
"""Formats of components that this version reads; it writes the last one."""
_WORDS = " and ".join(map(str, READABLE))

SAMPLERS = ("ddim", "dpm++")
TRAINED = "trained"
"""The entry of `bundle.json` with the checksum of what may not be edited in its settings."""

FOLDER = re.compile(rf"({'|'.join(COMPONENTS)})-[0-9a-f]{{8}}")
"""Names of the folders of components that `bundle.json` may name."""
COMPONENT_FOLDER = re.compile(rf"\.?{FOLDER.pattern}(\..*)?")
"""Names of the folders of components, finished or being written."""

Shape = tuple[int, ...]


class BundleError(UserError):
    """A bundle that cannot be opened or written; the message says what to do."""


@dataclass(frozen=True)
class Entry:
    """A component as `bundle.json` lists it."""

    config: Any
    folder: str
    source: Source
    parameters: int
    checksum: str = ""  # SHA-256 of all of the above, as stored, and of the index of the folder
    format: int = FORMAT  # of the config and of the weights' names, as they are stored
    stored: Mapping[str, Any] | None = None  # the entry in `bundle.json`, if read from there


@dataclass(frozen=True)
class Bundle:
    """An opened `bundle.json`; `load` reads weights.

    A bundle may lie in an object store or a repository of the Hugging Face hub: a component is
    copied to this machine when it is needed.
    """

    path: Path
    settings: Settings
    entries: Mapping[str, Entry]
    verify: bool = True  # compare what is loaded with its checksums

    @classmethod
    def open(cls, path: str | Path, *, verify: bool = True) -> "Bundle":
        """Read what a bundle holds, without its weights.

        Args:
            path: a folder, or a repository of the hub (`mfm_jax.storage.hub`).
            verify: compare a component with its checksums when it is loaded. What changed in the
                meantime is then an error, not other values.

        Raises:
            BundleError: no bundle there, of another format, or one that does not parse.
            HubError: the repository cannot be read, or holds no bundle.
        """
        path = bundle_path(path)
        file = path / "bundle.json"
        try:
            there = file.is_file()
        except AddressError:
            raise
        except OSError as error:
            reason = system_reason(error)
            raise BundleError(f"{path} cannot be read ({reason}): check --bundle") from None
        if not there:
            raise BundleError(f"{path} is not a bundle (no bundle.json in it): check --bundle")
        with _about(file):
            data = read_json(file)
            settings, entries = parse(data)
            opened = cls(path, settings, entries, verify)
            # Bundles of earlier versions have no such checksum.
            if verify and data.get(TRAINED, checksum := trained(opened.settings)) != checksum:
                raise SettingError("the schedule or the frames in its settings were changed")
            return opened

    @property
    def identity(self) -> str:
        """The SHA-256 of everything in it: its settings and its components."""
        sums = {name: entry.checksum for name, entry in self.entries.items()}
        told: Any = [to_json(self.settings), sums]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    def config(self, name: str) -> Any:
        """Return the config of a component.

        Raises:
            BundleError: the bundle does not have it.
        """
        return self._entry(name).config

    def made_together(self, *names: str) -> bool:
        """Return whether components were trained or converted at once, as parts of one network."""
        sources = [self.entries[name].source for name in names if name in self.entries]
        return len(sources) == len(names) and len(set(sources)) == 1

    def abstract(self, name: str) -> Any:
        """Return the network `name` with shapes, in float32, instead of weights.

        Raises:
            BundleError: the bundle does not have it.
        """
        return abstract(partial(COMPONENTS[name].build, self.config(name)))

    def load(
        self,
        name: str,
        dtype: DTypeLike | None = None,
        *,
        sharding: Callable[[Axes, Shape], jax.sharding.Sharding] | None = None,
        verify: bool | None = None,
    ) -> Any:
        """Return the network `name` with its weights.

        Args:
            dtype: precision of the floating-point weights; as stored if not given.
            sharding: returns the sharding of a weight from its logical axes and shape, such as
                `Layout.weight`; a process then reads only the shards of its own devices. If not
                given, all weights go to this process's first device.
            verify: whether to compare what is read with its checksums; by default as the bundle
                was opened.

        Raises:
            BundleError: the component is absent, or its weights are missing, unexpected,
                misshaped or unreadable, or, with `verify`, not those that were written.
        """
        if verify is not None and verify != self.verify:
            return replace(self, verify=verify).load(name, dtype, sharding=sharding)
        entry, store = self._entry(name), self.store(name)
        where = f"{name} in bundle {self.path}"
        with _reading(where):
            there = sum(math.prod(listed.shape) for listed in store.arrays.values())
            if there != entry.parameters:
                raise StoreError(f"it says {entry.parameters} parameters and has {there}")
            network = abstract_component(name, entry.config, len(store.arrays))
            axes = named_axes(network)
            check_weights(
                named_weights(network), {n: a.shape for n, a in store.arrays.items()}, where=where
            )
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def target(weight: str, stored: Listed) -> jax.ShapeDtypeStruct:
            kind = np.dtype(stored.dtype) if dtype is None else dtype
            place = first if sharding is None else sharding(axes[weight], stored.shape)
            return jax.ShapeDtypeStruct(stored.shape, kind, sharding=place)

        places = (target(n, a).sharding for n, a in store.arrays.items())
        together = any(not place.is_fully_addressable for place in places)
        weights: dict[str, Any] = {}
        with _reading(where), self._verified(store, together=together) as wait:
            for part in store.parts():
                wait(part)
                weights |= store.restore(target, part, together=together)
        return with_weights(network, weights)

    @contextmanager
    def _verified(self, store: Store, *, together: bool) -> Iterator[Callable[[int], None]]:
        """Yield what waits until a part is compared with its checksums, if this bundle does so."""
        if self.verify and not together:
            with verified(store) as wait:
                yield wait
            return
        if self.verify:
            verify_together(store)
        yield lambda part: None

    def store(self, name: str) -> Store:
        """Return the opened folder of a component.

        Raises:
            BundleError: the component is absent, its folder is a link or has no readable index,
                or, with `verify`, its index or its entry has changed.
        """
        entry = self._entry(name)
        rename = partial(format2.read_name, name) if entry.format == 2 else None
        with _reading(f"{name} in bundle {self.path}"):
            folder = self.folder(name)
            if folder.is_symlink():
                raise StoreError(f"{folder} is a link: copy what it leads to into its place")
            store = Store.open(folder, rename)
            if self.verify:
                require(self._unsealed(name, store))
        return store

    def folder(self, name: str) -> Path:
        """Return the folder of a component on this machine: a copy, if it lies in a store.

        Raises:
            StoreError: it is missing in the store.
            AddressError: the store cannot be read.
            HubError: the hub cannot be read.
            WriteError: there is no room for a copy.
        """
        place = self.path / self._entry(name).folder
        try:
            return kept_copy(complete(place))
        except FileNotFoundError:
            raise StoreError(f"{place} is missing") from None

    def files(self, name: str, folder: str) -> Path | None:
        """Return the folder of files beside the arrays of a component, or None if it has none.

        Raises:
            BundleError: as `store`; or, with `verify`, a file in it has changed.
        """
        store = self.store(name)
        with _reading(f"{name} in bundle {self.path}"):
            if self.verify:
                require(store.damaged(store.files_in(folder)))
            if store.files_in(folder) and not (store.folder / folder).is_dir():
                raise StoreError(f"{store.folder / folder} is missing")
        return store.folder / folder if store.files_in(folder) else None

    def damages(self, name: str) -> list[str]:
        """List the files and arrays of a component that differ from what was written."""
        try:
            store = replace(self, verify=False).store(name)
        except BundleError as error:
            return [str(error)]
        return self._unsealed(name, store) or store.damaged_files() or store.damaged_arrays()

    def _unsealed(self, name: str, store: Store) -> list[str]:
        entry = self._entry(name)
        if component_checksum(name, entry, store.folder) == entry.checksum:
            return []
        return [f"bundle.json or {entry.folder}/{INDEX} was changed"]

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            have = ", ".join(self.entries) or "nothing"
            raise BundleError(f"bundle {self.path} has no {name!r}; it has {have}")
        return self.entries[name]


@contextmanager
def _about(file: Path) -> Iterator[None]:
    """Turn what is wrong with `bundle.json` into one line.

    Raises:
        BundleError: the block raised an error of the file's contents.
    """
    try:
        yield
    except BundleError as error:
        raise BundleError(f"{file}: {error}") from None
    except StoreError as error:
        raise BundleError(f"{error}: make the bundle again") from None
    # A configuration checks its fields against each other, with numbers that may be anything.
    except (ValueError, ArithmeticError) as error:
        reason = f"{first_line(error):.500}"
        raise BundleError(f"{file} is damaged ({reason}): make the bundle again") from None


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn what is wrong with weights into one line.

    Raises:
        BundleError: the weights cannot be read, or do not fit.
    """
    try:
        yield
    except WeightError as error:
        raise BundleError(str(error)) from None
    except (StoreError, SettingError) as error:
        raise BundleError(f"cannot read the weights of {where}: {error}") from None


def _contents(data: Any) -> tuple[Any, dict[str, Any], dict[str, dict[str, Any]]]:
    """Return the format, the settings and the components in the contents of `bundle.json`.

    Raises:
        SettingError: one of them is missing, or something else.
    """
    match data:
        case {"format": format, "settings": dict(settings), "components": dict(components)}:
            if all(isinstance(entry, dict) for entry in components.values()):
                return format, settings, components
    raise SettingError("it has no format, settings and components")


def _settings(data: dict[str, Any]) -> Settings:
    """Return the settings that `bundle.json` holds as `data`.

    Raises:
        SettingError: a setting is unknown, absurd, or does not go with another.
    """
    check_numbers(data, "settings")
    settings = from_json(Settings, data, "settings")
    if settings.sampler not in SAMPLERS:
        known = " or ".join(SAMPLERS)
        raise SettingError(f"settings.sampler is {settings.sampler!r:.50}, not {known}")
    if settings.steps >= settings.schedule.train_steps:
        raise SettingError(
            f"settings.steps is {settings.steps}, of {settings.schedule.train_steps} in training"
        )
    return settings


def parse(data: Any) -> tuple[Settings, dict[str, Entry]]:
    """Return the settings and the components in the contents of `bundle.json`.

    Raises:
        BundleError: it has a format or a component that this version does not know.
        SettingError: something is missing or absurd.
    """
    format, settings, components = _contents(data)
    if not _readable(format):
        raise BundleError(f"it has bundle format {format!r:.20}, this version reads {_WORDS}")
    # Only format 3 holds components of several formats, and says which.
    entries = {name: _entry(name, {"format": format} | e) for name, e in components.items()}
    return _settings(settings), entries


def check_settings(settings: Settings) -> None:
    """Check that a bundle with these settings can be opened.

    Raises:
        SettingError: a setting is absurd, or does not go with another.
    """
    _settings(to_json(settings))


def trained(settings: Settings) -> str:
    """Return the SHA-256 of the settings that the networks were trained with."""
    text = json.dumps([to_json(settings.schedule), settings.frames], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _readable(format: Any) -> bool:
    return type(format) is int and format in READABLE


def _entry(name: str, data: dict[str, Any]) -> Entry:
    """Return the entry that `bundle.json` holds as `data`.

    Raises:
        BundleError: this version does not know the component or its format, or it lies elsewhere.
        SettingError: its config or its source cannot be read.
    """
    if name not in COMPONENTS:
        raise BundleError(f"unknown component {name!r:.50}; known are {', '.join(COMPONENTS)}")
    match data:
        case {
            "folder": str(folder),
            "parameters": int(parameters),
            "checksum": str(checksum),
        } if type(parameters) is int and parameters >= 0:
            pass
        case _:
            raise SettingError(f"{name} has no folder, parameters and checksum")
    if not FOLDER.fullmatch(folder):
        raise BundleError(f"{name} lies in {folder!r:.200}, which is no folder of a bundle")
    if not _readable(data["format"]):
        raise BundleError(f"{name} has format {data['format']!r:.20}, this version reads {_WORDS}")
    config = data.get("config")
    if data["format"] == 2:
        config = format2.read_config(name, config)
    check_numbers(config, f"{name}.config")
    return Entry(
        from_json(COMPONENTS[name].config, config, f"{name}.config"),
        folder,
        from_json(Source, data.get("source"), f"{name}.source"),
        parameters,
        checksum,
        data["format"],
        data,
    )


def component_checksum(name: str, entry: Entry, folder: Path) -> str:
    """Return the SHA-256 of a component's entry and of its index, which has sums of all files.

    The entry counts as it is stored, whatever its fields are called today. Format 2 did not write
    the format beside each component, so that is left out.
    """
    said = {**entry_json(entry), "checksum": ""}
    del said["format"]
    text = json.dumps([name, said], sort_keys=True)
    return hashlib.sha256(text.encode() + (folder / INDEX).read_bytes()).hexdigest()


def entry_json(entry: Entry) -> dict[str, Any]:
    """Return an entry as `bundle.json` holds it."""
    if entry.stored is not None:
        return dict(entry.stored)
    data = to_json(entry)
    del data["stored"]
    return data

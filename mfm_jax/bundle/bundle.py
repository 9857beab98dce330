"""Opening a bundle.

`bundle.json` holds the format, the settings and, for each component, its config, where its weights
come from, and the folder they lie in (`mfm_jax.storage.store`) with a checksum. A component's
folder is never changed once it is named there, and `bundle.json` is replaced in one step: a bundle
is the old one or the new one.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

from mfm_jax.bundle import format2
from mfm_jax.bundle.components import COMPONENTS, Settings, Source
from mfm_jax.errors import UserError
from mfm_jax.runtime.config import from_json, to_json
from mfm_jax.runtime.sharding import Axes
from mfm_jax.storage.store import INDEX, Listed, Store, StoreError
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

COMPONENT_FOLDER = re.compile(rf"\.?({'|'.join(COMPONENTS)})-[0-9a-f]{{8}}(\..*)?")
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
    """An opened `bundle.json`; `load` reads weights."""

    path: Path
    settings: Settings
    entries: Mapping[str, Entry]

    @classmethod
    def open(cls, path: Path) -> "Bundle":
        """Read what a bundle holds, without its weights.

        Raises:
            BundleError: no bundle there, of another format, or one that does not parse.
        """
        file = Path(path) / "bundle.json"
        if not file.is_file():
            raise BundleError(f"{path} is not a bundle (no bundle.json in it): check --bundle")
        try:
            data = json.loads(file.read_text())
            if data.get("format") not in READABLE:
                raise BundleError(
                    f"{path} has bundle format {data.get('format')}, this version reads {_WORDS}"
                )
            # Only format 3 holds components of several formats, and says which.
            entries = {
                n: _entry(n, {"format": data["format"], **e}) for n, e in data["components"].items()
            }
            return cls(Path(path), from_json(Settings, data["settings"], "settings"), entries)
        except BundleError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{file} is damaged ({error}): make the bundle again") from None

    def config(self, name: str) -> Any:
        """Return the config of a component.

        Raises:
            BundleError: the bundle does not have it.
        """
        return self._entry(name).config

    def load(
        self,
        name: str,
        dtype: DTypeLike | None = None,
        *,
        sharding: Callable[[Axes, Shape], jax.sharding.Sharding] | None = None,
        check: bool = False,
    ) -> Any:
        """Return the network `name` with its weights.

        Args:
            dtype: precision of the floating-point weights; as stored if not given.
            sharding: returns the sharding of a weight from its logical axes and shape, such as
                `Layout.weight`; a process then reads only the shards of its own devices. If not
                given, all weights go to this process's first device.
            check: read all files first and compare them with their checksums.

        Raises:
            BundleError: the component is absent, or its weights are missing, unexpected,
                misshaped or unreadable, or, with `check`, not those that were written.
        """
        entry, store = self._entry(name), self.store(name)
        where = f"{name} in bundle {self.path}"
        if check and (problems := self._unsealed(name) or store.damaged_files()):
            raise BundleError(f"{where} is damaged: {'; '.join(problems)}: make it again")
        network = abstract(lambda rngs: COMPONENTS[name].build(entry.config, rngs=rngs))
        axes = named_axes(network)
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def target(weight: str, stored: Listed) -> jax.ShapeDtypeStruct:
            kind = np.dtype(stored.dtype) if dtype is None else dtype
            place = first if sharding is None else sharding(axes[weight], stored.shape)
            return jax.ShapeDtypeStruct(stored.shape, kind, sharding=place)

        try:
            check_weights(
                named_weights(network), {n: a.shape for n, a in store.arrays.items()}, where=where
            )
            places = (target(n, a).sharding for n, a in store.arrays.items())
            together = any(not place.is_fully_addressable for place in places)
            weights: dict[str, Any] = {}
            for part in store.parts():
                weights |= store.restore(target, part, together=together)
            return with_weights(network, weights)
        except WeightError as error:
            raise BundleError(str(error)) from None
        except StoreError as error:
            raise BundleError(f"cannot read the weights of {where}: {error}") from None

    def store(self, name: str) -> Store:
        """Return the opened folder of a component.

        Raises:
            BundleError: the component is absent, or its folder has no readable index.
        """
        entry = self._entry(name)
        rename = partial(format2.read_name, name) if entry.format == 2 else None
        try:
            return Store.open(self.path / entry.folder, rename)
        except StoreError as error:
            raise BundleError(
                f"cannot read the weights of {name} in bundle {self.path}: {error}"
            ) from None

    def damages(self, name: str) -> list[str]:
        """List the files and arrays of a component that differ from what was written."""
        try:
            store = self.store(name)
        except BundleError as error:
            return [str(error)]
        return self._unsealed(name) or store.damaged_files() or store.damaged_arrays()

    def _unsealed(self, name: str) -> list[str]:
        entry = self._entry(name)
        if component_checksum(name, entry, self.path / entry.folder) == entry.checksum:
            return []
        return [f"bundle.json or {entry.folder}/{INDEX} was changed"]

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            have = ", ".join(self.entries) or "nothing"
            raise BundleError(f"bundle {self.path} has no {name!r}; it has {have}")
        return self.entries[name]


def _entry(name: str, data: dict) -> Entry:
    """Return the entry that `bundle.json` holds as `data`.

    Raises:
        BundleError: this version does not know the component or its format, or it lies elsewhere.
        SettingError: its config or its source cannot be read.
    """
    if name not in COMPONENTS:
        raise BundleError(f"unknown component {name!r}; known are {', '.join(COMPONENTS)}")
    if not COMPONENT_FOLDER.fullmatch(data["folder"]):
        raise BundleError(f"{name} lies in {data['folder']!r}, which is no folder of a bundle")
    if data["format"] not in READABLE:
        raise BundleError(f"{name} has format {data['format']}, this version reads {_WORDS}")
    config = data["config"]
    if data["format"] == 2:
        config = format2.read_config(name, config)
    return Entry(
        from_json(COMPONENTS[name].config, config, f"{name}.config"),
        data["folder"],
        from_json(Source, data["source"], f"{name}.source"),
        data["parameters"],
        data["checksum"],
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

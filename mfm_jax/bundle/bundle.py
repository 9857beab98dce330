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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.typing import DTypeLike

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

FORMAT = 2

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
    checksum: str = ""  # SHA-256 of all of the above and of the index of the folder


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
            if data.get("format") != FORMAT:
                raise BundleError(
                    f"{path} has bundle format {data.get('format')}, this version reads {FORMAT}"
                )
            entries = {n: _entry(n, entry) for n, entry in data["components"].items()}
            return cls(Path(path), from_json(Settings, data["settings"], "settings"), entries)
        except BundleError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{file} is damaged ({error}): make the bundle again") from None

    def config(self, name: str) -> Any:
        """The config of a component.

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
        """The network `name` with its weights.

        Args:
            dtype: of the floating-point weights; as stored if not given.
            sharding: of each weight, by its logical axes and shape, as `Layout.weight` tells it; a
                process then reads the shards of its own devices only. All on this process's first
                device if not given.
            check: read all files first and compare them with their checksums.

        Raises:
            BundleError: the component is absent, or its weights are missing, unexpected,
                misshaped, unreadable or, with `check`, not those that were written.
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
        """The folder of a component.

        Raises:
            BundleError: the component is absent, or its folder has no readable index.
        """
        folder = self.path / self._entry(name).folder
        try:
            return Store.open(folder)
        except StoreError as error:
            raise BundleError(
                f"cannot read the weights of {name} in bundle {self.path}: {error}"
            ) from None

    def damages(self, name: str) -> list[str]:
        """How the component differs from what was written, file by file and array by array."""
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
    if name not in COMPONENTS:
        raise BundleError(f"unknown component {name!r}; known are {', '.join(COMPONENTS)}")
    if not COMPONENT_FOLDER.fullmatch(data["folder"]):
        raise BundleError(f"{name} lies in {data['folder']!r}, which is no folder of a bundle")
    return Entry(
        from_json(COMPONENTS[name].config, data["config"], f"{name}.config"),
        data["folder"],
        from_json(Source, data["source"], f"{name}.source"),
        data["parameters"],
        data["checksum"],
    )


def component_checksum(name: str, entry: Entry, folder: Path) -> str:
    """Return the SHA-256 of a component's entry and of its index, which has sums of all files."""
    said = json.dumps([name, entry_json(replace(entry, checksum=""))], sort_keys=True)
    return hashlib.sha256(said.encode() + (folder / INDEX).read_bytes()).hexdigest()


def entry_json(entry: Entry) -> dict[str, Any]:
    """Return an entry as `bundle.json` holds it.

    Fields of `Source` that the first bundles did not have are left out where they are empty, so
    that the checksums of those bundles still hold.
    """
    data = to_json(entry)
    for name in ("trained_with", "data"):
        if not data["source"][name]:
            del data["source"][name]
    return data

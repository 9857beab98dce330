"""A bundle: every network that makes sound from video, in one directory.

`bundle.json` holds the format, the settings and, for each component, its config, where its weights
come from, and the folder they lie in (`mfm_jax.store`) with a checksum. A component's folder is
never changed once it is named there, and `bundle.json` is replaced in one step: a bundle is the old
one or the new one. Several processes may write components into one bundle at the same time.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp
from jax.typing import DTypeLike

from mfm_jax import __version__
from mfm_jax.diffusion import Schedule
from mfm_jax.mapper import MapperConfig, build_mapper
from mfm_jax.models.audiomae import AudioMAE, AudioMAEConfig
from mfm_jax.models.cavp import CAVPConfig, CAVPVideo
from mfm_jax.models.cnn14 import Cnn14Config, Cnn14Tagger
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.models.listener import Listener, ListenerConfig
from mfm_jax.models.t5 import T5Config, T5Encoder
from mfm_jax.models.text import EmptyText, EmptyTextConfig
from mfm_jax.models.timechat import TimeChat, TimeChatConfig
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.models.vae import VAE, VAEConfig
from mfm_jax.models.vocoder import Vocoder, VocoderConfig
from mfm_jax.paths import is_locked, locked, new_folder, write_text
from mfm_jax.settings import from_json, to_json
from mfm_jax.sharding import Axes
from mfm_jax.store import INDEX, Listed, Store, StoreError, write_store
from mfm_jax.weights import (
    WeightError,
    abstract,
    check_weights,
    named_axes,
    named_weights,
    with_weights,
)

FORMAT = 2


Shape = tuple[int, ...]


class BundleError(ValueError):
    """A bundle that cannot be opened or written; the message says what to do."""


class Kind(NamedTuple):
    """How a component is described and built."""

    config: type
    build: Callable[..., nnx.Module]


KINDS = {
    "cavp": Kind(CAVPConfig, CAVPVideo),
    "timechat": Kind(TimeChatConfig, TimeChat),
    "audiomae": Kind(AudioMAEConfig, AudioMAE),
    "mapper": Kind(MapperConfig, build_mapper),
    "unet": Kind(UNetConfig, UNet),
    "vae": Kind(VAEConfig, VAE),
    "vocoder": Kind(VocoderConfig, Vocoder),
    "text": Kind(EmptyTextConfig, EmptyText),
    "t5": Kind(T5Config, T5Encoder),
    "gpt2": Kind(GPT2Config, GPT2),  # that a mapper starts from
    "sequence": Kind(MapperConfig, build_mapper),  # AudioLDM2's own, from text to LOA
    "cnn14": Kind(Cnn14Config, Cnn14Tagger),  # for metrics
    "listener": Kind(ListenerConfig, Listener),  # for the scores of Foley clips
}

OWN_FOLDER = re.compile(rf"\.?({'|'.join(KINDS)})-[0-9a-f]{{8}}(\..*)?")


@dataclass(frozen=True)
class Settings:
    """What the components of a bundle agree on, and how they are sampled by default."""

    schedule: Schedule = field(default_factory=Schedule)  # that the UNet was trained with
    frames: int = 1024  # mel frames of 10 ms in a window
    overlap: float = 1.28  # seconds that the windows of a long video share
    sampler: str = "dpm++"  # "ddim" or "dpm++"
    steps: int = 25  # of the sampler
    guidance: float = 3.5  # scale of classifier-free guidance; 1 is none

    @property
    def seconds(self) -> float:
        """Length of a window."""
        return self.frames / 100


@dataclass(frozen=True)
class Source:
    """Where the weights of a component come from."""

    made_by: str  # the command that trained or converted them
    licence: str  # of the weights
    files: tuple[tuple[str, str], ...] = ()  # (name, SHA-256) of the files converted
    version: str = __version__  # of this project


class Component(NamedTuple):
    """A component to be written."""

    config: Any
    # A network, or its weights by name as they come: then no more than a part of them is held.
    weights: nnx.Module | Iterable[tuple[str, Any]]
    source: Source | Callable[[], Source]  # or what tells it once the weights are written
    # Puts files that belong to the component into its folder.
    add_files: Callable[[Path], None] = lambda folder: None


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
        network = abstract(lambda rngs: KINDS[name].build(entry.config, rngs=rngs))
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
        if _checksum(name, entry, self.path / entry.folder) == entry.checksum:
            return []
        return [f"bundle.json or {entry.folder}/{INDEX} was changed"]

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            have = ", ".join(self.entries) or "nothing"
            raise BundleError(f"bundle {self.path} has no {name!r}; it has {have}")
        return self.entries[name]


def _entry(name: str, data: dict) -> Entry:
    if name not in KINDS:
        raise BundleError(f"unknown component {name!r}; known are {', '.join(KINDS)}")
    if not OWN_FOLDER.fullmatch(data["folder"]):
        raise BundleError(f"{name} lies in {data['folder']!r}, which is no folder of a bundle")
    return Entry(
        from_json(KINDS[name].config, data["config"], f"{name}.config"),
        data["folder"],
        from_json(Source, data["source"], f"{name}.source"),
        data["parameters"],
        data["checksum"],
    )


def _checksum(name: str, entry: Entry, folder: Path) -> str:
    """Of what `bundle.json` says of the component and, through its index, of all that it has."""
    said = json.dumps([name, to_json(replace(entry, checksum=""))], sort_keys=True)
    return hashlib.sha256(said.encode() + (folder / INDEX).read_bytes()).hexdigest()


def write_bundle(
    path: Path,
    components: Mapping[str, Component | tuple[Any, nnx.Module, Source]],
    *,
    settings: Settings | Callable[[Settings], Settings] | None = None,
    base: Path | None = None,
    dtype: DTypeLike | None = None,
) -> Bundle:
    """Put `components` into the bundle at `path`, new or existing.

    Args:
        settings: replace the bundle's, or change them. A new bundle has those of `base`, or the
            default.
        base: a bundle whose other components are taken over (hard links where possible).
        dtype: precision of the stored floating-point weights; as they are if not given.

    Raises:
        BundleError: a component's name is unknown, or `path` holds something else.
    """
    path = Path(path)
    if unknown := sorted(components.keys() - KINDS.keys()):
        raise BundleError(f"unknown component {unknown[0]!r}; known are {', '.join(KINDS)}")
    if path.exists() and not path.is_dir():
        raise BundleError(f"{path} is a file: choose another place for the bundle")
    _existing(path)
    path.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        written = {}
        for name, component in components.items():
            folder = stack.enter_context(_new_component(path, name))
            written[name] = _write_component(name, Component(*component), folder, dtype)
        with locked(path):
            # Only now, as another process may have put something there in the meantime.
            old, from_base = _existing(path), Bundle.open(base) if base else None
            present = next((b.settings for b in (old, from_base) if b is not None), Settings())
            entries = {**(old.entries if old else {}), **written}
            if from_base is not None:
                entries |= _take_over(from_base, path, entries)
            if settings is None:
                settings = present
            _commit(path, settings(present) if callable(settings) else settings, entries)
    return Bundle.open(path)


def write_sizes(path: Path, configs: Mapping[str, Any], settings: Settings | None = None) -> None:
    """Write a bundle that has configs and no weights: for what asks for sizes alone.

    Raises:
        BundleError: there is a bundle at `path`.
    """
    if (path / "bundle.json").exists():
        raise BundleError(f"{path} is a bundle with weights: choose another place")
    path.mkdir(parents=True, exist_ok=True)
    nowhere = Source("no weights", "none")
    entries = {n: Entry(c, f"{n}-00000000", nowhere, 0) for n, c in configs.items()}
    _commit(path, settings or Settings(), entries)


def _existing(path: Path) -> Bundle | None:
    return Bundle.open(path) if (path / "bundle.json").exists() else None


@contextmanager
def _new_component(path: Path, name: str) -> Iterator[Path]:
    """A folder for a component, locked until it is named in `bundle.json` or given up."""
    folder = path / f"{name}-{secrets.token_hex(4)}"
    folder.mkdir()
    try:
        with locked(folder):
            yield folder
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


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
    return replace(entry, checksum=_checksum(name, entry, folder))


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
    """Copy the components that are not in `entries`."""
    others = {name: entry for name, entry in base.entries.items() if name not in entries}
    for entry in others.values():
        shutil.rmtree(path / entry.folder, ignore_errors=True)  # what a killed run may have left
        with new_folder(path / entry.folder) as folder:
            shutil.copytree(
                base.path / entry.folder, folder, dirs_exist_ok=True, copy_function=_link_or_copy
            )
    return others


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _commit(path: Path, settings: Settings, entries: Mapping[str, Entry]) -> None:
    """Name the new folders in `bundle.json`, then remove those that nobody names or writes."""
    data = {
        "format": FORMAT,
        "settings": to_json(settings),
        "components": {n: to_json(entries[n]) for n in KINDS if n in entries},
    }
    write_text(path / "bundle.json", json.dumps(data, indent=1) + "\n")
    for unfinished in path.glob(".bundle-*.json"):
        unfinished.unlink(missing_ok=True)
    keep = {entry.folder for entry in entries.values()}
    for folder in path.iterdir():
        if (
            OWN_FOLDER.fullmatch(folder.name)
            and folder.name not in keep
            and folder.is_dir()
            and not is_locked(folder)
        ):
            shutil.rmtree(folder, ignore_errors=True)

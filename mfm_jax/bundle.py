"""A bundle: every network that makes sound from video, in one directory.

`bundle.json` holds the format, the settings and, for each component, its config, the folder of its
Orbax checkpoint and where its weights come from. A component's folder is never changed once it is
named there, and `bundle.json` is replaced in one step: a bundle is the old one or the new one.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from flax import nnx
from jax.typing import DTypeLike

from mfm_jax.diffusion import Schedule
from mfm_jax.mapper import MapperConfig, build_mapper
from mfm_jax.models.audiomae import AudioMAE, AudioMAEConfig
from mfm_jax.models.cavp import CAVPConfig, CAVPVideo
from mfm_jax.models.t5 import T5Config, T5Encoder
from mfm_jax.models.text import EmptyText, EmptyTextConfig
from mfm_jax.models.timechat import TimeChat, TimeChatConfig
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.models.vae import VAE, VAEConfig
from mfm_jax.models.vocoder import Vocoder, VocoderConfig
from mfm_jax.paths import new_folder, write_text
from mfm_jax.settings import SettingError, from_json, to_json
from mfm_jax.weights import (
    WeightError,
    abstract,
    check_weights,
    count,
    named_weights,
    with_weights,
)

FORMAT = 1


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
}


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


@dataclass(frozen=True)
class Entry:
    """A component as `bundle.json` lists it."""

    config: Any
    folder: str
    source: Source
    parameters: int


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
        except (json.JSONDecodeError, KeyError, AttributeError, SettingError) as error:
            raise BundleError(f"{file} is damaged ({error}): make the bundle again") from None

    def config(self, name: str) -> Any:
        """The config of a component.

        Raises:
            BundleError: the bundle does not have it.
        """
        return self._entry(name).config

    def load(self, name: str, dtype: DTypeLike | None = None) -> Any:
        """The network `name` with its weights, in `dtype` or as stored.

        Raises:
            BundleError: the component is absent, or its weights are missing, unexpected,
                misshaped or unreadable; all of them are listed.
        """
        entry = self._entry(name)
        network = abstract(lambda rngs: KINDS[name].build(entry.config, rngs=rngs))
        folder = self.path / entry.folder
        where = f"{name} in bundle {self.path}"
        with ocp.StandardCheckpointer() as checkpointer:
            try:
                stored = checkpointer.metadata(folder.resolve()).item_metadata.tree
                check_weights(
                    named_weights(network), {n: a.shape for n, a in stored.items()}, where=where
                )
                target = {
                    n: jax.ShapeDtypeStruct(
                        a.shape,
                        a.dtype if dtype is None else dtype,
                        sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
                    )
                    for n, a in stored.items()
                }
                return with_weights(network, checkpointer.restore(folder.resolve(), target))
            except WeightError as error:
                raise BundleError(str(error)) from None
            except Exception as error:
                # Orbax and tensorstore raise many kinds for missing or damaged files.
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise BundleError(f"cannot read the weights of {where}: {reason}") from None

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            have = ", ".join(self.entries) or "nothing"
            raise BundleError(f"bundle {self.path} has no {name!r}; it has {have}")
        return self.entries[name]


def _entry(name: str, data: dict) -> Entry:
    if name not in KINDS:
        raise BundleError(f"unknown component {name!r}; known are {', '.join(KINDS)}")
    return Entry(
        from_json(KINDS[name].config, data["config"], f"{name}.config"),
        data["folder"],
        from_json(Source, data["source"], f"{name}.source"),
        data["parameters"],
    )


def write_bundle(
    path: Path,
    components: Mapping[str, tuple[Any, nnx.Module, Source]],
    *,
    settings: Settings | None = None,
    base: Path | None = None,
    dtype: DTypeLike | None = None,
) -> Bundle:
    """Put `components` (config, network, source) into the bundle at `path`, new or existing.

    Args:
        settings: replace the bundle's; a new bundle without any takes those of `base`, or the
            default.
        base: a bundle whose other components are taken over (hard links where possible).
        dtype: precision of the stored floating-point weights; as they are if not given.

    Raises:
        BundleError: a component's name is unknown, or `path` holds something else.
    """
    path = Path(path)
    if (path / "bundle.json").exists():
        old = Bundle.open(path)
        entries, settings = dict(old.entries), settings or old.settings
    else:
        entries = {}
    if base is not None:
        entries, settings = _take_over(Bundle.open(base), path, entries, components, settings)
    for name, (config, network, source) in components.items():
        if name not in KINDS:
            raise BundleError(f"unknown component {name!r}; known are {', '.join(KINDS)}")
        folder = f"{name}-{secrets.token_hex(4)}"
        _write_weights(path / folder, network, dtype)
        entries[name] = Entry(config, folder, source, count(network))
    _commit(path, settings or Settings(), entries)
    return Bundle.open(path)


def _take_over(base: Bundle, path: Path, entries, components, settings):
    for name, entry in base.entries.items():
        if name in components or name in entries:
            continue
        with new_folder(path / entry.folder) as folder:
            shutil.copytree(
                base.path / entry.folder, folder, dirs_exist_ok=True, copy_function=_link_or_copy
            )
        entries[name] = entry
    return entries, settings or base.settings


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _write_weights(folder: Path, network: nnx.Module, dtype: DTypeLike | None) -> None:
    weights: dict[str, Any] = named_weights(network)
    if dtype is not None:
        weights = {n: w.astype(dtype) for n, w in weights.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.resolve(), weights)


def _commit(path: Path, settings: Settings, entries: Mapping[str, Entry]) -> None:
    """Name the new folders in `bundle.json`, then remove those that it no longer names."""
    data = {
        "format": FORMAT,
        "settings": to_json(settings),
        "components": {n: to_json(entries[n]) for n in KINDS if n in entries},
    }
    before = {p for p in path.iterdir() if p.is_dir()} if path.is_dir() else set()
    write_text(path / "bundle.json", json.dumps(data, indent=1) + "\n")
    keep = {entry.folder for entry in entries.values()}
    for folder in before:
        if folder.name not in keep and folder.name.rpartition("-")[0] in KINDS:
            shutil.rmtree(folder, ignore_errors=True)

"""Recipes that learn from pictures and sound themselves, and leave a component of a bundle."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flax import nnx

from mfm_jax.bundle import Bundle, Component, Settings, Source, write_bundle
from mfm_jax.bundle.bundle import check_settings
from mfm_jax.bundle.licences import trained_source
from mfm_jax.data.clips import Clip
from mfm_jax.data.decoded import (
    DESCRIPTION,
    ClipSpec,
    DecodedSource,
    DecodedSpec,
    write_decoded,
)
from mfm_jax.data.loader import CachedDataset, Element
from mfm_jax.data.records import FAILED, Failure, check_same
from mfm_jax.data.sources import SPLITS, Split
from mfm_jax.runtime.distributed import say
from mfm_jax.storage.files import check_folder
from mfm_jax.storage.locks import one_at_a_time
from mfm_jax.storage.paths import array_path
from mfm_jax.train.recipe import Recipe


@dataclass(frozen=True)
class BundleRecipe(Recipe):
    """A recipe whose network becomes a component of a bundle."""

    bundle: str = ""  # folder of the bundle that networks come from and go to; empty: the workdir
    settings: Settings = field(default_factory=Settings.tiny)  # of the bundle, where it is new

    def check(self, workdir: Path) -> None:
        path = self.bundle_path(workdir)
        if (path / "bundle.json").exists():
            Bundle.open(path)
        else:
            check_folder(path)
            check_settings(self.settings)
        self.source.check()

    def read(self, element: Element) -> Element:
        """Return what of an element is used; computed once and kept in memory."""
        raise NotImplementedError

    def cached(self, train: Any, heldout: Any) -> Split:
        """Return both datasets after `read`, cut to the limits of the source; log what is cut."""
        found = []
        for name, dataset, limit in zip(SPLITS, (train, heldout), self.source.limits, strict=True):
            if limit is not None and len(dataset) > limit:
                say(f"{name}: {limit} of {len(dataset)} clips, as recipe.source says")
            elif limit is not None and len(dataset) < limit and self.source.made:
                say(f"{name}: {len(dataset)} clips are there, of {limit} in recipe.source")
            found.append(CachedDataset(dataset, self.read, limit))
        return Split(*found)

    def fill(
        self,
        folders: Split,
        description: str,
        workdir: Path,
        write: Callable[[list[Clip], Path], list[Failure]],
    ) -> None:
        """Write what `folders` lack of the source's clips; log how many clips are left out.

        Args:
            description: the file with which a folder is complete.
            write: writes a list of clips into a folder and returns those left out.

        Raises:
            DataError: a folder holds other clips, or none can be read.
        """
        if self.source.made and all((folder / description).exists() for folder in folders):
            return
        clips = self.source.clips(workdir)
        with one_at_a_time(folders.train.parent):
            for its, folder in zip(clips, folders, strict=True):
                if failed := write(its, folder):
                    left_out = f"{len(failed)} of {len(its)} clips are left out"
                    say(f"{folder}: {left_out}, see {FAILED} there")

    def decoded(self, spec: DecodedSpec, workdir: Path, folder: str = "") -> Split:
        """Return both datasets of decoded clips, made where they are missing.

        Args:
            folder: their place in the source's folder of decoded clips.

        Raises:
            DataError: a folder holds other clips, or none can be read.
        """
        top = self.source.decoded(workdir) / folder
        folders = Split(*(top / name for name in SPLITS))
        decode = partial(write_decoded, labels=self.source.labels, processes=os.cpu_count() or 1)
        self.fill(folders, DESCRIPTION, workdir, lambda clips, place: decode(clips, spec, place))
        datasets = Split(*map(DecodedSource, folders))
        for place, dataset in zip(folders, datasets, strict=True):
            check_same(place, {"spec": dataset.about["spec"]}, {"spec": asdict(spec)})
        return self.cached(*datasets)

    def bundle_path(self, workdir: Path) -> Path:
        """Return the folder of the bundle."""
        return array_path(self.bundle) if self.bundle else workdir

    def provenance(self, command: str, components: Sequence[str], bundle: Bundle | None) -> Source:
        """Return where a network comes from that was trained with `components` of `bundle`."""
        return trained_source(
            command,
            bundle=bundle,
            components=components,
            data_licence=self.source.data_licence,
        )

    def write_component(
        self,
        name: str,
        config: Any,
        module: nnx.Module,
        workdir: Path,
        command: str,
        *,
        trained_with: tuple[str, ...] = (),
    ) -> Bundle:
        """Write the trained network into the bundle; see `write_components`."""
        return self.write_components(
            {name: (config, module)}, workdir, command, trained_with=trained_with
        )

    def write_components(
        self,
        networks: Mapping[str, tuple[Any, nnx.Module]],
        workdir: Path,
        command: str,
        *,
        trained_with: tuple[str, ...] = (),
    ) -> Bundle:
        """Write networks that were trained at once into the bundle, with their configs.

        Args:
            trained_with: components of the bundle whose outputs they were trained on.
        """
        path = self.bundle_path(workdir)
        new = not (path / "bundle.json").exists()
        source = self.provenance(command, trained_with, None if new else Bundle.open(path))
        components = {
            name: Component(config, module, source) for name, (config, module) in networks.items()
        }
        return write_bundle(path, components, settings=self.settings if new else None)


@dataclass(frozen=True)
class DecodedRecipe(BundleRecipe):
    """A recipe that learns from decoded clips: the frames and the sound of one window of each."""

    spec: ClipSpec = field(default_factory=ClipSpec.tiny)  # what is decoded of a clip

    def prepare(self, workdir: Path) -> Split:
        return self.decoded(self.spec, workdir)

"""A model of the command line: how it is read from files and written to them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from convert.incoming import Derived, Incoming
from convert.licences import LICENCE, stated
from convert.outgoing import Outgoing
from convert.source import Averaged, Weights, open_weights, read_json
from convert.spelling import Known, averaged, spelled, without_averages
from convert.table import Table
from convert.tensors import SourceError
from mfm_jax.bundle import COMPONENTS, Bundle, format2
from mfm_jax.bundle.limits import check_numbers
from mfm_jax.diffusion import Schedule
from mfm_jax.runtime.config import from_json, to_json

CONFIG = "config.json"
WEIGHTS = "model.safetensors"  # as transformers names it, and we
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
OURS = "_mfm_jax"
"""The key of a config.json that holds our own configuration."""


@dataclass(frozen=True)
class Request:
    """The sources of a model, and the user's options for reading them."""

    sources: tuple[Path, ...]  # files or folders
    licence: str | None = None  # of the weights, as the user says
    excuse: Sequence[str] = ()  # patterns of keys that may be in two files
    vocabulary: Path | None = None  # bert-base-uncased's vocab.txt, for TimeChat
    config: Path | None = None  # for sizes other than the released of a network without one
    only: Sequence[str] = ()  # components of a model that has several; all if empty
    averaged: bool = False  # take averages (EMA) of the weights where there are some
    notes: list[str] = field(default_factory=list)  # lines for the user, added when reading

    def folder(self) -> Path:
        """Return the only source, a folder with a config.json.

        Raises:
            SourceError: there are several sources, or it is not a folder.
        """
        if len(self.sources) != 1 or not self.sources[0].is_dir():
            raise SourceError("give one folder that holds both config.json and the weights")
        return self.sources[0]

    def weights(self, known: Known) -> Weights:
        """Open the weights of the only source, as `open` does.

        Raises:
            SourceError: there are several sources, or it cannot be read.
        """
        if len(self.sources) != 1:
            raise SourceError(f"this model has one source, {len(self.sources)} are given")
        return self.open(self.sources[0], known)

    def open(self, path: Path, known: Known, *, averages_in: Path | None = None) -> Weights:
        """Open weights under the names that a network knows, and averages of them if wanted.

        Args:
            averages_in: a folder that has the averages, if it is there and `path` has none.

        Raises:
            SourceError: it cannot be read.
            ConversionError: two tensors have the same name, or averages do not fit.
        """
        weights = open_weights(path, excuse=self.excuse)
        tensors, inside, where = without_averages(weights.tensors)
        averages, only, files = weights.averaged, weights.only_averages, weights.files
        if inside and tensors:
            averages = Averaged(where, inside, weights.files)
        elif inside:
            tensors, only = inside, where
        elif averages is None and averages_in is not None and averages_in.is_dir():
            found = open_weights(averages_in)
            averages = Averaged(averages_in.name, found.tensors, found.files)
        if only:
            self.notes.append(f"{path}: has only averages (EMA) of the weights, in {only}")
        if averages is not None and self.averaged:
            raw, tensors = tensors, averaged(tensors, averages)
            files = (*files, *(file for file in averages.files if file not in files))
            count = sum(tensors[name] is not tensor for name, tensor in raw.items())
            self.notes.append(
                f"{path}: the averages (EMA) in {averages.where} are taken, "
                f"of {count} of {len(raw)} tensors"
            )
        elif averages is not None:
            self.notes.append(
                f"{path}: has averages (EMA) of the weights in {averages.where}; "
                "the weights are taken, with --ema the averages"
            )
        return Weights(spelled(tensors, known, self.excuse), files)


class Read(NamedTuple):
    """The components of a model, for a bundle."""

    parts: list[Incoming | Derived]
    schedule: Schedule | None = None  # that the UNet was trained with


@dataclass(frozen=True)
class Model:
    """A model of the command line."""

    read: Callable[[Request], Read]
    write: Callable[[Bundle], list[Outgoing]]
    # Files to download from a repository of the hub.
    patterns: tuple[str, ...] = ("*.json", "*.safetensors", "*.bin", "*.txt", "*.model")


def own_config(request: Request, kind: type) -> Any:
    """Return the configuration in an export or in the user's `--config`, or None.

    Raises:
        SourceError: it is damaged, or belongs to another network.
    """
    for file, data in _exported(request):
        try:
            # Fields of older exports have other names, as those of older bundles.
            component = next(name for name, known in COMPONENTS.items() if known.config is kind)
            told = format2.read_config(component, data[OURS])
            check_numbers(told, OURS)
            return from_json(kind, told, OURS)
        except ValueError as error:
            raise SourceError(f"{file}: {error}") from None
    if request.config:
        raise SourceError(f"{request.config} was not exported from here: it has no {OURS!r}")
    return None


def own_licence(request: Request, released: str) -> str:
    """Return the licence of weights that may have been exported from here.

    It is what the user says, else what the export says, else `released`.
    """
    config = next((data for _, data in _exported(request)), {})
    return stated(request.licence, config, released)


def _exported(request: Request) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """Yield the config.json files that were written here."""
    beside = [source for source in request.sources if (source / CONFIG).is_file()]
    for file in [request.config] if request.config else [source / CONFIG for source in beside]:
        data = read_json(file.parent, file.name)
        if OURS in data:
            yield file, data


def write_own(component: str, table: Callable[[Any], Table]) -> Callable[[Bundle], list[Outgoing]]:
    """Return a `Model.write` for a network that no library supports: with the original's names."""

    def write(bundle: Bundle) -> list[Outgoing]:
        config = bundle.config(component)
        described = {
            "_class_name": COMPONENTS[component].build.__name__,
            OURS: to_json(config),
            LICENCE: bundle.entries[component].source.licence,
        }
        return [Outgoing(component, table(config), {CONFIG: described}, {"": WEIGHTS})]

    return write

"""Find weights: in a file, a folder of shards, or a repository of the Hugging Face hub."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convert import safetensors_file, torch_file
from convert.tensors import Problem, SourceError, Tensor, about, excused, listed
from convert.torch_file import is_average
from mfm_jax.storage.copies import kept_copy
from mfm_jax.storage.hub import (
    Address,
    HubError,
    download,
    read_address,
    read_short,
    snapshot_of,
)
from mfm_jax.storage.paths import user_path

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".npz")
# The files that a library looks for, in its order; the first that is there is used. transformers
# prefers a whole file to an index (modeling_utils.py, _get_resolved_checkpoint_files), diffusers an
# index to a whole file (models/modeling_utils.py, from_pretrained).
LIBRARIES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ("diffusion_pytorch_model.bin.index.json", "diffusion_pytorch_model.bin"),
)
SAFETENSORS = LIBRARIES[:2]
# Both libraries put the name of a variant, such as fp16, into the name of a file: before the suffix
# of a whole file, and before the last suffix of an index or, earlier, elsewhere in it.
VARIANT = re.compile(
    r"(?P<name>(diffusion_pytorch_|pytorch_)?model)(\.(?P<a>\w+))?\.(?P<kind>safetensors|bin)"
    r"(?P<index>(\.(?P<b>\w+))?\.index(\.(?P<c>\w+))?\.json)?"
)
INDEX = re.compile(r".*\.index(\.\w+)?\.json")
AVERAGED = "ema"
"""The variant with averages of the weights."""
JSON = 10 << 20  # bytes at most of a file of settings or an index


@dataclass(frozen=True)
class Averaged:
    """Averages (EMA) of the weights that lie beside these."""

    where: str  # the entry, the prefix or the file that has them
    tensors: Mapping[str, Tensor]
    files: tuple[Path, ...]
    named: bool = True  # otherwise they are a list, and cannot be taken


@dataclass(frozen=True)
class Weights:
    """The tensors of a source, not read yet."""

    tensors: dict[str, Tensor]
    files: tuple[Path, ...]  # that hold them, an index included
    averaged: Averaged | None = None
    only_averages: str = ""  # where they are, if these are averages and there are no others


def is_hub_source(source: str) -> bool:
    """Return whether a source is read from the hub: an address, or a name that is no path here."""
    if read_address(source) is not None:
        return True
    return _short(source) is not None and not Path(source).exists()


def _short(source: str) -> Address | None:
    """Return what `organisation/name[@revision]` means; the name of a missing file is no such."""
    return None if source.endswith(SUFFIXES) else read_short(source)


def resolve(
    source: str, *, patterns: Sequence[str] | None = None, revision: str | None = None
) -> Path:
    """Return the path `source`, or where it lies in the hub's cache once it is downloaded.

    What lies in an object store is copied to this machine.

    Args:
        source: a path, an address, or `organisation/name[@revision]` of the hub.
        patterns: files of the repository to download; all by default.
        revision: a branch, a tag or a commit of the repository.

    Raises:
        SourceError: it is no file or folder.
        HubError: an address cannot be downloaded.
    """
    if (address := read_address(source)) is not None:
        return download(_at(address, revision), patterns)
    path = user_path(source)
    with about(path):
        if path.exists():
            return kept_copy(path)
    if (address := _short(source)) is None:
        raise SourceError(f"{source}: no such file or folder")
    try:
        return download(_at(address, revision), patterns)
    except HubError as error:
        raise SourceError(
            f"{source}: no such file or folder, and the hub does not give it ({error})"
        ) from None


def _at(address: Address, revision: str | None) -> Address:
    """Return the address at a revision that is given apart from it."""
    if revision and address.revision:
        raise SourceError(f"{address} names a revision: leave --revision out")
    return address._replace(revision=revision) if revision else address


def open_weights(path: Path, *, excuse: Sequence[str] = ()) -> Weights:
    """Open a checkpoint file, an index of shards, or a folder with one of these.

    The content of a file decides its format. Links out of a folder are not followed. Of several
    files in a folder the one counts that transformers or diffusers would choose.

    Args:
        excuse: patterns of names that may be in several shards; the last one is taken.

    Raises:
        SourceError: there is no checkpoint or several, it cannot be read, or shards do not fit
            their index.
    """
    if not path.is_dir():
        return _open(path, excuse)
    chosen, averaged = _chosen(path)
    weights = _open(contained(path, chosen), excuse)
    if is_average(chosen):
        weights = replace(weights, only_averages=chosen)
    if weights.averaged is None and averaged:
        weights = replace(weights, averaged=_averages(path, averaged, excuse))
    return weights


def _averages(folder: Path, name: str, excuse: Sequence[str]) -> Averaged | None:
    """Return the averages in a file of `folder`, or None if one of no library holds no weights."""
    try:
        found = _open(contained(folder, name), excuse)
    except SourceError:
        if _told(name):
            raise
        return None
    return Averaged(name, found.tensors, found.files)


def _open(path: Path, excuse: Sequence[str]) -> Weights:
    """Open a checkpoint file or an index of shards."""
    if INDEX.fullmatch(path.name):
        return _open_shards(path, excuse)
    saved = _saved(path)
    averaged = None
    if saved.averaged and saved.tensors:
        averaged = Averaged(saved.averaged_in, saved.averaged, (path,))
    elif saved.unnamed:
        averaged = Averaged(saved.unnamed, {}, (path,), named=False)
    only = "" if saved.tensors else saved.averaged_in
    return Weights(saved.tensors or saved.averaged, (path,), averaged, only)


def _saved(path: Path) -> torch_file.Saved:
    with about(path):
        if path.exists() and not path.is_file():  # to read a pipe would wait forever
            raise Problem("is no file: give a checkpoint, or a folder with one")
        with path.open("rb") as file:
            start = file.read(1024)
    of_torch = start.startswith((torch_file.ZIP, torch_file.PLAIN))
    # An unrecognised file with this suffix gets the errors of the safetensors reader.
    damaged = path.suffix == ".safetensors" and not of_torch and not torch_file.what_else(start)
    if damaged or safetensors_file.is_safetensors(path):
        return torch_file.Saved(safetensors_file.read_header(path))
    return torch_file.saved(path)


def _chosen(folder: Path) -> tuple[str, str | None]:
    """Return the file with the weights in `folder`, or their index; and one with averages."""
    with about(folder):
        names = sorted(file.name for file in folder.iterdir() if not file.is_dir())
        files = [name for name in names if name.endswith(SUFFIXES)]
        named = [name for name in files if is_average(name) and not _told(name)]
        variants = _variants(names)
        variant = _preferred(variants.pop(AVERAGED, {}))
        # Of several other files, such as shards, nothing tells which has them.
        averaged = next(iter(variant), named[0] if len(named) == 1 else None)
        for found in (_preferred(variants.pop("", {})), _indices(names), *_of_one(variants)):
            if len(found) > 1:
                raise Problem(f"holds several checkpoints: name one of {listed(found)}")
            if found:
                return found[0], averaged
        if variant:
            return variant[0], None
        found = [name for name in files if name not in named] or named
        if len(found) > 1:
            raise Problem(f"holds several checkpoints: name one of {listed(files)}")
        if found:
            return found[0], averaged if averaged != found[0] else None
        raise Problem(f"holds no checkpoint: no file ends in {', '.join(SUFFIXES)}")


def _variants(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the libraries' files by variant, each by its name without it; "" is none."""
    variants: dict[str, dict[str, str]] = {}
    for name in names:
        if told := _told(name):
            variant, plain = told
            variants.setdefault(variant, {})[plain] = name
    return variants


def _told(name: str) -> tuple[str, str] | None:
    """Return the variant of a library's file and its name without it, or None for other files."""
    found = VARIANT.fullmatch(name)
    if found is None:
        return None
    plain = f"{found['name']}.{found['kind']}{'.index.json' if found['index'] else ''}"
    known = any(plain in order for order in LIBRARIES)
    return (found["a"] or found["b"] or found["c"] or "", plain) if known else None


def _preferred(files: Mapping[str, str]) -> list[str]:
    """Return what each library would open, those with safetensors if any; `files` by plain name."""
    for libraries in (SAFETENSORS, LIBRARIES):
        found = [next((files[n] for n in order if n in files), None) for order in libraries]
        if any(found):
            return [name for name in found if name]
    return []


def _of_one(variants: Mapping[str, Mapping[str, str]]) -> list[list[str]]:
    """Return the files of the only variant; if there are several, those of all of them."""
    return [[name for files in variants.values() for name in _preferred(files)]]


def _indices(names: Iterable[str]) -> list[str]:
    """Return the indices of shards with other names; one of safetensors if there is any."""
    found = [name for name in names if INDEX.fullmatch(name) and not _told(name)]
    return [n for n in found if ".safetensors." in n] or [n for n in found if ".bin." in n]


def _open_shards(index: Path, excuse: Sequence[str]) -> Weights:
    folder = index.parent
    places = read_json(folder, index.name).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
        raise SourceError(f"{index} has no weight_map of names and files: it is damaged")
    names = sorted(set(places.values()))
    files = {name: contained(folder, name) for name in names}
    with about(index):
        missing = [name for name, file in files.items() if not file.is_file()]
        if missing:
            raise Problem(f"lists files that are missing: {listed(missing)}")
    shards = {name: _saved(file).tensors for name, file in files.items()}
    for problem, keys in _misfits(places, shards, excuse):
        if keys:
            raise SourceError(f"{index} does not fit its shards, {problem}: {listed(keys)}")
    # Later shards replace earlier ones.
    tensors = {key: tensor for shard in shards.values() for key, tensor in shard.items()}
    return Weights(tensors, (index, *files.values()))


def _misfits(
    places: Mapping[str, str], shards: Mapping[str, Mapping[str, Tensor]], excuse: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yield each way in which an index and its shards can differ, and the keys that do."""
    yield (
        "not where it says",
        [f"{key} in {name}" for key, name in places.items() if key not in shards[name]],
    )
    keys = [key for shard in shards.values() for key in shard]
    yield "not in the index", sorted(set(keys) - places.keys())
    counted = Counter(keys)
    yield (
        "duplicated",
        [key for key, times in counted.items() if times > 1 and not excused(key, excuse)],
    )


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in a file of `folder`.

    Raises:
        SourceError: it is missing, outside the folder, larger than 10 MiB, or no JSON object.
    """
    path = contained(folder, name)
    with about(path):
        if not path.is_file():
            raise Problem("is missing")
        if path.stat().st_size > JSON:
            raise Problem(f"has more than {JSON} bytes, too many for a file of settings")
        try:
            content = json.loads(path.read_bytes().decode())
        except (ValueError, RecursionError):
            raise Problem("is not valid JSON: it is damaged, get it again") from None
        if not isinstance(content, dict):
            raise Problem("is not a JSON object: it is damaged, get it again")
    return content


def contained(folder: Path, name: str) -> Path:
    """Return the path of the file `name` in `folder`.

    Raises:
        SourceError: after following all links it would be outside.
    """
    path = folder / name
    with about(folder):
        parts = Path(name).parts
        if not parts or Path(name).is_absolute() or ".." in parts or "\0" in name:
            raise Problem(f"would lead outside: {name} is not the name of a file in it")
        try:
            inside = path.resolve().is_relative_to(_root(folder))
        except RuntimeError:
            raise Problem(f"has a link that leads nowhere: {name}") from None
        if not inside:
            raise Problem(f"has a link that leads outside: {name}; give the file itself")
    return path


def _root(folder: Path) -> Path:
    """Return where a folder's links may lead: the folder, or its repository in the hub's cache.

    Snapshots there are links: `models--org--name/snapshots/REVISION/f` to `../../blobs/HASH`.
    """
    folder = folder.resolve()
    snapshot = snapshot_of(folder)
    return folder if snapshot is None else snapshot.parents[1]

"""Find weights: in a file, a folder of shards, or a repository of the Hugging Face hub."""

import fnmatch
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert import safetensors_file, torch_file
from convert.tensors import Problem, SourceError, Tensor, about, excused, listed
from mfm_jax.errors import first_line

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
# File patterns to search a folder for, in order; the first with a match is used.
SEARCHED = (
    ("*.safetensors.index.json",),
    ("model.safetensors", "diffusion_pytorch_model.safetensors"),
    ("*.bin.index.json",),
    ("pytorch_model.bin", "diffusion_pytorch_model.bin"),
    tuple(f"*{suffix}" for suffix in SUFFIXES),
)
JSON = 10 << 20  # bytes at most of a file of settings or an index


@dataclass(frozen=True)
class Weights:
    """The tensors of a source, not read yet."""

    tensors: dict[str, Tensor]
    files: tuple[Path, ...]  # that hold them, an index included


def is_hub_id(text: str) -> bool:
    """Return whether `text` looks like a repository on the hub, `organisation/name`."""
    name = r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?"
    return (
        re.fullmatch(f"{name}/{name}", text) is not None
        and not any(pair in text for pair in ("..", "--"))
        and not text.endswith(SUFFIXES)
    )


def resolve(
    source: str, *, patterns: Sequence[str] | None = None, revision: str | None = None
) -> Path:
    """Return the path `source`, or the folder to which the repository `source` was downloaded.

    Args:
        patterns: files of the repository to download; all by default.
        revision: a branch, a tag or a commit of the repository.

    Raises:
        SourceError: it is no file or folder, and cannot be downloaded.
    """
    path = Path(source)
    with about(path):
        if path.exists():
            return path
    if not is_hub_id(source):
        raise SourceError(f"{source}: no such file or folder")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise SourceError(
            f"{source}: no such file or folder; to get it from the hub, pip install huggingface_hub"
        ) from None
    allowed = None if patterns is None else list(patterns)
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=allowed))
    except Exception as error:
        # The hub's library and those under it raise many types.
        raise SourceError(
            f"{source}: no such file or folder, and the hub does not give it: {first_line(error)}"
        ) from None


def open_weights(path: Path, *, excuse: Sequence[str] = ()) -> Weights:
    """Open a checkpoint file, an index of shards, or a folder with one of these.

    The content of a file decides its format. Links out of a folder are not followed.

    Args:
        excuse: patterns of names that may be in several shards; the last one is taken.

    Raises:
        SourceError: there is no checkpoint or several, it cannot be read, or shards do not fit
            their index.
    """
    path = Path(path)
    if path.is_dir():
        path = contained(path, _chosen(path))
    if path.name.endswith(".index.json"):
        return _open_shards(path, excuse)
    return Weights(_tensors(path), (path,))


def _tensors(path: Path) -> dict[str, Tensor]:
    with about(path), path.open("rb") as file:
        start = file.read(1024)
    of_torch = start.startswith((torch_file.ZIP, torch_file.PLAIN))
    # An unrecognised file with this suffix gets the errors of the safetensors reader.
    damaged = path.suffix == ".safetensors" and not of_torch and not torch_file.what_else(start)
    if damaged or safetensors_file.is_safetensors(path):
        return safetensors_file.read_header(path)
    return torch_file.state_dict(path)


def _chosen(folder: Path) -> str:
    """Return the name of the file in `folder` with the weights or their index."""
    with about(folder):
        names = [file.name for file in folder.iterdir() if not file.is_dir()]
        for patterns in SEARCHED:
            found = [n for n in names if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
            if len(found) > 1:
                raise Problem(f"holds several checkpoints: name one of {listed(found)}")
            if found:
                return found[0]
        raise Problem(f"holds no checkpoint: no file ends in {', '.join(SUFFIXES)}")


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
    shards = {name: _tensors(file) for name, file in files.items()}
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
    for snapshots in folder.parents:
        if snapshots.name == "snapshots" and snapshots.parent.name.startswith("models--"):
            return snapshots.parent
    return folder

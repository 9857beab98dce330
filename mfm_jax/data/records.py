"""A dataset of clips on disk: ArrayRecord shards that TFDS describes and Grain reads.

Shards are written one at a time, each whole or not at all, so that a dataset of any size needs
little memory and an interrupted one continues where it stopped. TFDS's own builder holds all
examples until the end, and needs TensorFlow beyond 1 GB (core/shuffle.py, TFDS 4.9.10).
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from mfm_jax.data.clips import Clip, DataError
from mfm_jax.errors import system_reason
from mfm_jax.runtime.failures import LOG
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.copies import kept_copy
from mfm_jax.storage.files import (
    atomic_write,
    flush,
    flush_tree,
    names_in,
    remove_tree,
    rename,
    write_text,
)
from mfm_jax.storage.parts import remove_parts, report_full_disk
from mfm_jax.storage.paths import user_path
from mfm_jax.storage.retries import AddressError
from mfm_jax.storage.scratch import scratch

SHARD = 256
"""Clips in one file by default: an interruption loses at most so much work."""

RECORDS, SHARDS, UNFINISHED, FAILED = "records", "shards", "unfinished.json", "failed.csv"
LEASES = "leases"
"""The parts of a dataset folder. The file that describes it appears last: then it is complete."""


class Field(NamedTuple):
    """Shape and type of one array of every example."""

    shape: tuple[int, ...]
    dtype: str


class Failure(NamedTuple):
    """A clip that is not in the dataset."""

    id: str
    reason: str


def digest(data: Any) -> str:
    """Return the SHA-256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class DatasetWriter:
    """Writes a dataset folder. Several processes may write shards of it."""

    folder: Path
    name: str  # of the file that describes the finished dataset
    fields: Mapping[str, Field]
    shards: tuple[tuple[Clip, ...], ...]  # the clips of each file

    @classmethod
    def open(
        cls,
        folder: Path,
        name: str,
        about: Mapping[str, Any],
        fields: Mapping[str, Field],
        clips: Iterable[Clip],
        *,
        shard: int | None = None,
    ) -> "DatasetWriter":
        """Open a new or empty folder, or continue one begun with the same `about` and clips.

        Args:
            shard: clips in one file; `SHARD` if not given.

        Raises:
            DataError: the folder holds something else, or there are no clips.
        """
        size = SHARD if shard is None else shard
        ordered = tuple(sorted(clips))
        if not ordered:
            raise DataError(f"no clips for {folder}: name at least one")
        about = {**about, "clips": len(ordered), "ids": digest([clip.id for clip in ordered])}
        about["fields"] = {n: [list(f.shape), f.dtype] for n, f in sorted(fields.items())}
        about |= {"shard": size} if size != SHARD else {}  # as the default is not told
        shards = tuple(ordered[i : i + size] for i in range(0, len(ordered), size))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            there = set(names_in(folder))
        except AddressError:
            raise
        except OSError as error:
            reason = system_reason(error)
            raise DataError(f"cannot write {folder} ({reason}): choose another folder") from None
        if begun := there & {name, UNFINISHED}:
            default, found = {"shard": SHARD}, read_about(folder / begun.pop())
            found["fields"] = dict.fromkeys(about["fields"]) | found["fields"]
            about["fields"] = dict.fromkeys(found["fields"]) | about["fields"]
            # What only the folder says, such as a precision, was not asked for now.
            check_same(folder, default | found, dict.fromkeys(found) | default | about)
        elif any(not entry.startswith(".") for entry in there - {LOG}):
            raise DataError(f"{folder} is not empty and no dataset: choose another folder")
        else:
            write_text(folder / UNFINISHED, json.dumps(about, indent=1) + "\n")
        (folder / RECORDS).mkdir(exist_ok=True)
        for place in (folder, folder / RECORDS, folder / SHARDS):
            remove_parts(place)
        return cls(folder, name, fields, shards)

    def missing(self) -> list[int]:
        """Return the numbers of the shards that are not written yet."""
        there = set(names_in(self.folder / SHARDS))
        return [i for i in range(len(self.shards)) if self._note(i).name not in there]

    def write(
        self, shard: int, examples: Iterable[dict[str, np.ndarray] | Failure]
    ) -> list[Failure]:
        """Write one shard and return the clips that are not in it.

        Args:
            examples: for each clip of the shard, in order, its arrays or why it has none.
        """
        serialise, failed, size, count = _serialiser(self.fields), [], 0, 0
        with atomic_write(self._shard(shard)) as part:
            with closing(_writer(part)) as out:
                for clip, example in zip(self.shards[shard], examples, strict=True):
                    if isinstance(example, Failure):
                        failed.append(example)
                        continue
                    record = serialise({"id": _bytes(clip.id), **example})
                    out.write(record)
                    size, count = size + len(record), count + 1
            flush(part)  # before a note says that it is there
        flush(self.folder / RECORDS)
        note = {"examples": count, "bytes": size, "failed": failed}
        write_text(self._note(shard), json.dumps(note) + "\n")
        return failed

    def finish(self) -> list[Failure]:
        """Describe the dataset once all shards are there, and return the clips that are not in it.

        Raises:
            DataError: no clip at all is in it; the folder is removed.
        """
        notes = self._notes()
        failed = _failures(notes)
        if not any(note["examples"] for note in notes):
            self._remove()
            raise DataError(f"none of {len(failed)} clips can be used: {failed[0].reason}")
        if (self.folder / UNFINISHED).exists():
            self._list_failed(failed)
            with report_full_disk(self.folder):
                self._describe([n["examples"] for n in notes], sum(n["bytes"] for n in notes))
            flush_tree(self.folder)  # before the description says that it is there
            with suppress(FileNotFoundError):  # another process was as fast
                rename(self.folder / UNFINISHED, self.folder / self.name)
            flush(self.folder)
        remove_tree(self.folder / LEASES)
        return failed

    def _remove(self) -> None:
        """Remove everything but the record of faults of the program."""
        for name in (UNFINISHED, FAILED):
            (self.folder / name).unlink(missing_ok=True)
        for name in (RECORDS, SHARDS, LEASES):
            remove_tree(self.folder / name)
        if not (self.folder / LOG).exists():
            remove_tree(self.folder)

    def _list_failed(self, failed: Iterable[Failure]) -> None:
        with (
            atomic_write(self.folder / FAILED) as part,
            part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            csv.writer(file, lineterminator="\n").writerows([("clip", "reason"), *failed])

    def failed(self) -> list[Failure]:
        """Return the clips that failed in the shards written so far."""
        return _failures(self._notes())

    def _notes(self) -> list[dict[str, Any]]:
        """Read the notes of the shards written so far."""
        files = [self._note(i) for i in range(len(self.shards))]
        return [_read_note(file) for file in files if file.exists()]

    def _shard(self, shard: int) -> Path:
        name = f"clips-train.array_record-{shard:05d}-of-{len(self.shards):05d}"
        return self.folder / RECORDS / name

    def _note(self, shard: int) -> Path:
        return self.folder / SHARDS / f"{shard:05d}.json"

    def _describe(self, lengths: Sequence[int], size: int) -> None:
        """Write the metadata that `tfds.builder_from_directory` reads."""
        target = self.folder / RECORDS
        if isinstance(target, StorePath):
            with scratch(RECORDS) as folder:
                shards = {self._shard(shard).name for shard in range(len(self.shards))}
                for name in shards:
                    (folder / name).touch()  # TFDS looks at the names alone
                self._describe_in(folder, lengths, size)
                for file in folder.iterdir():
                    if file.name not in shards:
                        (target / file.name).put(file)
        else:
            self._describe_in(target.resolve(), lengths, size)

    def _describe_in(self, folder: Path, lengths: Sequence[int], size: int) -> None:
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name="clips", split="train", filetype_suffix="array_record"
        )
        split = tfds.core.SplitInfo(
            name="train", shard_lengths=lengths, num_bytes=size, filename_template=template
        )
        tfds.folder_dataset.write_metadata(
            data_dir=folder,
            features=_features(self.fields),
            split_infos=[split],
            check_data=False,  # it would need TensorFlow
            disable_shuffling=True,  # the clips are in the order of their ids
        )


def _bytes(name: str) -> bytes:
    """Return the bytes of a name that Python decoded, which need not be UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def _failures(notes: Iterable[Mapping[str, Any]]) -> list[Failure]:
    return [Failure(*failure) for note in notes for failure in note["failed"]]


def _read_note(file: Path) -> dict[str, Any]:
    found = _read_json(file)
    if found is None or not {"examples", "bytes", "failed"} <= found.keys():
        raise DataError(f"{file} is damaged: remove it and start again")
    return found


def read_about(file: Path) -> dict[str, Any]:
    """Read the description of a dataset.

    Raises:
        DataError: there is nothing, or it is not finished, or damaged.
    """
    try:
        found = _read_json(file)
    except FileNotFoundError:
        raise DataError(
            f"{file.parent} is no finished dataset (no {file.name}): make it (again)"
        ) from None
    if found is None or not {"clips", "ids", "fields"} <= found.keys():
        raise DataError(f"{file} is damaged: remove {file.parent} and make it again")
    return found


def _read_json(file: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file, or None if it holds none."""
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def check_same(folder: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check that a dataset has the wanted description.

    Raises:
        DataError: names what differs.
    """
    found, wanted = _flat(found), _flat(wanted)
    differ = [
        f"{key} is {_brief(found.get(key))}, not {_brief(wanted[key])}"
        for key in wanted
        if found.get(key) != wanted[key]
    ]
    if differ:
        raise DataError(
            f"{folder} was made with other settings ({'; '.join(differ)}): "
            "choose another folder or make it again"
        )


def _flat(about: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten one level of dictionaries, so that a difference can be named."""
    pairs: dict[str, Any] = {}
    for key, value in about.items():
        inner = value if isinstance(value, Mapping) else {}
        pairs |= {f"{key}.{name}": its for name, its in inner.items()} or {key: value}
    return pairs


def _brief(value: Any) -> str:
    text = "absent" if value is None else json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _features(fields: Mapping[str, Field]) -> tfds.features.FeaturesDict:
    arrays = {
        name: tfds.features.Tensor(shape=f.shape, dtype=np.dtype(f.dtype), encoding="bytes")
        for name, f in fields.items()
    }
    return tfds.features.FeaturesDict({"id": tfds.features.Text(), **arrays})


def _serialiser(fields: Mapping[str, Field]) -> Callable[[dict[str, Any]], bytes]:
    """Return a serialiser like TFDS's, but with the same bytes in every process.

    The maps of protobuf have no order by themselves.
    """
    features = _features(fields)
    serialiser = ExampleSerializer(features.get_serialized_info())

    def serialise(example: dict[str, Any]) -> bytes:
        proto = serialiser.get_tf_example(features.encode_example(example))
        return proto.SerializeToString(deterministic=True)

    return serialise


def _writer(path: Path) -> array_record_module.ArrayRecordWriter:
    """Open a writer with one record in each group, so that reading one unpacks no others."""
    return array_record_module.ArrayRecordWriter(str(path), "group_size:1")


class RecordSource:
    """Random access to a finished dataset, for Grain: `len`, and a dict of arrays at `[i]`."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = user_path(folder)
        self.about = read_about(self.folder / name)
        # Readers of records need files: those in a store are copied here, whole and verified.
        builder = tfds.builder_from_directory(kept_copy(self.folder / RECORDS).resolve())
        self._records = builder.as_data_source("train")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return the arrays of one clip by name."""
        example = self._records[int(index)]
        return {name: np.asarray(value) for name, value in example.items() if name != "id"}

    def id_of(self, index: int) -> str:
        """Return the id of one clip."""
        return self._records[int(index)]["id"].decode("utf-8", "surrogateescape")

    def __repr__(self) -> str:
        # Grain keeps it beside the state of an iterator: the folder may move, the data may not.
        return f"{type(self).__name__}({len(self)} clips, {self.about['ids'][:12]})"

"""Repositories of the Hugging Face hub: read through the cache of its own library, and written.

`hf://organisation/name[@revision][/path]` is an address, and `organisation/name[@revision]` is one
where no file of this machine has that name. What is downloaded lies in a snapshot of one commit,
`models--organisation--name/snapshots/COMMIT`. Files come there when they are needed, are never
changed, and a download that was cut off goes on where it ended.
"""

import functools
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from mfm_jax.errors import UserError, WriteError, first_line, full_disk
from mfm_jax.storage.paths import array_path, lost_a_slash

SCHEME = "hf://"
MAIN = "main"
"""The revision that is read and written where none is named."""
VERBOSITY = "HF_HUB_VERBOSITY"
"""The environment variable of the library that says how much it logs."""
INSTALL = "pip install 'mfm-jax[hub]'"
SNAPSHOT = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)")
"""The folder of a repository in the cache."""
COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?"
T = TypeVar("T")


class HubError(UserError):
    """A repository that cannot be read or written; the message says what to do."""


class Address(NamedTuple):
    """The repository, revision and path that an address names."""

    repository: str  # organisation/name
    revision: str | None = None  # a branch, a tag or a commit
    inside: str = ""  # a file or a folder in it

    def __str__(self) -> str:
        """Return the address as a user writes it."""
        # A slash in a revision, such as refs/pr/1, is written %2F.
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"{SCHEME}{self.repository}{revision}" + f"/{self.inside}" * bool(self.inside)


def is_hub_id(text: str) -> bool:
    """Return whether `text` looks like a repository on the hub, `organisation/name`."""
    return re.fullmatch(f"{_NAME}/{_NAME}", text) is not None and not any(
        pair in text for pair in ("..", "--")
    )


def read_address(name: str | os.PathLike[str]) -> Address | None:
    """Return what a name that begins with `hf://` means, or None for other names.

    Raises:
        HubError: it names no repository.
    """
    text = os.fspath(name)
    if text.startswith("hf:/") and lost_a_slash(name, "hf:/"):
        text = SCHEME + text.removeprefix("hf:/")
    if not text.startswith(SCHEME):
        return None
    owner, _, rest = text.removeprefix(SCHEME).partition("/")
    named, _, inside = rest.partition("/")
    repository, at, revision = f"{owner}/{named}".partition("@")
    inside = inside.strip("/")
    if not is_hub_id(repository) or (at and not revision) or ".." in inside.split("/"):
        raise HubError(f"{text} names no repository: give {SCHEME}ORGANISATION/NAME[@REVISION]")
    return Address(repository, unquote(revision) or None, inside)


def read_short(text: str) -> Address | None:
    """Return what `organisation/name[@revision]` means, or None for other names."""
    repository, at, revision = text.partition("@")
    if not is_hub_id(repository) or (at and not revision):
        return None
    return Address(repository, unquote(revision) or None)


def is_of_hub(name: str) -> bool:
    """Return whether a bundle's name is one of the hub: an address, or no path of this machine.

    Raises:
        HubError: the address names no repository.
    """
    if read_address(name) is not None:
        return True
    return read_short(name) is not None and not os.path.lexists(name)


def bundle_path(name: str | os.PathLike[str]) -> Path:
    """Return the path of a bundle that a user names: as `array_path`, or in a repository.

    Of a repository only `bundle.json` is downloaded yet; `complete` downloads a component.

    Raises:
        PathError: as `array_path`.
        HubError: the repository cannot be read, or holds no bundle.
    """
    if (address := read_address(name)) is not None:
        return _bundle(address)
    short = read_short(name) if isinstance(name, str) and is_of_hub(name) else None
    if short is None:
        return array_path(name)
    try:
        return _bundle(short)
    except HubError as error:
        raise HubError(
            f"{name} is no folder here, and the hub does not give it ({error})"
        ) from None


@functools.cache
def _bundle(address: Address) -> Path:
    """Return the folder of a bundle in the cache; a process keeps to the commit that it found."""
    file = f"{address.inside}/bundle.json".lstrip("/")
    return _file(address._replace(inside=file)).parent


def download(address: Address, patterns: Sequence[str] | None = None) -> Path:
    """Return the file or folder of an address, in the cache.

    Args:
        patterns: files to download of a folder; all by default.

    Raises:
        HubError: it cannot be downloaded.
    """
    wanted = list(patterns or ("*",))
    if inside := address.inside:
        wanted = [inside, *(f"{inside}/{pattern}" for pattern in wanted)]
    place = _folder(address, wanted) / inside
    if not place.exists():
        raise HubError(f"{address} holds none of {', '.join(wanted)}: check the address")
    return place


@functools.cache
def complete(place: Path) -> Path:
    """Return `place`; if it lies in a snapshot of the hub's cache, its files are there afterwards.

    Raises:
        HubError: they cannot be downloaded.
    """
    snapshot = snapshot_of(place)
    if snapshot is None or not COMMIT.fullmatch(snapshot.name):
        return place
    found = SNAPSHOT.fullmatch(snapshot.parents[1].name)
    try:
        _library()
    except HubError:
        if place.exists():  # someone else has put it there
            return place
        raise
    if found is not None:
        address = Address(f"{found['owner']}/{found['name']}", snapshot.name)
        inside = place.relative_to(snapshot).as_posix()
        _folder(address, [f"{inside}/*"], cache=snapshot.parents[2])
    return place


def snapshot_of(path: Path) -> Path | None:
    """Return the snapshot in the hub's cache in which a path lies, if it does."""
    for folder in (path, *path.parents):
        if folder.parent.name == "snapshots" and SNAPSHOT.fullmatch(folder.parents[1].name):
            return folder
    return None


def upload(
    folder: Path, address: Address, *, private: bool, last: Sequence[str], stale: str
) -> Address:
    """Write the files of a folder into a repository; return the address with the commit.

    The repository and the branch are made if need be. A reader sees what was there before until
    the files `last` come, together in one commit.

    Args:
        private: the repository must be one that only its owners see.
        last: files that come in the last commit.
        stale: matches the names of older files, which then go unless the folder has them.

    Raises:
        HubError: the hub does not take them.
    """
    hub = _library()
    repository, revision = address.repository, address.revision or MAIN
    api = hub.HfApi(library_name="mfm-jax")

    def send() -> Address:
        api.create_repo(repository, private=private or None, exist_ok=True)
        if private and not api.model_info(repository).private:
            raise HubError(f"{repository} is there and public: make it private, or name another")
        if revision != MAIN:
            api.create_branch(repository, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            ignore_patterns=list(last),
            commit_message="Components and exports",
        )
        keep = {file.relative_to(folder).as_posix() for file in folder.rglob("*")}
        old = [n for n in api.list_repo_files(repository, revision=revision) if n not in keep]
        changes = [hub.CommitOperationAdd(name, folder / name) for name in last]
        changes += [hub.CommitOperationDelete(name) for name in old if re.match(stale, name)]
        done = api.create_commit(
            repository, changes, revision=revision, commit_message="The bundle and its card"
        )
        return Address(repository, done.oid)

    return _asked(address, send, f"write to {repository}")


def _file(address: Address) -> Path:
    hub = _library()
    return _asked(
        address,
        lambda: Path(
            hub.hf_hub_download(address.repository, address.inside, revision=address.revision)
        ),
    )


def _folder(address: Address, patterns: Sequence[str], *, cache: Path | None = None) -> Path:
    hub = _library()
    return _asked(
        address,
        lambda: Path(
            hub.snapshot_download(
                address.repository,
                revision=address.revision,
                allow_patterns=list(patterns),
                cache_dir=cache,
            )
        ),
    )


def _library() -> Any:
    """Return the hub's library.

    Raises:
        HubError: it is not installed.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise HubError(f"this needs huggingface_hub: {INSTALL}") from None
    if VERBOSITY not in os.environ:  # it warns of each try for each file
        huggingface_hub.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    return huggingface_hub


def _asked(address: Address, call: Callable[[], T], want: str = "") -> T:
    """Call the hub's library.

    Raises:
        HubError: it raises; the message says what to do.
        WriteError: the disk is full.
    """
    try:
        return call()
    except UserError:
        raise
    # The hub's library and those under it raise many types.
    except Exception as error:
        if reason := full_disk(error):
            raise WriteError(f"cannot store {address} ({reason}): make room there") from None
        raise HubError(_reason(address, error, want)) from None


def _reason(address: Address, error: Exception, want: str) -> str:
    """Return what an error of the hub's library means, and what to do."""
    from huggingface_hub import constants, errors

    name, place = address.repository, str(address)
    if isinstance(error, errors.GatedRepoError):
        return f"{place} is given only to those who accept its terms: do so on its page, and log in"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"the hub has no {name}, or it is private: check the name, or log in with hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {address.revision or MAIN}: name one that it has after @"
    absent = isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError)
    if absent and constants.HF_HUB_OFFLINE:
        if want:
            return f"HF_HUB_OFFLINE does not let you {want}: unset it"
        return f"{place} is not in the cache: unset HF_HUB_OFFLINE to download it"
    if isinstance(error, errors.EntryNotFoundError) and not absent:
        *folders, file = address.inside.split("/")
        return f"{address._replace(inside='/'.join(folders))} has no {file}: check the address"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
        what = want or f"read {place}"
        return f"the hub does not let you {what}: log in with hf auth login, or set HF_TOKEN"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{place} cannot be stored ({first_line(error)}): name another folder with HF_HOME"
    told = f"{place} cannot be {'written' if want else 'downloaded'} ({_cause(error)})"
    return f"{told}: check the network and start again, which goes on where it ended"


def _cause(error: BaseException) -> str:
    """Return the first line of the error that the library's own error comes from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{first_line(error):.200}"

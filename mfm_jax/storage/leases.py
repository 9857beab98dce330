"""Leases: who of several workers, on any machines, does a piece of work.

A worker takes a piece by making a file that no other has made, which needs no locks: a store makes
an object only if there is none, and a disk links a name only once. The worker renews its lease
while it lives. Once a lease has ended, another takes the piece with the next number; the highest
number counts. The lease of a process that has died on this machine has ended, too. Clocks of the
workers may differ by a few seconds (`SLACK`).

    LEASES/NAME.000001    {"worker": "host-12", "until": 1764300000.0, "process": [...]}
"""

import errno
import functools
import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from mfm_jax.storage.addresses import StorePath

SECONDS = 60.0
"""How long a lease is good without being renewed."""
SLACK = 5.0
"""Seconds after its end in which a lease still counts, as clocks differ."""


@dataclass(eq=False)
class Lease:
    """The right to do one piece of work, until it ends."""

    file: Path
    until: float  # unix time; as long as the last renewal succeeded
    is_first: bool = False  # nobody has had one for this work before


@dataclass
class Leases:
    """The leases of one worker in a folder.

    As a context it renews them while the block runs, and gives them back at its end.

    Args:
        keeps: the leases before the last one stay where they are. A number is then never given
            twice, so that nobody has to list the folder to be sure, which stores ask money for.
            All workers do the same, and somebody removes the folder in the end.
    """

    folder: Path
    seconds: float = SECONDS
    keeps: bool = False
    worker: str = field(
        default_factory=lambda: f"{platform.node()}-{os.getpid()}-{secrets.token_hex(3)}"
    )
    _held: list[Lease] = field(default_factory=list, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _ended: threading.Event = field(default_factory=threading.Event, init=False)

    def __enter__(self) -> "Leases":
        self._renewer = threading.Thread(target=self._renew, name="leases", daemon=True)
        self._renewer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._renewer.join()
        for lease in list(self._held):
            with suppress(OSError):  # it ends by itself
                self.give_back(lease)

    def take(self, name: str, *, is_new: bool = False) -> Lease | None:
        """Return the lease of a piece of work; None if another worker has it.

        Args:
            is_new: there was none a moment ago, so that it is not looked for before it is made.

        Raises:
            OSError: the folder cannot be read or written.
        """
        numbers = [] if is_new else self._numbers(name)
        if numbers and not self._is_over(self._file(name, numbers[-1])):
            return None
        number = numbers[-1] + 1 if numbers else 1
        lease = Lease(self._file(name, number), time.time() + self.seconds, not numbers)
        try:
            create(lease.file, self._told(lease.until))
        except FileExistsError:
            return None
        if not self.keeps:
            if self._numbers(name)[-1:] != [number]:  # late: others have come and gone meanwhile
                lease.file.unlink(missing_ok=True)
                return None
            for old in numbers:
                self._file(name, old).unlink(missing_ok=True)
        with self._lock:
            self._held.append(lease)
        return lease

    def take_from_the_dead(self, name: str) -> Lease | None:
        """Return the lease of a piece of work, maybe once it has run out; None if it is renewed."""
        first = None
        while (lease := self.take(name)) is None:
            numbers = self._numbers(name)
            until = _read(self._file(name, numbers[-1])).get("until") if numbers else None
            first = until if first is None else first
            if until != first:
                return None
            time.sleep(0.5)
        return lease

    def holds(self, lease: Lease) -> bool:
        """Return whether a lease is still this worker's: asked before its work is called done."""
        name, _, number = lease.file.name.rpartition(".")
        if self.keeps:
            return not _is_there(self._file(name, int(number) + 1))
        return self._numbers(name)[-1:] == [int(number)]

    def give_back(self, lease: Lease) -> None:
        """End a lease, so that another worker can have it at once."""
        self.forget(lease)
        if self.holds(lease):
            _replace(lease.file, self._told(0.0))

    def forget(self, lease: Lease) -> None:
        """Renew a lease no more: nobody will ask for it, since its work is done."""
        with self._lock:
            if lease in self._held:
                self._held.remove(lease)

    def holders(self, names: Iterable[str] | None = None) -> dict[str, str]:
        """Return which worker has each piece of work that one has now."""
        found: dict[str, int] = {}
        for name, number in self._all():
            found[name] = max(number, found.get(name, 0))
        holders = {}
        for name in found if names is None else set(names) & found.keys():
            told = _read(self._file(name, found[name]))
            if "until" in told and not _is_over(told):
                holders[name] = str(told.get("worker"))
        return holders

    def _renew(self) -> None:
        while not self._ended.wait(self.seconds / 4):
            with self._lock:
                held = list(self._held)
            for lease in held:
                until = time.time() + self.seconds
                with suppress(OSError):  # tried again soon; if it ends, another does the work
                    if not self.holds(lease):
                        continue
                    with self._lock:  # not after it was given back
                        if lease in self._held:
                            _replace(lease.file, self._told(until))
                            lease.until = until

    def _told(self, until: float) -> bytes:
        told = {
            "worker": self.worker,
            "until": until,
            "process": _this_process(),
            "of": secrets.token_hex(4),
        }
        return json.dumps(told).encode()

    def _is_over(self, file: Path) -> bool:
        told = _read(file)
        if "until" not in told:  # it is just being written, or was never written to its end
            with suppress(OSError):
                return file.stat().st_mtime + self.seconds + SLACK < time.time()
            return False
        return _is_over(told)

    def _file(self, name: str, number: int) -> Path:
        return self.folder / f"{name}.{number:06d}"

    def _numbers(self, name: str) -> list[int]:
        return sorted(number for its, number in self._all(f"{name}.") if its == name)

    def _all(self, begin: str = "") -> Iterator[tuple[str, int]]:
        for file in self._names(begin):
            name, _, number = file.rpartition(".")
            if name and number.isdigit():
                yield name, int(number)

    def _names(self, begin: str) -> list[str]:
        if isinstance(self.folder, StorePath):
            return self.folder.names(begin)  # which does not list the leases of all others
        try:
            return [name for name in os.listdir(self.folder) if name.startswith(begin)]
        except FileNotFoundError:
            return []


def _is_there(file: Path) -> bool:
    """Return whether there is a file, by one request: `exists` also looks for a folder."""
    try:
        file.read_bytes()
    except FileNotFoundError:
        return False
    return True


def create(file: Path, data: bytes) -> None:
    """Make a file with its contents, unless there is one with its name, on a disk or in a store.

    Raises:
        FileExistsError: there is one.
    """
    if isinstance(file, StorePath):
        file.create(data)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _part_of(file, data) as part:
            os.link(part, file)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        with file.open("xb") as new:  # the file system knows no links
            new.write(data)


def _replace(file: Path, data: bytes) -> None:
    if isinstance(file, StorePath):
        file.write_bytes(data)
        return
    with _part_of(file, data) as part:
        os.replace(part, file)


@contextmanager
def _part_of(file: Path, data: bytes) -> Iterator[Path]:
    part = file.with_name(f".{file.name}{secrets.token_hex(4)}")
    try:
        part.write_bytes(data)
        yield part
    finally:
        part.unlink(missing_ok=True)


def _is_over(told: dict[str, Any]) -> bool:
    """Return whether a lease that says this was given back, has run out, or lost its process."""
    ended = told["until"] == 0.0 or told["until"] + SLACK < time.time()
    return ended or _has_died(told.get("process"))


def _this_process() -> list[str | int]:
    """Return what tells this process from all others: its machine, its number, its start."""
    return [_machine(), os.getpid(), _started(os.getpid()) or ""]


@functools.cache
def _machine() -> str:
    """Return what tells a running Linux, and the numbers of processes in it, from all others."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(process: int) -> str | None:
    """Return when a process of this machine was started, in ticks; None if there is none."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _has_died(process: Any) -> bool:
    """Return whether a process was one of this machine, and is no more."""
    match process:
        case [str(machine), int(number), str(started)] if machine and started:
            return machine == _machine() and _started(number) != started
    return False


def _read(file: Path) -> dict[str, Any]:
    try:
        told = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}

"""A job of many videos on a Ray cluster: `mfm generate --on ray`.

The command begins the job in the folder of outputs, starts readers and looks how far they are. It
needs no device.

    reader         a task, which takes a CPU: one of the workers of `mfm_jax.inference.shares`. It
                   decodes videos, writes outputs and records them.
    accelerator    an actor, which takes GPUs, or the TPU chips of a machine, where the cluster has
                   some: it has the networks, and makes the sounds of one reader's windows.

Ray chooses the machines, starts a reader again whose process or accelerator is lost, and asks for
more machines where not all have a place and the cluster can grow. Who makes what, and what is made,
is in the folder, as it is without Ray: each output is made once, whoever dies.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mfm_jax.errors import UsageError, first_line
from mfm_jax.inference import record, shares
from mfm_jax.inference.accelerator import Assignment, Opener, read, result_of
from mfm_jax.inference.segments import FOLDER, LEASES, JobFiles
from mfm_jax.inference.work import Work
from mfm_jax.media.sandbox import SWITCH
from mfm_jax.runtime import signals
from mfm_jax.storage.json_lines import read_json_lines
from mfm_jax.storage.leases import Leases

RETRIES = 20
"""How often Ray starts a reader again; a video that ends every process that reads it is no more."""
LOOK = 1.0
"""Seconds between two looks at the folder."""
GOODBYE = shares.LONGEST_WAIT + 1.0
"""Seconds in which readers may see that the job is over."""
PATIENCE = 15.0
"""Seconds without a reader after which a line says what Ray waits for."""


def do_on_ray(
    work: Work,
    folder: Path,
    opener: Opener,
    *,
    gpus: int = 1,
    workers: int | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Do the jobs of a run on a Ray cluster; return the failures of all.

    The cluster is the one that Ray finds (`ray.init`), or else one of this machine alone, as long
    as this takes. All paths are absolute.

    Args:
        folder: of the outputs, which all machines see.
        opener: can be pickled.
        gpus: of an accelerator, where the cluster has GPUs.
        workers: so many readers; by default as many as there are accelerators for now.
        overwrite: make everything anew, also what is recorded.

    Raises:
        UsageError: there is no Ray, no cluster or no place in it, or others are at work in the
            folder.
    """
    with _connected() as ray:
        takes, places = _accelerators(ray.nodes(), gpus)
        asked = shares.asked_for(work, folder, overwrite=overwrite)
        before = {} if overwrite else record.read_record(folder)
        files = shares.begin(folder, asked, Leases(folder / FOLDER / LEASES))
        names = ("jobs", "spec", "settings", "finishing", "joint")
        told = Assignment(
            {name: getattr(work, name) for name in names},
            folder, files.number, overwrite, opener, takes,
            keep="JAX_COMPILATION_CACHE_DIR" in os.environ,
        )  # fmt: skip
        count = min(workers or places, -(-asked["clips"] // asked["piece"]))
        what = ", ".join(f"{n} {kind}" for kind, n in _words(takes).items())
        work.say(f"on Ray: {len(ray.nodes())} machine(s), {count} worker(s), each with {what}")
        outputs = _Outputs(work, files, before)
        running = _started(ray, told, count)
        try:
            _wait(ray, running, outputs, f"Ray has no place for a worker yet, which takes {what}")
        finally:
            _end(ray, running, files)
    failures = [line["reason"] for line in record.read_failures(folder)]
    outputs.tell_rest()
    work.say(
        f"{len(work.jobs)} clips, {len(failures)} of them failed, as {folder / record.NAME} says"
    )
    return failures


@contextmanager
def _connected() -> Iterator[Any]:
    """Yield the module of Ray, connected to a cluster."""
    try:
        import ray
    except ImportError:
        raise UsageError("this needs Ray: pip install 'mfm-jax[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    _check_address(os.environ.get("RAY_ADDRESS", ""))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"Ray cannot be used ({first_line(error)}): start a cluster, or unset RAY_ADDRESS"
        ) from None
    try:
        if main:
            signal.signal(signal.SIGTERM, handler)  # Ray has set its own
        with signals.undone(ray.shutdown):
            yield ray
    finally:
        ray.shutdown()


def _check_address(address: str) -> None:
    """Check that something answers at the address of a cluster, as Ray would try for minutes.

    Raises:
        UsageError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"no Ray cluster answers at {address} ({first_line(error)}): start one, or unset "
            "RAY_ADDRESS"
        ) from None


def _accelerators(nodes: Sequence[Mapping[str, Any]], gpus: int) -> tuple[dict[str, Any], int]:
    """Return what an accelerator asks Ray for, and how many of them fit these machines.

    Raises:
        UsageError: they have GPUs, but none has so many.
    """
    there = [node["Resources"] for node in nodes if node["Alive"]]
    if any(each.get("GPU") for each in there):
        places = sum(int(each.get("GPU", 0)) // gpus for each in there)
        if not places:
            raise UsageError(
                f"no machine of the Ray cluster has {gpus} GPUs: use smaller fsdp and tensor"
            )
        return {"num_gpus": gpus}, places
    if chips := [int(each["TPU"]) for each in there if each.get("TPU")]:
        return {"resources": {"TPU": min(chips)}}, len(chips)
    return {}, len(there)


def _words(takes: Mapping[str, Any]) -> dict[str, int]:
    """Return what a reader and its accelerator take."""
    more = {"GPU": takes["num_gpus"]} if "num_gpus" in takes else takes.get("resources", {})
    return {"CPU": 1, **more}


def _started(ray: Any, told: Assignment, count: int) -> list[Any]:
    """Start readers, each on another machine where that can be."""
    environment = {SWITCH: os.environ[SWITCH]} if SWITCH in os.environ else {}
    task = ray.remote(read).options(
        num_cpus=1,
        max_retries=RETRIES,
        retry_exceptions=[ray.exceptions.RayActorError],
        scheduling_strategy="SPREAD",
        runtime_env={"env_vars": environment},
    )
    shared = ray.put(told)
    return [task.remote(shared) for _ in range(count)]


def _wait(ray: Any, running: list[Any], outputs: "_Outputs", waiting: str) -> None:
    """Wait until the job is over; a reader that fails is told and leaves its work to the others.

    Raises:
        Exception: all have failed.
    """
    seen, patient = False, time.monotonic() + PATIENCE
    while not outputs.files.is_over():
        if not running:
            raise UsageError(f"no worker on Ray has ended the job in {outputs.files.folder}")
        ended, _ = ray.wait(running, timeout=LOOK)
        for reader in ended:
            running.remove(reader)
            try:
                result_of(ray, reader)
            except Exception as error:
                if not running:
                    raise
                outputs.work.say(f"a worker has stopped: {first_line(error)}")
        outputs.look()
        seen = seen or bool(outputs.told) or bool(shares.workers(outputs.files.folder))
        if not seen and time.monotonic() > patient:
            seen = True
            outputs.work.say(waiting)


def _end(ray: Any, running: Sequence[Any], files: JobFiles) -> None:
    """Let readers see that the job is over, and end those that have no place yet or are to stop."""
    until = time.monotonic() + GOODBYE
    while running and files.is_over() and time.monotonic() < until and shares.workers(files.folder):
        _, running = ray.wait(list(running), num_returns=len(running), timeout=LOOK / 4)
    for reader in running:
        ray.cancel(reader, force=True)


@dataclass
class _Outputs:
    """Tells of each output once, as the readers record it."""

    work: Work
    files: JobFiles
    before: Mapping[str, Mapping[str, Any]]  # entries of earlier runs, by the output's name
    told: set[str] = field(default_factory=set)  # names of outputs
    skipped: int = 0
    _read: set[int] = field(default_factory=set)  # pieces that are done

    def look(self) -> None:
        """Tell what is new."""
        for piece, file in self.files.pieces().items():
            if piece in self._read:
                continue
            for line in read_json_lines(file):
                self._tell(line)
            if file.suffix == ".jsonl":
                self._read.add(piece)

    def tell_rest(self) -> None:
        """Tell what was made last, from the record."""
        folder = self.files.folder
        names = {record.name_of(folder, job.target) for job in self.work.jobs} - self.told
        for line in record.read_record(folder).values():
            if line["output"] in names:
                self._tell(line)
        for row in record.read_failures(folder):
            self._tell({"output": row["output"], "failed": row["reason"]})
        if self.skipped:
            of = f"{self.skipped} of {len(self.work.jobs)}"
            self.work.say(f"{of} clips are there already, as {folder / record.NAME} says")

    def _tell(self, line: Mapping[str, Any]) -> None:
        name = line["output"]
        if name in self.told:
            return
        self.told.add(name)
        if "failed" in line:
            self.work.say(f"failed: {line['failed']}")
        elif self.before.get(name) == line:
            self.skipped += 1
        else:
            self.work.say(f"{line['source']} -> {self.files.folder / name}")
        if self.work.progress is not None:
            self.work.progress.advance()

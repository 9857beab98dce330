"""The service behind the page and the API: jobs are accepted, made, shown and ended."""

import asyncio
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fastapi import Request
from starlette.requests import ClientDisconnect

from mfm_jax.bundle import Bundle
from mfm_jax.data.clips import VIDEO_SUFFIXES
from mfm_jax.encoders import read_in_generation, window_spec
from mfm_jax.errors import MediaError, UsageError
from mfm_jax.inference.generate import layout_and_batch
from mfm_jax.media.probe import probe
from mfm_jax.media.video_info import VideoInfo
from mfm_jax.media.write import write_frames
from mfm_jax.serve.bell import Bell
from mfm_jax.serve.jobs import SOUND, SOURCE, VIDEO, Job, Jobs
from mfm_jax.serve.limits import Limits, Refused
from mfm_jax.serve.metrics import Metrics
from mfm_jax.serve.offer import Key, Offer
from mfm_jax.serve.programs import KeptPrograms
from mfm_jax.serve.queue import Queue
from mfm_jax.serve.results import ANALYSIS, examined
from mfm_jax.serve.schemas import JobView, SoundSettings, State
from mfm_jax.serve.sounds import Sounds
from mfm_jax.serve.upload import Form, announced_size, receive_form
from mfm_jax.serve.visitors import Visitors, visitor_of
from mfm_jax.serve.workers import DECODERS, Workers, reason

WARMING = "the server itself"
"""The visitor whose clip is made before others are let in."""


@dataclass(frozen=True)
class Computing:
    """The options of computing that `mfm generate` has as well."""

    batch: int | None = None  # windows
    precision: str = "float32"
    fsdp: int = 1
    tensor: int = 1


class Service:
    """Everything that a running server has."""

    def __init__(self, bundle: Bundle, folder: Path, limits: Limits, computing: Computing) -> None:
        """Load the networks.

        Args:
            folder: for the files of jobs.

        Raises:
            BundleError: a network is missing or damaged.
            UsageError: the devices cannot be divided as told.
        """
        layout, batch = layout_and_batch(
            computing.batch, fsdp=computing.fsdp, tensor=computing.tensor
        )
        self.limits = limits
        shards = layout.mesh.devices.size // computing.tensor
        self.kept = KeptPrograms(bundle, layout, sizes(batch, shards), computing.precision, _tell)
        self.sounds = Sounds.open(bundle, self.kept, computing.precision, _tell)
        self.bell, self.metrics = Bell(), Metrics()
        self.jobs = Jobs(folder, limits, self.bell.ring)
        self.queue = Queue(self.kept.most, batch + DECODERS)
        self.workers = Workers(self.jobs, self.queue, self.kept, self.sounds, limits, self.metrics)
        self.offer = Offer(
            bundle,
            limits,
            self.sounds.encode is not None,
            limits.candidates if self.sounds.judge is not None else 1,
        )
        self.visitors = Visitors(limits.per_minute)
        self.spec = window_spec(bundle, read_in_generation(bundle))
        self.watchers = 0

    def start(self) -> None:
        """Start the threads, and make the sound of a clip of grey frames.

        Raises:
            UsageError: that fails.
        """
        self.kept.compile_usual()
        self.workers.start()
        folder = self.jobs.reserve(WARMING, 0)
        grey = np.full((12, 64, 64, 3), 128, np.uint8)
        write_frames(iter(grey), (clip := folder / f"{SOURCE}.mp4"), fps=12)
        job = self._job(folder, clip, "grey.mp4", SoundSettings(), probe(clip), WARMING)
        self.jobs.add(job)
        self.jobs.release(folder, keep=True)
        self.queue.put(job)
        while not job.state.is_final:
            time.sleep(0.02)
        if job.state is not State.done:
            raise UsageError(f"a grey clip cannot be given sound ({job.error}): try mfm generate")
        examined(job)
        self.jobs.forget(job)
        if self.sounds.encode is not None:
            self.sounds.encode("a sound")
            for size in self.kept.sizes:
                self.kept.ask(Key(self.kept.usual, True), size)
        self.metrics = self.workers.metrics = Metrics()

    def close(self) -> None:
        """Accept no more jobs."""
        self.jobs.closed = True
        self.bell.ring()

    def end_jobs(self) -> None:
        """End the jobs that are left."""
        self.close()
        for job in self.jobs.open():
            self.workers.fail(job, "the server was stopped: send the video again later")

    def stop(self) -> bool:
        """Stop the threads; return False if one is still busy."""
        self.end_jobs()
        return self.workers.stop()

    async def receive(self, request: Request) -> Job:
        """Receive a video with its settings, look at it, and put it into the queue.

        Raises:
            Refused: it is not accepted.
            ClientDisconnect: the visitor has gone.
        """
        visitor = visitor_of(request.client.host if request.client else None)
        size = announced_size(request, self.limits)
        self.visitors.admit(visitor)
        folder = self.jobs.reserve(visitor, self.limits.upload if size is None else size)
        added = False
        try:
            form = await receive_form(request, folder / SOURCE, self.limits)
            self.metrics.count("upload_bytes", form.size)
            settings = self.offer.settings(form.fields)
            loop = asyncio.get_running_loop()
            job = await loop.run_in_executor(
                self.workers.media, self._looked_at, folder, form, settings, visitor
            )
            if await request.is_disconnected():
                raise ClientDisconnect  # nobody would know the job
            self.jobs.add(job)
            added = True
        finally:
            self.jobs.release(folder, keep=added)
        self.queue.put(job)
        return job

    def _looked_at(self, folder: Path, form: Form, settings: SoundSettings, visitor: str) -> Job:
        """Return the job of a video that can be decoded and is within the limits."""
        source, name = folder / SOURCE, form.name or "video"
        suffix = Path(name).suffix.lower()
        if suffix in VIDEO_SUFFIXES:
            source = source.rename(source.with_suffix(suffix))
        job = self._job(folder, source, name, settings, NOTHING, visitor)
        try:
            info = probe(source)
        except MediaError as error:
            raise Refused(422, reason(error, job)) from None
        self.limits.check_video(info.seconds, info.width, info.height)
        job.info, job.windows = info, len(self.spec.starts(info.seconds))
        job.size = form.size
        return job

    def _job(
        self,
        folder: Path,
        source: Path,
        name: str,
        settings: SoundSettings,
        info: VideoInfo,
        visitor: str,
    ) -> Job:
        key, windows = self.offer.key(settings), len(self.spec.starts(info.seconds))
        return Job(folder.name, visitor, name, folder, source, settings, key, info, windows)

    def cancel(self, job: Job) -> None:
        """Stop and forget a job."""
        self.workers.cancel(job)
        self.bell.ring()

    def view(self, job: Job) -> JobView:
        """Return a job as its owner sees it."""
        state, computed = job.state, job.computed
        waits = self.queue.position(job)
        stage = ""
        if state is State.queued:
            stage = "waiting"
        elif state is State.running:
            stage = "generating" if computed else "decoding"
            if not self.kept.most(job.key):
                stage = "compiling"
            elif computed == job.windows:
                stage = "writing"
        # Writing the files takes about as long as a window.
        progress = 1.0 if state is State.done else computed / (job.windows + 1)
        here = f"/api/jobs/{job.id}"
        done = state is State.done
        return JobView(
            id=job.id,
            state=state,
            position=waits,
            stage=stage,
            progress=round(progress, 3),
            name=job.name,
            seconds=round(job.info.seconds, 3),
            has_sound=job.info.has_audio,
            settings=job.settings,
            error=job.error,
            notes=list(job.notes),
            created=job.added,
            expires=None if job.ended is None else job.ended + self.limits.keep,
            files={name: f"{here}/{name}" for name in (VIDEO, SOUND, ANALYSIS)} if done else {},
        )

    def gauges(self) -> dict[str, float | int]:
        """Return what is measured at this moment."""
        return {
            "jobs_waiting": self.jobs.count(State.queued),
            "jobs_running": self.jobs.count(State.running),
            "jobs_kept": self.jobs.count(State.done),
            "stored_bytes": self.jobs.stored(),
            "watchers": self.watchers,
            "up": float(self.workers.alive and not self.jobs.closed),
        }

    @property
    def is_healthy(self) -> bool:
        """True if jobs are accepted and made."""
        return self.workers.alive and not self.jobs.closed


def _tell(line: str) -> None:
    print(f"mfm serve: {line}", file=sys.stderr)


NOTHING = VideoInfo(0.0, 0.0, 0, 0, 0, 0, False)
"""A video that nobody has looked at."""


def sizes(batch: int, shards: int) -> list[int]:
    """Return the sizes of batches that are compiled: a few windows need not take a batch's time."""
    found = [batch]
    while found[0] % 2 == 0 and (found[0] // 2) % shards == 0:
        found.insert(0, found[0] // 2)
    return found

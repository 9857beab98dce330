"""The routes of the page and of the API."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

import mfm_jax
from mfm_jax.evaluation.page import LOOK
from mfm_jax.serve.bell import heard
from mfm_jax.serve.guard import Guard, Refusal
from mfm_jax.serve.jobs import SOUND, VIDEO, Job
from mfm_jax.serve.limits import Refused
from mfm_jax.serve.results import ANALYSIS, ORIGINAL, PICTURES, examined
from mfm_jax.serve.schemas import Analysis, JobView, Problem, ServerView, SoundSettings, State
from mfm_jax.serve.service import Service

HERE = Path(__file__).parent
BEAT = 15.0
"""Seconds after which a stream of events says that it is still there."""
SWEEP = 5.0
"""Seconds between looks for results that have been kept long enough."""
LONGEST_WAIT = 600
ABOUT = """Sound for videos.

Send a video to `POST /api/jobs`, wait, and fetch its sound. The id in the answer is the only key
to the job: whoever knows it can read and delete everything of it.
"""

Id = Annotated[str, PathParameter(description="the `id` of the job", max_length=64)]
Wait = Annotated[
    float,
    Query(ge=0, le=LONGEST_WAIT, description="seconds to wait for the job if it is not over"),
]
Download = Annotated[bool, Query(description="answer with a file name for the disk")]
PROBLEMS: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "There is no such job, or not any more."},
    409: {"model": Problem, "description": "The job is not done."},
    410: {"model": Problem, "description": "The job has failed."},
}


def build_app(service: Service, names: tuple[str, ...] = ()) -> ASGIApp:
    """Return the application of a service.

    Args:
        names: of this server, beside its addresses and localhost.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.bell.hang()
        sweeping = asyncio.create_task(_sweep(service))
        yield
        sweeping.cancel()

    app = FastAPI(
        title="mfm serve",
        description=ABOUT,
        version=mfm_jax.__version__,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        docs_url=None,  # its page comes from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    _add_page(app)
    _add_state(app, service)
    _add_jobs(app, service)
    _add_results(app, service)

    @app.exception_handler(Refused)
    async def refuse(request: Request, error: Refused) -> Any:
        service.metrics.count("refused", status=error.status)
        return Refusal(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg'].lower()}"}, 422)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        service.metrics.count("uploads_ended")
        return Response(status_code=499)

    return Guard(app, names)


async def _sweep(service: Service) -> None:
    while True:
        await asyncio.sleep(SWEEP)
        await asyncio.to_thread(service.jobs.expire)


def _add_page(app: FastAPI) -> None:
    """Add the page, whose files are read once."""
    for path, files, kind in (
        ("/", [HERE / "page.html"], "text/html"),
        ("/page.css", [LOOK, HERE / "page.css"], "text/css"),
        ("/page.js", [HERE / "page.js"], "text/javascript"),
    ):
        content = b"".join(file.read_bytes() for file in files)

        async def page(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=f"{kind}; charset=utf-8")

        app.add_api_route(path, page, methods=["GET", "HEAD"], include_in_schema=False)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["server"], summary="Tell whether jobs are accepted and made")
    async def health() -> JSONResponse:
        healthy = service.is_healthy
        return JSONResponse({"ok": healthy}, 200 if healthy else 503)

    @app.get("/metrics", tags=["server"], summary="Counts for Prometheus")
    async def metrics() -> Response:
        text = service.metrics.text(service.gauges())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/api", tags=["server"], summary="What the server offers and allows")
    async def server() -> ServerView:
        return service.offer.view(service.jobs.unfinished())


def _add_jobs(app: FastAPI, service: Service) -> None:
    fields = SoundSettings.model_json_schema()["properties"]
    form = {
        "type": "object",
        "properties": {"video": {"type": "string", "format": "binary"}, **fields},
        "required": ["video"],
    }

    @app.post(
        "/api/jobs",
        tags=["jobs"],
        summary="Ask for the sound of a video",
        status_code=202,
        response_model=JobView,
        responses={
            code: {"model": Problem, "description": about}
            for code, about in {
                413: "The video is too large.",
                415: "This is no multipart/form-data.",
                422: "This is no video, it is too long, or a setting does not exist.",
                429: "You have too many jobs, or send too many a minute.",
                503: "The queue is full, or the server is about to stop.",
            }.items()
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"multipart/form-data": {"schema": form}},
            }
        },
    )
    async def create(request: Request, response: Response) -> JobView:
        job = await service.receive(request)
        response.headers["location"] = f"/api/jobs/{job.id}"
        return service.view(job)

    @app.get(
        "/api/jobs/{id}",
        tags=["jobs"],
        summary="Tell how far a job is",
        responses={404: PROBLEMS[404]},
    )
    async def show(id: Id, wait: Wait = 0) -> JobView:
        job = _job(service, id)
        await _ended(service, job, wait)
        return service.view(job)

    @app.get(
        "/api/jobs/{id}/events",
        tags=["jobs"],
        summary="Tell every change of a job, as server-sent events",
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "Each event is a job as JSON; the last one is final.",
                "content": {"text/event-stream": {}},
            },
            404: PROBLEMS[404],
        },
    )
    async def events(id: Id) -> StreamingResponse:
        stream = _events(service, _job(service, id))
        headers = {"x-accel-buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    @app.delete(
        "/api/jobs/{id}",
        tags=["jobs"],
        summary="Cancel a job and remove its files",
        status_code=204,
        responses={404: PROBLEMS[404]},
    )
    async def delete(id: Id) -> None:
        await asyncio.to_thread(service.cancel, _job(service, id))


def _add_results(app: FastAPI, service: Service) -> None:
    for name, kind, about in (
        (VIDEO, "video/mp4", "The video with its new sound"),
        (SOUND, "audio/wav", "The new sound alone, 16 kHz, 16 bits"),
        (ORIGINAL, "audio/wav", "The video's own sound, the mean of its channels"),
        (PICTURES[SOUND], "image/png", "The spectrogram of the new sound, 0 to 8 kHz"),
        (PICTURES[ORIGINAL], "image/png", "The spectrogram of the video's own sound"),
    ):
        app.add_api_route(
            f"/api/jobs/{{id}}/{name}",
            _result(service, name, kind),
            methods=["GET"],
            tags=["results"],
            summary=about,
            response_class=FileResponse,
            responses={200: {"content": {kind: {}}, "description": about}, **PROBLEMS},
        )

    @app.get(
        f"/api/jobs/{{id}}/{ANALYSIS}",
        tags=["results"],
        summary="What is heard: onsets, loudness, and where sounds and pictures are",
        response_model=Analysis,
        responses=PROBLEMS,
    )
    async def analysis(id: Id, wait: Wait = 0) -> FileResponse:
        job = await _done(service, id, wait)
        await _examined(service, job)
        return JobFile(service, job, ANALYSIS, "application/json")


def _result(
    service: Service, name: str, kind: str
) -> Callable[..., Coroutine[Any, Any, FileResponse]]:
    """Return what answers with one of the files of a job."""

    async def result(id: Id, wait: Wait = 0, download: Download = False) -> FileResponse:
        job = await _done(service, id, wait)
        if name not in (VIDEO, SOUND):
            await _examined(service, job)
        return _file(service, job, name, kind, download=download)

    return result


def _job(service: Service, id: str) -> Job:
    job = service.jobs.get(id)
    if job is None:
        raise HTTPException(404, "there is no such job, or not any more")
    return job


async def _ended(service: Service, job: Job, seconds: float) -> None:
    """Wait until a job is over, but not longer."""
    until = asyncio.get_running_loop().time() + seconds
    while True:
        ring = service.bell.next
        left = until - asyncio.get_running_loop().time()
        if job.state.is_final or left <= 0 or not await heard(ring, left):
            return


async def _done(service: Service, id: str, wait: float) -> Job:
    job = _job(service, id)
    await _ended(service, job, wait)
    if not job.state.is_final:
        raise HTTPException(409, "the job is not done yet: wait for it", {"retry-after": "1"})
    if job.state is not State.done:
        raise HTTPException(410, job.error or "the job was cancelled")
    return job


async def _examined(service: Service, job: Job) -> Path:
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(service.workers.media, examined, job)


async def _events(service: Service, job: Job) -> AsyncIterator[str]:
    """Yield a job whenever it changes, until it is over."""
    service.watchers += 1
    last = ""
    try:
        while True:
            ring = service.bell.next
            view = json.dumps(service.view(job).model_dump(mode="json"), ensure_ascii=False)
            if view != last:
                last = view
                yield f"data: {view}\n\n"
            if job.state.is_final:
                return
            if not await heard(ring, BEAT):
                yield ": still here\n\n"
            await asyncio.sleep(0.05)  # many changes at once are told once
    finally:
        service.watchers -= 1


class JobFile(FileResponse):
    """A file of a job, which stays until it is sent, whoever removes the job meanwhile."""

    def __init__(
        self,
        service: Service,
        job: Job,
        name: str,
        kind: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(job.folder / name, media_type=kind, headers=headers)
        self._kept = partial(service.jobs.sent, job)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._kept():
            if Path(self.path).is_file():
                await super().__call__(scope, receive, send)
            else:
                why = "the video has no sound of its own, or the job is gone"
                await JSONResponse({"detail": why}, 404)(scope, receive, send)


def _file(service: Service, job: Job, name: str, kind: str, *, download: bool) -> FileResponse:
    headers = {}
    if download:
        called = quote(f"{Path(job.name).stem or 'sound'}-sound{Path(name).suffix}", safe="")
        headers["content-disposition"] = f"attachment; filename*=utf-8''{called}"
    return JobFile(service, job, name, kind, headers)

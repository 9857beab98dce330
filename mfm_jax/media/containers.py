"""Open video files: which containers, which streams, and within which limits."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from stat import S_ISREG

import av
from av.error import FFmpegError
from av.stream import Disposition

from mfm_jax.errors import MediaError, UsageError, system_reason
from mfm_jax.media.joined_flv import WithoutParts, headers_within

DEMUXERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,ogg,asf,asf_o,rm,"
    "nut,mxf,gxf,dv,wtv,ivf,obu,h264,hevc,vvc,evc,m4v,mjpeg,vc1,h263,h261,cavsvideo,yuv4mpegpipe,"
    "gif,apng,nsv,vivo,swf,ea,smk,bink,roq"
)
"""The demuxers of FFmpeg that read media and nothing else.

Others (concat, hls, dash, image2, lavfi) open files and addresses that a text names.
"""

PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
"""Streams that are no video: covers, thumbnails."""


@dataclass(frozen=True)
class Limits:
    """Limits of what a video may claim; `MFM_MAX_SECONDS` and so on set others."""

    seconds: float | int = 4 * 3600
    pixels: int = 1 << 26  # of a frame: twice 8K
    streams: int = 64

    @classmethod
    def of_environment(cls) -> "Limits":
        """Read the limits that the environment sets.

        Raises:
            UsageError: one is no positive number.
        """
        found = {}
        for item in fields(cls):
            name = _variable(item.name)
            if name in os.environ:
                try:
                    found[item.name] = int(os.environ[name])
                except ValueError:
                    found[item.name] = 0
                if found[item.name] < 1:
                    raise UsageError(f"{name}={os.environ[name]}: give a whole number above 0")
        return cls(**found)

    def check(self, path: Path, **claims: float | int) -> None:
        """Refuse a video that claims more.

        Raises:
            MediaError: it does; the message names the variable to raise.
        """
        for name, claim in claims.items():
            if claim > getattr(self, name):
                raise MediaError(
                    f"{path} has {claim:.0f} {name}, more than the {getattr(self, name)} that are "
                    f"allowed: leave it out, or set {_variable(name)}"
                )


def _variable(limit: str) -> str:
    return f"MFM_MAX_{limit.upper()}"


@contextmanager
def opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file: its container, and the video stream that players choose.

    Raises:
        MediaError: the file is missing, empty, unreadable, beyond the limits, or has no video.
    """
    path, limits = Path(path), Limits.of_environment()
    check_is_file(path)
    options = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
    joints = headers_within(path)
    with WithoutParts(path, joints) if joints else nullcontext() as file:
        try:
            container = av.open(
                file or f"file:{path.absolute()}",  # so that no name is taken for an address
                "r",
                container_options=options,
                metadata_errors="replace",
            )
        except FFmpegError:
            raise MediaError(
                f"{path} is not a readable video (damaged, cut short or of another type): "
                "download it again or convert it to mp4"
            ) from None
        with container:
            yield container, _checked(path, container, limits)


def _checked(path: Path, container: av.container.InputContainer, limits: Limits) -> av.VideoStream:
    """Return the main video stream, which must be within the limits."""
    limits.check(path, streams=len(container.streams))
    stream = _main_video(container)
    if stream is None:
        raise MediaError(f"{path} has no video stream: give a file with a picture")
    if stream.codec_context is None:
        raise MediaError(f"{path} has an unknown video codec: re-encode it as mp4")
    limits.check(path, pixels=stream.codec_context.width * stream.codec_context.height)
    stream.codec_context.options = {"max_pixels": str(limits.pixels)}
    return stream


def check_is_file(path: Path) -> None:
    """Check that a video is a file that can be read.

    Raises:
        MediaError: it is missing, empty, a folder, a device or a pipe, or not readable.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise MediaError(f"{path} does not exist: check the path") from None
    except (OSError, ValueError) as error:
        reason = system_reason(error) if isinstance(error, OSError) else str(error)
        raise MediaError(f"{path} cannot be read ({reason}): check the path") from None
    if path.is_dir():
        raise MediaError(f"{path} is a folder: name a video file")
    if not S_ISREG(found.st_mode):
        raise MediaError(f"{path} is not a file but a pipe or a device: name a video file")
    if not found.st_size:
        raise MediaError(f"{path} is empty: copy or download it again")
    if not os.access(path, os.R_OK):
        raise MediaError(f"{path} cannot be read (permission denied): check its permissions")


def _main_video(container: av.container.InputContainer) -> av.VideoStream | None:
    """Return the stream that players choose, but no cover picture and no thumbnail."""
    best = container.streams.best("video")
    candidates = [best] if isinstance(best, av.VideoStream) else []
    candidates += [s for s in container.streams.video if s is not best]
    videos = [s for s in candidates if not s.disposition & PICTURES]
    return videos[0] if videos else None


def main_audio(
    container: av.container.InputContainer, video: av.VideoStream
) -> av.AudioStream | None:
    """Return the audio stream that players choose for a picture, or None if there is none."""
    best = container.streams.best("audio", related=video)
    if isinstance(best, av.AudioStream):
        return best
    # FFmpeg found no packet of it yet, as where only a second recording has sound.
    return next(iter(container.streams.audio), None)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a failure to read or decode `path` into a `MediaError`."""
    try:
        yield
    except FFmpegError as error:
        reason = (error.strerror or "unknown error").lower()
        raise MediaError(
            f"{path} is damaged ({reason}): download it again or re-encode it"
        ) from None

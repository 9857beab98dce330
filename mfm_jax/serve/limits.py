"""What a visitor may ask for, and what all visitors together may take."""

from dataclasses import dataclass

from mfm_jax.errors import UserError

FORM = 64 << 10
"""Bytes of a form beside its video: the other fields, and what separates them."""


class Refused(UserError):
    """A request that is not carried out; the message goes to the visitor."""

    def __init__(self, status: int, message: str, *, retry_after: int | None = None) -> None:
        """Say why.

        Args:
            status: of HTTP.
            retry_after: seconds after which the same request may be carried out.
        """
        super().__init__(message)
        self.status, self.retry_after = status, retry_after


@dataclass(frozen=True)
class Limits:
    """The limits of a server."""

    upload: int = 256 << 20  # bytes of a video
    seconds: float | int = 60.0  # of a video
    pixels: int = 4096 * 2304  # of a frame
    decoding: float | int = 300.0  # seconds in which a video must be decoded
    prompt: int = 500  # characters
    candidates: int = 4  # sounds of a video, of which one is kept
    queue: int = 64  # jobs that wait or run
    each: int = 16  # the same of one visitor
    per_minute: int = 30  # new jobs of one visitor
    uploads: int = 8  # at a time
    uploading: float | int = 600.0  # seconds that an upload may take
    silence: float | int = 30.0  # seconds of an upload in which nothing comes
    stored: int = 8 << 30  # bytes of all files
    keep: float | int = 3600.0  # seconds for which a result stays

    def check_size(self, size: int) -> None:
        """Refuse a video of too many bytes.

        Raises:
            Refused: it has.
        """
        if size > self.upload:
            raise Refused(
                413, f"the video is larger than {self.upload / 2**20:g} MiB: cut or compress it"
            )

    def check_video(self, seconds: float | int, width: int, height: int) -> None:
        """Refuse a video that is too long, or whose frames are too large.

        Raises:
            Refused: it is.
        """
        if seconds > self.seconds:
            raise Refused(
                422, f"the video is {span(seconds)} long and may be {span(self.seconds)}: cut it"
            )
        if width * height > self.pixels:
            raise Refused(
                422,
                f"the video has {width}x{height} pixels, and {self.pixels / 1e6:.1f} million are "
                "allowed: make it smaller",
            )


def span(seconds: float | int) -> str:
    """Return a length of time as people say it."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{seconds / 3600:.3g} h"

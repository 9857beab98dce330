"""The page of a report: one HTML file that works from a folder, with its sounds and pictures.

Data, style and program are in the file itself, because a browser lets a page from a folder read no
other file. Sounds, videos and pictures lie beside it in `media/` and are loaded when they are
shown.
"""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mfm_jax.evaluation.clips import Sound
from mfm_jax.evaluation.measure import Picture, Wave
from mfm_jax.evaluation.report import Report
from mfm_jax.media.audio import mel_magnitudes, write_sound
from mfm_jax.typing import Float, UInt8

LOOK = Path(__file__).with_name("look.css")
"""The style that pages of this project have in common; each page adds its own."""
MEDIA = "media"
PLAYED = (".mp4", ".m4v", ".mov", ".webm")
"""Suffixes of videos that browsers play; of others only frames are shown."""
LARGEST = 64 << 20  # bytes of a video that is copied
COLUMNS = 1200  # most columns of a spectrogram
MELS = 96
QUIET, LOUD = -9.5, 1.5  # nats, the ends of the colours
HEIGHT = 72  # pixels of the frames in a strip


class Page:
    """Writes the files of a page, clip by clip and from several threads, and then the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / MEDIA).mkdir()

    def add(
        self, number: int, waves: Mapping[str, Wave], picture: Picture | None
    ) -> dict[str, str]:
        """Write the sounds and pictures of a clip; return their paths below the page.

        Args:
            number: of the clip; files are named by it, so that a name may have any characters.
        """
        found = {}
        for index, (side, wave) in enumerate(waves.items()):
            stem = f"{MEDIA}/{number:05d}-{index}"
            write_sound(self.folder / f"{stem}.flac", wave.own, wave.rate)
            spectrogram(wave.at_16k).save(self.folder / f"{stem}.png", optimize=True)
            found[f"sound:{side}"], found[f"picture:{side}"] = f"{stem}.flac", f"{stem}.png"
        if picture is not None:
            stem = f"{MEDIA}/{number:05d}"
            strip(picture.strip).save(self.folder / f"{stem}.jpg", quality=82)
            found["strip"] = f"{stem}.jpg"
            if video := self._video(picture, stem):
                found["video"] = video
        return found

    def write(self, report: Report) -> None:
        """Write `index.html`."""
        here = Path(__file__).with_name("page.html")
        text = here.read_text(encoding="utf-8")
        data = json.dumps(_short(report.to_json()), ensure_ascii=False, separators=(",", ":"))
        for mark, content in (
            ("/* style */", LOOK.read_text("utf-8") + here.with_suffix(".css").read_text("utf-8")),
            ("/* program */", here.with_suffix(".js").read_text(encoding="utf-8")),
            ("/* data */", data.replace("<", "\\u003c")),
        ):
            before, after = text.split(mark)
            text = before + content + after
        printable = text.encode("utf-8", "backslashreplace")
        (self.folder / "index.html").write_bytes(printable)

    def _video(self, picture: Picture, stem: str) -> str | None:
        """Copy the video that the picture is of, if a browser can play it from its beginning."""
        path = picture.source.path
        suffix, whole = path.suffix.lower(), picture.source == Sound(path)
        if suffix not in PLAYED or path.stat().st_size > LARGEST or not whole:
            return None
        shutil.copyfile(path, self.folder / f"{stem}{suffix}")
        return f"{stem}{suffix}"


def spectrogram(wave: Float[np.ndarray, " A"]) -> Image.Image:
    """Return the log-mel of a sound at 16 kHz, low frequencies at the bottom, without axes."""
    hop = max(160, 16 * math.ceil(len(wave) / COLUMNS / 16))
    padded = np.pad(wave.astype(np.float32), (0, max(0, 2048 - len(wave))))
    mel = mel_magnitudes(padded, mels=MELS, n_fft=1024, hop=hop, fmin=40)
    columns = max(1, min(len(mel), round(len(wave) / hop)))
    shade = (np.log(np.maximum(mel[:columns], 1e-5)) - QUIET) / (LOUD - QUIET)
    image = Image.fromarray((255 * np.clip(shade, 0, 1)).astype(np.uint8).T[::-1].copy())
    coloured = image.convert("P")
    coloured.putdata(image.tobytes())
    coloured.putpalette(_palette())
    return coloured


def strip(frames: list[UInt8[np.ndarray, "H W 3"]]) -> Image.Image:
    """Return frames beside each other."""
    frames = frames or [np.zeros((HEIGHT, HEIGHT, 3), np.uint8)]
    width = max(1, round(HEIGHT * frames[0].shape[1] / frames[0].shape[0]))
    joined = Image.new("RGB", (width * len(frames), HEIGHT))
    for number, frame in enumerate(frames):
        small = Image.fromarray(frame).resize((width, HEIGHT), Image.Resampling.LANCZOS)
        joined.paste(small, (number * width, 0))
    return joined


def _palette() -> bytes:
    from matplotlib import colormaps

    return (255 * colormaps["magma"](np.arange(256))[:, :3]).round().astype(np.uint8).tobytes()


def _short(value: Any) -> Any:
    """Return JSON with numbers of five digits, which a page needs no more of."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return [_short(item) for item in value] if isinstance(value, list | tuple) else value

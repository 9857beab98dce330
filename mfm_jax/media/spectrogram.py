"""Draw the log-mels of sounds, in the same colours for every sound."""

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mfm_jax.media.audio import RATE, log_mel
from mfm_jax.typing import Float, Shaped

QUIET, LOUD = -11.5, 2.0  # nats, the ends of the colours; -11.5 is the least that `log_mel` gives


def show(axes: Any, wave: Float[np.ndarray, " A"]) -> None:
    """Draw the log-mel of `wave` over seconds into axes of matplotlib."""
    mel = np.asarray(log_mel(wave))
    axes.imshow(
        mel.T, origin="lower", aspect="auto", vmin=QUIET, vmax=LOUD,
        extent=(0, len(wave) / RATE, 0, mel.shape[1]),
    )  # fmt: skip


def picture(wave: Float[np.ndarray, " A"]) -> Shaped[np.ndarray, "H W 3"]:
    """Return a picture of the log-mel of `wave` with its axes, in bytes of red, green and blue."""
    figure = Figure(figsize=(8, 2.5), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    show(axes, wave)
    axes.set(xlabel="seconds", ylabel="mel bin")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()

"""LOA of a sound that is not wanted: guidance moves away from it, as from a negative prompt.

It is the mean over the file, so it says what sounds and not when. A sample of the sound is enough;
it need not fit the video in time.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.errors import UsageError
from mfm_jax.inference.sound_encoders import hear_loa
from mfm_jax.media.audio import RATE, audiomae_input
from mfm_jax.media.sounds import read_sound
from mfm_jax.storage.copies import local_copy
from mfm_jax.typing import Float

LONGEST = 60.0
"""Seconds of a file that are heard."""


def unwanted_loa(bundle: Bundle, path: Path, **how: Any) -> Float[np.ndarray, "L E"]:
    """Return the LOA of a sound, or of a video's sound, with the mean over time at every moment.

    Args:
        how: as `Bundle.load`.

    Raises:
        MediaError: the file cannot be read, or has no sound.
        UsageError: the bundle has no AudioMAE, or the file is silent.
    """
    if "audiomae" not in bundle.entries:
        raise UsageError(
            f"bundle {bundle.path} has no AudioMAE, which hears a negative sound: convert it, or "
            "leave the sound out"
        )
    with local_copy(path) as file:
        wave = read_sound(file, RATE, seconds=LONGEST)
    if not np.abs(wave - wave.mean()).max(initial=0.0) > 0:
        raise UsageError(f"negative sound {path} is silent: leave it out")
    samples, grid = round(bundle.settings.seconds * RATE), bundle.config("mapper").loa
    audiomae, frames = bundle.load("audiomae", **how), bundle.config("audiomae").frames
    # The last window reaches back, so that no window is padded unless the file is that short.
    last = max(0, len(wave) - samples)
    parts = [wave[start : start + samples] for start in [*range(0, last, samples), last]]
    heard = [
        np.asarray(hear_loa(audiomae, jnp.asarray(fbank)[None], grid=grid)[0])
        for fbank in (audiomae_input(part, samples, frames) for part in parts)
    ]
    over_time = np.mean(heard, axis=0).reshape(*grid.shape, -1).mean(axis=0)
    return np.tile(over_time, (grid.shape[0], 1))

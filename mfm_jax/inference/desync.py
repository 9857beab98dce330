"""Compare the sound of clips with their pictures by Synchformer: the logits that DeSync reads."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax import numpy as jnp

from mfm_jax.errors import MediaError, SettingError
from mfm_jax.media.audio import RATE
from mfm_jax.media.segments import mel_segments, segment_samples, segments
from mfm_jax.media.synchformer_frames import synchformer_frames
from mfm_jax.models.synchformer import Synchformer, SynchformerConfig
from mfm_jax.models.synchformer_video import normalise
from mfm_jax.runtime.sharding import constrain
from mfm_jax.typing import Array, Float, UInt8


def desync_inputs(
    config: SynchformerConfig,
    video: Path,
    wave: Float[np.ndarray, " A"],
    seconds: float = 8.0,
    start: float = 0.0,
) -> tuple[UInt8[np.ndarray, "T H W 3"], Float[np.ndarray, "S columns M"]]:
    """Read the pictures of a clip, and prepare a sound for them, at 16 kHz and mono.

    Args:
        wave: the sound from `start` on. It is neither centred nor scaled.
        seconds: how much of both is compared; VGGSound's clips are scored over 8.

    Raises:
        SettingError: `seconds` are too few for the network.
        MediaError: the video cannot be read, or it or the sound is shorter. The original drops such
            a clip, or takes another in its place.
    """
    frames = int(config.fps * seconds + 1e-9)
    least = config.video.frames * (config.sync.segments + 1) // 2
    if frames < least:
        raise SettingError(
            f"DeSync compares at least {least / config.fps:g} s of a clip, not {seconds:g}"
        )
    samples = int(RATE * seconds + 1e-9)
    if len(wave) < samples:
        raise MediaError(
            f"the sound for {video} is {len(wave) / RATE:.3f} s long, DeSync compares {seconds:g} s"
        )
    pictures = synchformer_frames(video, seconds, start, config.fps, config.video.image)
    length = segment_samples(config.video.frames, config.fps)
    return pictures, mel_segments(wave[:samples], length, config.audio.columns)


@jax.jit
def desync_logits(
    network: Synchformer,
    frames: UInt8[Array, "B T H W 3"],
    mel: Float[Array, "B S columns M"],
) -> Float[Array, "B 2 V"]:
    """Return the logits of the offset in the first and in the last segments of clips.

    Raises:
        ValueError: frames and `mel` have different numbers of segments.
    """
    pictures = jax.vmap(partial(segments, length=network.config.video.frames))(frames)
    if pictures.shape[1] != mel.shape[1]:
        raise ValueError(f"{pictures.shape[1]} segments of frames, {mel.shape[1]} of sound")
    video = network.encode_video(normalise(jnp.asarray(pictures)))
    audio = network.encode_audio(mel)
    read = network.config.sync.segments
    first = network.sync(video[:, :read], audio[:, :read])
    last = network.sync(video[:, -read:], audio[:, -read:])
    return constrain(jnp.stack([first, last], axis=1), "batch")

"""Initialises a vocoder as a bank of oscillators.

Shifting the mel by one frame shifts HiFi-GAN's sound by one frame. So for a constant mel its sound
repeats every frame: it is a sum of harmonics of the frame rate. From random weights it takes many
steps until there is any tone at all; noise comes first. The harmonics can be written into the
weights instead:

    mel -- conv_in --> hinges -- upsampler 0 --> magnitudes -- upsampler 1 --> bands
        -- upsampler 2 --> samples

- The magnitude of a mel bin is approximated by a sum of hinge functions of its logarithm.
- Each magnitude drives the harmonics of the frame rate in its bin. They are represented as the
  real and imaginary part of a frequency band, at the sample rate between the last two upsamplers.
- The last upsampler shifts each band to its frequency.

A pair of channels x and -x passes a leaky ReLU linearly. All other channels start at 0, with random
weights on one side, so that they can learn. This is our own construction.
"""

import numpy as np
from flax import nnx
from jax import numpy as jnp

from mfm_jax.errors import SettingError
from mfm_jax.media.audio import RATE, mel_filters
from mfm_jax.models.vocoder import Vocoder, VocoderConfig
from mfm_jax.typing import Float

SLOPE = 0.1  # of the leaky ReLU between stages
HINGES = (-4.0, -1.5, 0.3)  # nats of log-mel at which the hinges start
DEEP = 12.0  # nats; a log-mel is above -11.6, so this offset makes it positive
LOUD = 2.5  # nats; about the largest log-mel of a clip
PER_BAND = 4  # channels: a pair for the real and a pair for the imaginary part
GAIN = (1 + SLOPE) * (1 + 0.01)  # of a pair in two leaky ReLUs, of slopes 0.1 and 0.01
HEARD = 512  # magnitude of a sine of amplitude 1, summed over the bins of a Hann window of 1024


def check_stages(config: VocoderConfig) -> None:
    """Check that a vocoder of these sizes can start as oscillators.

    Raises:
        SettingError: it cannot.
    """
    stages, enough = len(config.rates), (len(HINGES) + 1) * config.mels
    if stages != 3 or config.rates[0] != 1 or config.channels < enough:
        raise SettingError(
            f"oscillators need rates of (1, a, b) and {enough} channels or more, not "
            f"{config.rates} and {config.channels}: change recipe.network, or train a "
            "VocoderRecipe"
        )


def become_oscillators(vocoder: Vocoder) -> None:
    """Write the oscillators into the weights of `vocoder`; `check_stages` must accept its sizes."""
    config = vocoder.config
    _hinges(vocoder)
    _magnitudes(vocoder)
    _harmonics(vocoder, _amplitudes(config))
    _bands(vocoder)
    for block in vocoder.blocks:
        for conv in block.plain:
            conv.kernel[...] = jnp.zeros_like(conv.kernel[...])
    out = np.zeros(vocoder.conv_out.kernel.shape)
    out[out.shape[0] // 2, :2, 0] = 1 / GAIN, -1 / GAIN
    _write(vocoder.conv_out.kernel, out)


def _write(weight: nnx.Param | None, values: Float[np.ndarray, "..."]) -> None:
    assert weight is not None  # a convolution may have no bias
    weight[...] = jnp.asarray(values, weight.dtype)


def _hinges(vocoder: Vocoder) -> None:
    """Let `conv_in` output each mel bin minus each of `HINGES`, and each bin plus `DEEP`."""
    mels, kernel = vocoder.config.mels, np.zeros(vocoder.conv_in.kernel.shape)
    bias, rows = np.zeros(kernel.shape[-1]), np.arange(mels)
    for i, below in enumerate((*HINGES, -DEEP)):
        kernel[kernel.shape[0] // 2, rows, i * mels + rows] = 1
        bias[i * mels + rows] = -below
    _write(vocoder.conv_in.kernel, kernel)
    _write(vocoder.conv_in.bias, bias)


def _magnitudes(vocoder: Vocoder) -> None:
    """Let upsampler 0 output the magnitude of each bin in its first channels."""
    mels, kernel = vocoder.config.mels, np.array(vocoder.upsamplers[0].kernel)
    weights, rows = _exponential(), np.arange(mels)
    kernel[:, :mels] = 0
    middle, bias = kernel.shape[0] // 2, np.zeros(kernel.shape[1])
    # relu(x) = (leaky(x) - slope x) / (1 - slope); x itself comes from the bin plus `DEEP`.
    for i, (weight, below) in enumerate(zip(weights / (1 - SLOPE), HINGES, strict=True)):
        kernel[middle, rows, i * mels + rows] += weight
        kernel[middle, rows, len(HINGES) * mels + rows] -= SLOPE * weight
        bias[:mels] += SLOPE * weight * (DEEP + below)
    _write(vocoder.upsamplers[0].kernel, kernel)
    _write(vocoder.upsamplers[0].bias, bias)


def _exponential() -> Float[np.ndarray, " hinges"]:
    """Return weights of hinges whose sum approximates exp(x), in relative error above 0.15."""
    x = np.linspace(-7, LOUD, 400)
    hinges = np.maximum(x[:, None] - np.array(HINGES), 0)
    heard = 1 / (np.exp(x) + 0.15)
    return np.linalg.lstsq(hinges * heard[:, None], np.exp(x) * heard, rcond=None)[0]


def _frame_rate(config: VocoderConfig) -> float:
    return RATE / config.hop


def _amplitudes(config: VocoderConfig) -> Float[np.ndarray, "K M"]:
    """Return the amplitude of each harmonic for each bin that reproduces the bin's magnitude."""
    rate = _frame_rate(config)
    harmonics = rate * np.arange(1, int(RATE / 2 / rate))
    filters = mel_filters(config.mels, RATE, 0, RATE // 2)  # sampled at every Hz
    heard = HEARD * filters[:, np.rint(harmonics).astype(int)]
    # At low pitch, a bin between two harmonics gets the nearest one.
    for row in np.flatnonzero(heard.sum(axis=1) == 0):
        nearest = np.abs(harmonics - filters[row].argmax()).argmin()
        heard[row, nearest] = HEARD * filters[row].max() / 2
    amplitudes = heard.T / (heard**2).sum(axis=1)
    return amplitudes / (heard @ amplitudes).sum(axis=1).mean()


def _window(length: int) -> Float[np.ndarray, " L"]:
    """Return a Hann window whose zeros are half a sample outside of it."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(length) + 0.5) / length)


def _band_width(config: VocoderConfig) -> float:
    """Return the width in Hz of each band in the input of the last stage."""
    return RATE / 2 / (config.channels // 4 // PER_BAND)


def _harmonics(vocoder: Vocoder, amplitudes: Float[np.ndarray, "K M"]) -> None:
    """Let upsampler 1 output the cosine and sine of each harmonic in the channels of its band."""
    config = vocoder.config
    _, per_frame, later = config.rates
    kernel = np.zeros(vocoder.upsamplers[1].kernel.shape)
    length = len(kernel)
    # Times of the kernel's samples in frames, at the middle of the samples that each becomes.
    frames = (np.arange(length) - (length - per_frame) // 2 + (later - 1) / 2 / later) / per_frame
    count = len(amplitudes)
    for k, row in enumerate(amplitudes, start=1):
        band = int(k * _frame_rate(config) / _band_width(config))
        # Phases that grow with the square of the index keep the sum from being a train of clicks.
        phase = 2 * np.pi * k * frames - np.pi * k * (k - 1) / count
        for part, wave in enumerate((np.cos(phase), np.sin(phase))):
            shape = (wave * _window(length))[:, None] * row
            first = PER_BAND * band + 2 * part
            kernel[:, first, : config.mels] += shape
            kernel[:, first + 1, : config.mels] -= shape
    _write(vocoder.upsamplers[1].kernel, kernel)


def _bands(vocoder: Vocoder) -> None:
    """Let upsampler 2 output the sound and its negative in the first two channels."""
    config = vocoder.config
    per_sample = config.rates[-1]
    kernel = np.array(vocoder.upsamplers[2].kernel)
    length, width = len(kernel), _band_width(config)
    kernel[:, :2] = 0
    seconds = (np.arange(length) - (length - per_sample) // 2 - (per_sample - 1) / 2) / RATE
    window = _window(length) * 2 * per_sample / length
    for band in range(kernel.shape[2] // PER_BAND):
        phase = 2 * np.pi * (band + 0.5) * width * seconds
        for part, wave in enumerate((np.cos(phase), -np.sin(phase))):
            first = PER_BAND * band + 2 * part
            shape = (wave * window)[:, None]
            kernel[:, :2, first] += shape * (1, -1)
            kernel[:, :2, first + 1] -= shape * (1, -1)
    _write(vocoder.upsamplers[2].kernel, kernel)

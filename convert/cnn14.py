"""Convert Cnn14, PANNs' `Cnn14_16k_mAP=0.438.pth`, whose trunk CAVP shares.

PANNs' networks of 8, 16 and 32 kHz differ in nothing but their front end, which each file has as
tensors.
"""

from functools import cache

import numpy as np

from convert import licences
from convert.incoming import Incoming
from convert.model import Model, Read, Request, own_config, own_licence, write_own
from convert.rows import CONV, DENSE, batch_norm, named
from convert.table import Computed, ConversionError, Ignore, Row, Shape, Table
from convert.tensors import excused
from mfm_jax.media.audio import mel_filters
from mfm_jax.metrics.spectra import hann
from mfm_jax.models.cnn14 import Cnn14Config

BLOCKS = 6
WINDOW = 512  # samples at 16 kHz; 256 at 8 kHz, 1024 at 32 kHz
MEL = "logmel_extractor.melW"


def trunk_rows(theirs: str, ours: str, *, norm: str) -> tuple[Row | Computed, ...]:
    """Return the rows of the trunk; `norm` is their name of the BatchNorm over mel bins."""
    rows = list(batch_norm(f"{theirs}{norm}", f"{ours}norm"))
    for i in range(BLOCKS):
        block = f"{theirs}conv_block{i + 1}"
        rows.append(Row(f"{block}.conv*.weight", f"{ours}blocks.{i}.conv*.kernel", CONV))
        rows.extend(batch_norm(f"{block}.bn*", f"{ours}blocks.{i}.norm*"))
    return tuple(rows)


def mel_matrix(key: str, shape: Shape) -> np.ndarray:
    """Return the mel matrix of the front end (`mfm_jax.metrics.spectra.cnn14_log_mel`)."""
    return mel_filters(mels=64, n_fft=WINDOW, fmin=50, fmax=8000).T


@cache
def dft(key: str, shape: Shape) -> np.ndarray:
    """Return a part of the windowed DFT of the front end, as the kernel of a convolution."""
    angles = -2 * np.pi * np.outer(np.arange(WINDOW // 2 + 1), np.arange(WINDOW)) / WINDOW
    wave = np.cos(angles) if "conv_real" in key else np.sin(angles)
    return (wave * hann(WINDOW))[:, None, :]


TABLE = Table(
    rows=(
        *trunk_rows("", "trunk.", norm="bn0"),
        *named("fc1", "fc1", DENSE),
        *named("fc_audioset", "classify", DENSE),
    ),
    ignore=(
        Ignore(
            "spectrogram_extractor.*", "a windowed DFT, which the front end computes", value=dft
        ),
        Ignore("logmel_extractor.*", "the mel matrix of the front end", value=mel_matrix),
    ),
)


def read(request: Request) -> Read:
    """Read the tagger; the tables of its front end are kept for the way back.

    Raises:
        ConversionError: the file does not say which front end the network has.
    """
    weights = request.weights(TABLE.knows)
    own = own_config(request, Cnn14Config)
    if own is None and MEL not in weights.tensors and not excused(MEL, request.excuse):
        raise ConversionError(
            f"cnn14: without {MEL} nothing tells the sampling rate of the network: take "
            f"Cnn14_16k_mAP=0.438.pth, or --excuse {MEL} if it has 16 kHz"
        )
    config = own or Cnn14Config.panns()
    licence = own_licence(request, licences.CNN14)
    parts = Incoming("cnn14", config, TABLE, weights.tensors, weights.files, licence)
    return Read([parts])


MODEL = Model(
    read,
    write_own("cnn14", lambda config: TABLE),
)

"""Our scores against the libraries that the published scripts call, on packs of other seeds.

They are not among the dependencies of the tests, so the suite does not collect this file:

pip install librosa==0.11.0 scikit-learn scikit-image kadtk ssr_eval torchlibrosa hypy-utils
pytest tests/metrics/against_libraries.py
"""

import librosa
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.metrics import average_precision_score
from ssr_eval.metrics import AudioMetrics
from torchlibrosa.stft import LogmelFilterBank, Spectrogram

from mfm_jax.metrics import distances, onsets, similarity, spectra
from tests.metrics.packs import RATE, pack

TOLERANCE = 1e-3


@pytest.fixture(scope="module", params=range(1, 6))
def clips(request):
    return pack(request.param)


def test_librosa_onsets(clips, parity):
    for pair in clips.pairs:
        for wave in (pair.reference, pair.generated):
            ours = onsets.resample(wave, RATE)
            theirs = librosa.resample(wave, orig_sr=RATE, target_sr=onsets.RATE)
            parity("resampled wave", "librosa", ours, theirs, 1e-6)
            strength = librosa.onset.onset_strength(y=theirs, sr=onsets.RATE)
            name = f"librosa, {pair.kind}"
            parity("onset strength", name, onsets.onset_strength(ours), strength, TOLERANCE)
            for delta in (0.07, 0.3):
                found = librosa.onset.onset_detect(
                    y=theirs, sr=onsets.RATE, units="samples", delta=delta
                )
                assert onsets.detect_onsets(ours, delta=delta).tolist() == found.tolist()


def test_scikit_learn_average_precision(parity):
    rng = np.random.default_rng(0)
    for size in range(1, 60):
        labels, scores = rng.integers(0, 2, size), rng.integers(0, 9, size) / 9
        if labels.any():
            theirs = average_precision_score(labels, scores)
            parity(
                "AP",
                "scikit-learn",
                onsets.average_precision(labels.tolist(), scores.tolist()),
                theirs,
                1e-9,
            )


def test_scikit_image_pictures(clips, parity):
    for pair in clips.pairs:
        x, y = (spectra.unit_mel(wave) for wave in (pair.reference, pair.generated))
        span = max(x.max(), y.max()) - min(x.min(), y.min())
        theirs = structural_similarity(x, y, data_range=span)
        parity("SSIM", f"scikit-image, {pair.kind}", similarity.ssim(x, y), theirs, TOLERANCE)
        if pair.kind != "identical":
            theirs = peak_signal_noise_ratio(x, y, data_range=1)
            parity("PSNR", f"scikit-image, {pair.kind}", similarity.psnr(x, y), theirs, TOLERANCE)


def test_ssr_eval_lsd(clips, parity):
    theirs = AudioMetrics(RATE)
    for pair in clips.pairs:
        if pair.kind == "silent":
            continue
        real, made = (w / np.abs(w).max() for w in (pair.reference, pair.generated))
        made, real = (theirs.wav_to_spectrogram(w) for w in (made, real))
        ours = similarity.log_spectral_distance(pair.reference, pair.generated)
        name = f"ssr_eval, {pair.kind}"
        parity("LSD", name, ours, float(theirs.lsd(made, real)), 2e-3)
        ours = similarity.ssim_of_waves(pair.reference, pair.generated)
        parity("SSIM of spectra", name, ours, float(theirs.ssim(made, real)), TOLERANCE)


def test_torchlibrosa_log_mel(clips, parity):
    spectrogram = Spectrogram(512, 160, 512, "hann", True, "reflect", freeze_parameters=True)
    mel = LogmelFilterBank(RATE, 512, 64, 50, 8000, ref=1.0, amin=1e-10, top_db=None)
    for pair in clips.pairs:
        with torch.no_grad():
            theirs = mel(spectrogram(torch.from_numpy(pair.generated)[None]))[0, 0].numpy()
        ours = spectra.cnn14_log_mel(pair.generated)
        parity("Cnn14 log-mel", f"torchlibrosa, {pair.kind}", ours, theirs, 2e-3)


def test_kadtk(clips, parity):
    kad = pytest.importorskip("kadtk.kad", reason="kadtk needs torchaudio", exc_type=ImportError)
    for columns in (8, 40):
        real, made = (torch.from_numpy(e[:, :columns]) for e in clips.embeddings)
        theirs = kad.calc_kernel_audio_distance(
            made, real, (None, None), "cpu", precision=torch.float64
        )
        ours = distances.kernel_audio_distance(real.numpy(), made.numpy())
        parity("KAD", f"kadtk, {columns} columns", ours, float(theirs), TOLERANCE)

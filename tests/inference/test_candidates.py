"""Of several sounds the one is kept whose LOA is nearest to what was predicted of the video."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

import mfm_jax
from mfm_jax.bundle import Bundle, write_bundle
from mfm_jax.errors import UsageError
from mfm_jax.foley.world import World, generate_clip
from mfm_jax.inference.candidates import CLASSES, Judge
from mfm_jax.inference.pipeline import Made, VideoToAudio
from mfm_jax.inference.sound_encoders import encode_audiomae
from mfm_jax.media.audio import kaldi_fbank, prepare_for_audiomae
from mfm_jax.media.write import write_frames
from mfm_jax.metrics.spectra import cnn14_log_mel, prepare_for_cnn14
from mfm_jax.models.audiomae import pool_loa
from mfm_jax.models.cnn14 import Cnn14Config
from mfm_jax.storage.paths import TINY_BUNDLE
from tests.bundles import SETTINGS, untrained, untrained_bundle, untrained_component

pytestmark = pytest.mark.usefixtures("open_once")


@pytest.fixture(scope="module")
def clip():
    return generate_clip(World(), 5)


@pytest.fixture(scope="module")
def made(tmp_path_factory, clip):
    """Sounds of a clip by untrained networks: three seeds alone, and the best of the three."""
    folder = tmp_path_factory.mktemp("made")
    write_frames(iter(clip.frames), folder / "a.mp4", fps=25)
    fast = {"steps": 2, "batch": 1, "bundle": untrained_bundle(folder / "bundle").path}
    for seed in (7, 8, 9):
        mfm_jax.generate(folder / "a.mp4", folder / f"{seed}.wav", seed=seed, **fast)
    mfm_jax.generate(folder / "a.mp4", folder / "out", seed=7, candidates=3, format="wav", **fast)
    return folder


def test_the_best_is_one_of_those_that_the_seeds_make(made):
    (entry,) = map(json.loads, (made / "out/generated.jsonl").read_text().splitlines())
    chosen = (made / "out/a.wav").read_bytes()
    assert chosen == (made / f"{7 + entry['candidate']}.wav").read_bytes()
    assert entry["made_of"]["candidates"] == 3


def test_the_true_sound_is_nearer_to_its_own_loa_than_others(clip):
    bundle, model = Bundle.open(TINY_BUNDLE), VideoToAudio.open()
    judge = Judge.open(bundle, model)
    true = clip.audio[: judge.samples]
    other = generate_clip(World(), 6).audio[: judge.samples]
    fbank = kaldi_fbank(prepare_for_audiomae(true, judge.samples), judge.frames)
    grid = model.networks.mapper.config.loa
    loa = np.asarray(
        pool_loa(encode_audiomae(judge.audiomae, fbank[None]), grid.grid, grid.pool)[0]
    )
    waves = np.stack([other, true, true / 3])
    errors = judge.errors(waves, loa)
    assert errors[1] < 1e-6
    assert errors[2] < 1e-3  # the level does not count
    assert errors[0] > 0.1
    windows = [Made(waves, loa), Made(waves[[0, 2, 0]], loa)]
    choice = judge.choose(windows)
    assert choice.number == 1
    np.testing.assert_allclose(choice.errors[1], (errors[1] + errors[2]) / 2, rtol=1e-4, atol=1e-9)

    # The nearest one has music in one of the windows.
    strict = replace(judge, tagger=tagger_of_music(true, other), veto=("speech", "music"))
    kept = strict.choose([Made(waves[:2], loa), Made(waves[[0, 0]], loa)])
    assert (kept.number, kept.vetoed, kept.notes) == (0, ["", "music"], [])
    assert kept.words.startswith(" (candidate 1 of 2, LOA errors ")
    assert kept.words.endswith(" with music)")
    both = strict.choose([Made(waves[[1, 1]], loa), Made(waves[:2], loa)])
    assert (both.number, both.vetoed) == (1, ["music", "music"])
    assert both.notes == ["music is heard in all of its 2 candidates: ask for more"]


def tagger_of_music(music, other):
    """A drawn Cnn14, steered to hear music in one of two sounds and no other class in any."""
    tagger = untrained_component("cnn14", replace(Cnn14Config.tiny(), mels=64), 3)[1]
    mels = jnp.stack([cnn14_log_mel(prepare_for_cnn14(wave)) for wave in (music, other)])
    has, has_not = np.asarray(jax.jit(lambda net, mel: net(mel)[0])(tagger, mels))
    towards = has - has_not
    towards *= 20 / (towards @ towards)
    kernel = np.zeros(tagger.classify.kernel.shape, np.float32)
    bias = np.full(kernel.shape[1], -20, np.float32)
    kernel[:, CLASSES["music"]] = towards
    bias[CLASSES["music"]] = -towards @ (has + has_not) / 2
    tagger.classify.kernel, tagger.classify.bias = nnx.Param(kernel), nnx.Param(bias)
    return tagger


@pytest.mark.parametrize(
    ("without", "wrong", "message"),
    [
        ("audiomae", {}, "has no AudioMAE, which ranks candidates"),
        ("", {"veto": "speech,music"}, "has no Cnn14, which hears speech and music"),
        ("", {"veto": ["noise"]}, "veto 'noise' is not known: use speech, singing, music"),
        ("", {"veto": "music", "candidates": 1}, "a veto chooses among candidates: ask for 2"),
    ],
)
def test_what_a_bundle_cannot_judge_is_one_line(made, tmp_path, without, wrong, message):
    bundle = made / "bundle"
    if without:
        parts = {name: part for name, part in untrained().items() if name != without}
        bundle = write_bundle(tmp_path / "b", parts, settings=SETTINGS).path
    with pytest.raises(UsageError, match=message):
        mfm_jax.generate(
            made / "a.mp4", tmp_path / "x.wav", **{"bundle": bundle, "candidates": 2} | wrong
        )

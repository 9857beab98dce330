"""Of several sounds the one is kept whose LOA is nearest to what was predicted of the video."""

import json

import numpy as np
import pytest

import mfm_jax
from mfm_jax.bundle import Bundle, write_bundle
from mfm_jax.errors import UsageError
from mfm_jax.foley.world import World, generate_clip
from mfm_jax.inference.candidates import Judge
from mfm_jax.inference.encoders import encode_audiomae
from mfm_jax.inference.pipeline import Made, VideoToAudio
from mfm_jax.media.audio import kaldi_fbank, prepare_for_audiomae
from mfm_jax.media.write import write_frames
from mfm_jax.models.audiomae import pool_loa
from mfm_jax.storage.paths import TINY_BUNDLE
from tests.bundles import SETTINGS, untrained, untrained_bundle


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
    best, found = judge.choose(windows)
    assert best == 1
    np.testing.assert_allclose(found[1], (errors[1] + errors[2]) / 2, rtol=1e-4, atol=1e-9)


def test_a_bundle_without_audiomae_says_so(made, tmp_path):
    parts = {name: part for name, part in untrained().items() if name != "audiomae"}
    bundle = write_bundle(tmp_path / "b", parts, settings=SETTINGS)
    with pytest.raises(UsageError, match="has no AudioMAE, which ranks candidates"):
        mfm_jax.generate(made / "a.mp4", tmp_path / "x.wav", bundle=bundle.path, candidates=2)

"""Synchformer's stages: segments that belong together, and sounds early by a known time."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.bundle import Bundle, Settings, write_bundle
from mfm_jax.errors import SettingError
from mfm_jax.foley.clips import FoleyClips
from mfm_jax.models.synchformer import SyncConfig, SynchformerConfig
from mfm_jax.models.synchformer_video import normalise as as_the_tower_reads
from mfm_jax.models.timechat import normalise as as_timechat_reads
from mfm_jax.storage.weights import abstract, named_weights
from mfm_jax.train.contrastive import clip_loss
from mfm_jax.train.recipes.synchformer import (
    OVERLAPPING,
    OffsetsRecipe,
    SegmentsRecipe,
    Towers,
    accuracies,
    retrieved,
    unit_mean,
    with_towers,
)
from tests.bundles import CONFIGS, filled, untrained_component
from tests.metrics.test_desync import SMALL

MOMENT = 1.28
"""Seconds from the start of `clip` to its click and its flash."""
TINY = SynchformerConfig.tiny()


@pytest.fixture(scope="module")
def clip():
    """A decoded clip that is black and silent but for one moment."""
    frames, wave = np.zeros((64, 4, 4, 3), np.uint8), np.zeros(40_960, np.int16)
    frames[round(MOMENT * 25)] = 255
    frames[:, :, 0] = 7  # on the left
    wave[round(MOMENT * 16_000)] = 20_000
    return {"frames": frames, "wave": wave}


def times(element):
    """Return when an element flashes and when it clicks, in seconds; nan if it does not."""
    lit = element["frames"][:, 0, 2, 0] == 255
    flash = lit.argmax() / 25 if lit.any() else np.nan
    level = element["mel"][:, :65].astype(np.float32).mean(axis=-1)
    segment, column = np.unravel_index(level.argmax(), level.shape)
    click = segment * 0.32 + column * 0.01 if np.ptp(level) > 0.1 else np.nan
    return flash, click


def test_the_sound_of_a_class_is_early_by_its_offset(clip):
    recipe, rng = OffsetsRecipe(), np.random.default_rng(0)
    offsets, seen, compared = TINY.sync.seconds(), set(), 0
    for _ in range(150):
        element = recipe.eval_transform(clip, rng)
        assert element["frames"].shape == (40, 4, 4, 3)
        assert (element["mel"].shape, element["mel"].dtype) == ((4, 66, 128), np.float16)
        seen.add(int(element["label"]))
        flash, click = times(element)
        if np.isfinite(flash + click):
            assert flash - click == pytest.approx(offsets[element["label"]], abs=0.021)
            compared += 1
    assert seen == set(range(17))
    assert compared > 50


def test_training_adds_a_jitter_a_gain_and_a_mirror(clip):
    recipe, rng = OffsetsRecipe(), np.random.default_rng(1)
    found = [recipe.transform(clip, rng) for _ in range(60)]
    gaps = [f - c - TINY.sync.seconds()[e["label"]] for e in found for f, c in [times(e)]]
    gaps = [gap for gap in gaps if np.isfinite(gap)]
    assert 0.02 < np.max(np.abs(gaps)) <= 0.071
    assert {int(e["frames"][0, 0, 0, 0]) for e in found} == {0, 7}
    loud = recipe.cut(clip, 20, 0.0, OVERLAPPING, gain=2.0)["mel"].max()
    assert loud > recipe.cut(clip, 20, 0.0, OVERLAPPING)["mel"].max() + 0.1


@pytest.mark.parametrize("recipe", [SegmentsRecipe(), OffsetsRecipe()], ids=["segments", "offsets"])
def test_the_batch_that_is_planned_is_the_one_that_is_read(clip, recipe):
    real = {**clip, "frames": np.zeros((64, 32, 32, 3), np.uint8)}
    made = recipe.eval_transform(real, np.random.default_rng(3))
    assert {n: (np.shape(x), x.dtype) for n, x in made.items()} == {
        n: (x.shape, x.dtype) for n, x in recipe.element_spec().items()
    }


def test_parts_lie_within_the_clip_at_every_offset():
    recipe, rng = OffsetsRecipe(), np.random.default_rng(2)
    for _ in range(500):
        _, first, offset = recipe.shifted(rng)
        for start in (first / 25, first / 25 + offset):
            assert -1e-6 <= start <= 2.56 - 1.6 + 1e-6


def test_segments_of_the_first_stage_do_not_overlap(clip):
    recipe = SegmentsRecipe()
    element = recipe.eval_transform(clip, np.random.default_rng(0))
    assert (element["frames"].shape[0], element["mel"].shape) == (48, (3, 66, 128))
    pictures = recipe.pictures(jnp.asarray(element["frames"][None]), step=2)
    assert pictures.shape == (1, 3, 16, 4, 4, 3)
    again = pictures.reshape(48, 4, 4, 3)
    np.testing.assert_allclose(again, element["frames"] / 127.5 - 1, atol=1e-5)
    starts = {int(times(recipe.transform(clip, np.random.default_rng(i)))[0] * 25 + 0.5)
              for i in range(40)}  # fmt: skip
    assert len(starts) > 8


def test_a_perfect_embedding_has_no_loss_and_finds_every_segment():
    vectors = jnp.eye(6)
    assert clip_loss(vectors, vectors, jnp.array(100.0)) < 1e-6
    assert retrieved(vectors, vectors) == 1
    assert retrieved(vectors, jnp.roll(vectors, 1, axis=0)) == 0
    unit = unit_mean(jnp.arange(24.0).reshape(2, 4, 3))
    np.testing.assert_allclose(jnp.linalg.norm(unit, axis=1), 1, atol=1e-6)


def test_accuracies_stand_beside_chance():
    logits = jax.nn.one_hot(jnp.array([3, 4, 0]), 5)
    found = accuracies(logits, jnp.array([3, 3, 4]))
    assert found["accuracy"] == pytest.approx(1 / 3)
    assert found["within_one"] == pytest.approx(2 / 3)
    assert found["accuracy_chance"] == pytest.approx(1 / 5)
    pairs = [abs(a - b) <= 1 for a in range(5) for b in range(5)]
    assert found["within_one_chance"] == pytest.approx(np.mean(pairs))


def test_a_sync_transformer_is_no_number_until_it_is_trained():
    towers = named_weights(filled(abstract(partial(Towers, SMALL)), 0))
    for name, weight in named_weights(with_towers(SMALL, towers)).items():
        if name.startswith("sync."):
            assert np.isnan(weight).all()
        else:
            np.testing.assert_array_equal(weight, towers[name])


def test_the_video_tower_starts_as_the_vision_transformer_of_the_bundle(tmp_path):
    """In a picture that stands still, each step has the patches of that one picture."""
    video = replace(TINY.video, image=(64, 64), depth=1)
    component = {"timechat": untrained_component("timechat", CONFIGS["timechat"], 0)}
    bundle = write_bundle(tmp_path / "bundle", component, settings=Settings.tiny())
    network = replace(TINY, video=video)
    recipe = SegmentsRecipe(
        bundle=str(bundle.path), source=FoleyClips(str(tmp_path)), network=network,
        init_from="timechat",
    )  # fmt: skip
    module = recipe.warm_start(filled(abstract(recipe.build), 1), None)
    picture = np.random.default_rng(0).integers(0, 256, (1, 1, 64, 64, 3), np.uint8)
    expected = bundle.load("timechat").vit(as_timechat_reads(jnp.asarray(picture))[:, 0])[:, 1:]
    first, patches = module.video.embed(
        as_the_tower_reads(jnp.asarray(np.repeat(picture, 16, axis=1)))
    )
    _, found = module.video.blocks[0](first, patches)
    np.testing.assert_allclose(found[0], np.repeat(expected, 8, axis=0), atol=2e-5)
    done = Bundle.open(recipe.finish(module, tmp_path, "test"))
    source = done.entries["synchformer"].source
    assert dict(source.trained_with) == {"timechat": done.entries["timechat"].checksum}
    recipe.check(tmp_path)
    with pytest.raises(SettingError, match=r"recipe\.init_from: the video tower's image, .* are"):
        replace(recipe, network=TINY).check(tmp_path)
    with pytest.raises(SettingError, match=r"recipe\.init_from is timechat or empty, not 'cavp'"):
        replace(recipe, init_from="cavp")


def test_clips_that_are_too_short_are_refused():
    with pytest.raises(SettingError, match=r"5 segments are longer than recipe\.seconds, 2\.56"):
        SegmentsRecipe(segments=5)
    with pytest.raises(SettingError, match=r"offsets of up to 2 s .* need clips of 3\.6 s"):
        OffsetsRecipe(network=replace(TINY, sync=SyncConfig(4, largest=2.0)))


def test_the_second_stage_needs_the_towers_of_its_bundle(tmp_path):
    component = {"synchformer": untrained_component("synchformer", SMALL, 0)}
    bundle = write_bundle(tmp_path / "bundle", component, settings=Settings.tiny())
    network = replace(SMALL, sync=TINY.sync)
    source = FoleyClips(str(tmp_path))
    recipe = OffsetsRecipe(bundle=str(bundle.path), source=source, network=network)
    recipe.check(tmp_path)
    towers = recipe.warm_start(abstract(recipe.build), None).video
    np.testing.assert_array_equal(
        towers.pos_embed[...], bundle.load("synchformer").video.pos_embed[...]
    )
    with pytest.raises(SettingError, match="has other towers than bundle"):
        replace(recipe, network=TINY).check(tmp_path)

from functools import partial

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.train.contrastive import (
    clamp_logit_scale,
    clip_intra_contrast,
    clip_loss,
    temporal_mean,
    temporal_semantic,
)

LOSS = 2e-6  # single precision at a value of 8
GRADIENT = 1e-6


@pytest.fixture(scope="module")
def golden(reference) -> dict[str, jax.Array]:
    """Inputs, losses and gradients of the published code: 4 videos of 3 clips."""
    stored = np.load(reference / "cavp/golden/loss.npz")
    return {name: jax.device_put(stored[name]) for name in stored.files}


@pytest.mark.parity
def test_released_loss(golden, parity):
    inputs = golden["video"], golden["spec"], golden["logit_scale_exp"]

    def total(*inputs):
        loss = clip_intra_contrast(*inputs)
        return loss.total, loss

    gradients, loss = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*inputs)
    name = "CAVP released loss"
    parity(name, "golden intra_total_loss", loss.total, golden["intra_total_loss"], LOSS)
    parity(
        name,
        "golden intra_extra_contrast_loss",
        loss.across,
        golden["intra_extra_contrast_loss"],
        LOSS,
    )
    parity(
        name,
        "golden intra_intra_contrast_loss",
        loss.within,
        golden["intra_intra_contrast_loss"],
        LOSS,
    )
    for argument, ours in zip(("video", "spec", "logit_scale_exp"), gradients, strict=True):
        stored = golden[f"intra_grad_{argument}"]
        parity(name, f"golden intra_grad_{argument}", ours, stored, GRADIENT)
    half = jax.jit(partial(clip_intra_contrast, weight=0.5))(*inputs).total
    parity(name, "golden intra_w0.5_total_loss", half, golden["intra_w0.5_total_loss"], LOSS)


@pytest.mark.parity
def test_clip_loss(golden, parity):
    ours = clip_loss(golden["video"], golden["spec"], golden["logit_scale_exp"])
    parity("CAVP ClipLoss", "golden clip_loss", ours, golden["clip_loss"], LOSS)


@pytest.mark.parity
def test_temporal_mean(golden, parity):
    names = ("video", "spec", "video_mean", "spec_mean", "logit_scale_exp")
    loss = temporal_mean(*(golden[n] for n in names))
    for part, ours in (
        ("total", loss.total),
        ("extra_contrast", loss.across),
        ("intra_contrast", loss.within),
    ):
        stored = golden[f"intramean_{part}_loss"]
        parity("CAVP Temporal_Mean loss", f"golden intramean_{part}_loss", ours, stored, LOSS)


@pytest.mark.parity
def test_temporal_semantic(golden, parity):
    loss = temporal_semantic(
        golden["video"][:4],
        golden["spec"][:4],
        golden["video_temporal"],
        golden["spec_temporal"],
        golden["logit_scale_exp"],
        weight=float(golden["temporal_temp_mix_weight"]),
    )
    for part, ours in (
        ("total", loss.total),
        ("semantic_contrast", loss.across),
        ("temporal_contrast", loss.within),
    ):
        stored = golden[f"temporal_{part}_loss"]
        parity("CAVP Temporal_Semantic loss", f"golden temporal_{part}_loss", ours, stored, LOSS)


def test_right_pairs_cost_less_than_shuffled_ones():
    features = jnp.asarray(np.random.default_rng(0).standard_normal((12, 8)), jnp.float32)
    features /= jnp.linalg.norm(features, axis=-1, keepdims=True)
    scale = jnp.asarray(10.0)
    right = clip_intra_contrast(features, features, scale)
    # Swapping the clips of a video costs within it as well; swapping whole videos does not.
    swapped = features.reshape(4, 3, 8)[:, ::-1].reshape(12, 8)
    moved = jnp.roll(features, 3, axis=0)
    assert right.across < clip_intra_contrast(features, swapped, scale).across
    assert right.within < clip_intra_contrast(features, swapped, scale).within
    assert right.across < clip_intra_contrast(features, moved, scale).across


def test_no_knowledge_costs_the_logarithm_of_the_choices():
    same = jnp.ones((12, 8))
    loss = clip_intra_contrast(same, same, jnp.asarray(5.0))
    np.testing.assert_allclose([loss.across, loss.within], np.log([12, 3]), rtol=1e-6)


def test_half_precision_features_are_compared_in_single_precision(golden):
    video, audio = (golden[n].astype(jnp.bfloat16) for n in ("video", "spec"))
    ours = clip_loss(video, audio, golden["logit_scale_exp"])
    exact = clip_loss(
        video.astype(jnp.float32), audio.astype(jnp.float32), golden["logit_scale_exp"]
    )
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, exact, rtol=1e-6)


def test_logit_scale_stays_between_one_and_a_hundred():
    clamped = clamp_logit_scale(jnp.asarray(9.0))
    assert float(jnp.exp(clamped)) == pytest.approx(100.0, rel=1e-6)
    assert float(clamp_logit_scale(jnp.asarray(-1.0))) == 0.0
    assert float(clamp_logit_scale(jnp.asarray(2.0))) == 2.0

"""Noise schedule: diffusers' numbers, and the identities between data, noise and predictions."""

import json

import diffusers
import jax
import numpy as np
import pytest
import torch
from jax import numpy as jnp
from safetensors.numpy import load_file

from mfm_jax.diffusion import Schedule

AUDIOLDM2 = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
T = jnp.array([0, 1, 481, 999])


@pytest.fixture
def ddim():
    """The scheduler of diffusers with the settings of AudioLDM 2."""
    options = {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False}
    return diffusers.DDIMScheduler(**AUDIOLDM2, **options)


@pytest.fixture
def pair():
    """Four data examples and their noise."""
    data, noise = jax.random.split(jax.random.key(0))
    return jax.random.normal(data, (4, 6, 5, 3)), jax.random.normal(noise, (4, 6, 5, 3))


@pytest.mark.parity
def test_alphas_are_those_of_diffusers(parity, ddim):
    ours, theirs = Schedule().alphas_cumprod, ddim.alphas_cumprod.numpy()
    assert ours.dtype == np.float32
    # Half a unit in the last place of numbers below 1.
    parity("schedule alphas_cumprod", "diffusers DDIMScheduler", ours, theirs, 6e-8)
    np.testing.assert_allclose(ours[[0, 999]], [0.99850, 1.423e-4], rtol=1e-3)


def test_schedule_of_the_released_config(reference):
    config = json.loads((reference / "audioldm2/configs/scheduler.json").read_text())
    ours = Schedule()
    assert ours.train_steps == config["num_train_timesteps"]
    assert (ours.beta_start, ours.beta_end) == (config["beta_start"], config["beta_end"])
    assert ours.prediction == config["prediction_type"]
    assert config["steps_offset"] == 1
    assert not config["set_alpha_to_one"]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers
@pytest.mark.parametrize("steps", [1, 5, 7, 12, 25, 200, 999])
def test_timesteps_are_those_of_diffusers(steps, ddim):
    ddim.set_timesteps(steps)
    np.testing.assert_array_equal(Schedule().timesteps(steps), ddim.timesteps)
    dpm = diffusers.DPMSolverMultistepScheduler(**AUDIOLDM2)
    dpm.set_timesteps(steps)
    np.testing.assert_array_equal(Schedule().timesteps(steps, "linspace"), dpm.timesteps)


def test_timesteps_of_the_golden_run(reference):
    golden = load_file(reference / "audioldm2/golden/pipeline_io.safetensors")
    theirs = np.concatenate([golden[f"step_{i}.t"] for i in range(5)])
    np.testing.assert_array_equal(Schedule().timesteps(5), theirs)


@pytest.mark.parametrize("steps", [2, 10, 25, 60, 999])
def test_logsnr_spacing_is_even_and_strictly_falling(steps):
    t = Schedule().timesteps(steps, "logsnr")
    assert t[0] == 999
    assert t[-1] == 0
    assert np.all(np.diff(t) < 0)
    if steps <= 25:  # beyond that the timesteps near 0 are too coarse to be even
        squares = Schedule().alphas_cumprod[t]
        gaps = np.diff(np.log(squares / (1 - squares)))
        np.testing.assert_allclose(gaps, gaps.mean(), rtol=0.45)


@pytest.mark.parametrize("steps", [0, 1000])
def test_impossible_number_of_steps(steps):
    with pytest.raises(ValueError, match="must be 1 to 999"):
        Schedule().timesteps(steps)


def test_unknown_names():
    with pytest.raises(ValueError, match="'epsilon' or 'v'"):
        Schedule(prediction="sample")
    with pytest.raises(ValueError, match="no spacing"):
        Schedule().timesteps(5, "karras")


@pytest.mark.parity
def test_noised_data_and_v_are_those_of_diffusers(parity, pair, ddim):
    theirs = [torch.from_numpy(np.asarray(a).copy()) for a in (*pair, T)]
    schedule = Schedule(prediction="v")
    against = "diffusers DDIMScheduler"
    parity(
        "schedule add_noise", against, schedule.add_noise(*pair, T), ddim.add_noise(*theirs), 1e-6
    )
    parity("schedule v", against, schedule.target(*pair, T), ddim.get_velocity(*theirs), 1e-6)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_target_stands_for_the_data_and_the_noise(prediction, pair):
    schedule = Schedule(prediction=prediction)
    x = schedule.add_noise(*pair, T)
    x0, eps = schedule.to_x0_eps(schedule.target(*pair, T), x, T)
    np.testing.assert_allclose(x0, pair[0], atol=1e-4)  # epsilon divides rounding by alpha = .012
    np.testing.assert_allclose(eps, pair[1], atol=1e-5)


def test_schedule_is_a_static_argument():
    noise = jax.jit(Schedule.add_noise, static_argnums=0)
    x = jnp.ones((1, 2, 2, 1))
    assert noise(Schedule(), x, x, jnp.array([5])).shape == x.shape

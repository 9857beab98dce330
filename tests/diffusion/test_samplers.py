"""Samplers against diffusers' schedulers, and what any sampler must do with a perfect denoiser."""

from functools import partial

import diffusers
import jax
import numpy as np
import pytest
import torch
from jax import numpy as jnp
from safetensors.numpy import load_file

from mfm_jax.diffusion import Schedule, guide, sample
from mfm_jax.diffusion.samplers import Sampler, fresh_noise

AUDIOLDM2 = {"beta_start": 0.0015, "beta_end": 0.0195, "beta_schedule": "scaled_linear"}
THEIR_NAME = {"epsilon": "epsilon", "v": "v_prediction"}
SHAPE = (3, 7, 5, 4)
NOISE = jax.random.normal(jax.random.key(1), SHAPE)
KEYS = jax.random.split(jax.random.key(2), SHAPE[0])
MIX = np.random.default_rng(3).normal(size=(4, 4)).astype(np.float32) / 2
both_predictions = pytest.mark.parametrize("prediction", ["epsilon", "v"])


def slopes(prediction: str) -> np.ndarray:
    """The linear denoiser of normal data of spread 0.5, at every timestep."""
    square = Schedule().alphas_cumprod.astype(np.float64)
    alpha, sigma, variance = np.sqrt(square), np.sqrt(1 - square), 0.25
    top = sigma if prediction == "epsilon" else alpha * sigma * (1 - variance)
    return (top / (square * variance + sigma**2)).astype(np.float32)


def ours(prediction: str):
    """A denoiser that is not linear and mixes the channels."""
    slope = jnp.asarray(slopes(prediction))

    def denoise(x, t):
        return slope[t][:, None, None, None] * x + 0.1 * jnp.tanh(x @ jnp.asarray(MIX))

    return denoise


def theirs(prediction: str, scheduler, steps: int | list[int], **step) -> torch.Tensor:
    """The same denoiser in a scheduler's loop; `step(i)` gives the noise where there is any."""
    slope, mix = torch.from_numpy(slopes(prediction)), torch.from_numpy(MIX)
    if isinstance(steps, int):
        scheduler.set_timesteps(steps)
    else:
        scheduler.set_timesteps(timesteps=steps)
    x = torch.from_numpy(np.asarray(NOISE).copy())
    for i, t in enumerate(scheduler.timesteps):
        more = {key: value(i) if callable(value) else value for key, value in step.items()}
        x = scheduler.step(slope[t] * x + 0.1 * torch.tanh(x @ mix), t, x, **more).prev_sample
    return x


def their_ddim(prediction: str):
    return diffusers.DDIMScheduler(
        **AUDIOLDM2,
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type=THEIR_NAME[prediction],
    )


def their_dpm(prediction: str):
    return diffusers.DPMSolverMultistepScheduler(
        **AUDIOLDM2, algorithm_type="dpmsolver++", prediction_type=THEIR_NAME[prediction]
    )


@pytest.mark.parity
@both_predictions
@pytest.mark.parametrize("steps", [1, 5, 23, 200])
def test_ddim(parity, prediction, steps):
    parity(
        f"DDIM {prediction}, {steps} steps",
        "diffusers DDIMScheduler",
        sample(ours(prediction), NOISE, Schedule(prediction=prediction), steps=steps),
        theirs(prediction, their_ddim(prediction), steps),
        1e-4,
    )


@pytest.mark.parity
@pytest.mark.parametrize(("prediction", "eta"), [("epsilon", 1.0), ("v", 0.4)])
def test_ddim_with_fresh_noise(parity, prediction, eta):
    def same_noise(i):
        return torch.from_numpy(np.asarray(fresh_noise(KEYS, i, SHAPE)).copy())

    parity(
        f"DDIM {prediction}, eta {eta}, 23 steps",
        "diffusers DDIMScheduler, same noise",
        sample(
            ours(prediction),
            NOISE,
            Schedule(prediction=prediction),
            steps=23,
            eta=eta,
            keys=KEYS,
        ),
        theirs(prediction, their_ddim(prediction), 23, eta=eta, variance_noise=same_noise),
        1e-4,
    )


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers
@pytest.mark.parity
@both_predictions
@pytest.mark.parametrize("steps", [1, 3, 12, 25])
@pytest.mark.parametrize("spacing", ["linspace", "logsnr"])
def test_dpm_solver(parity, prediction, steps, spacing):
    t = steps if spacing == "linspace" else Schedule().timesteps(steps, spacing).tolist()
    parity(
        f"DPM-Solver++(2M) {prediction}, {spacing}, {steps} steps",
        "diffusers DPMSolverMultistepScheduler",
        sample(
            ours(prediction),
            NOISE,
            Schedule(prediction=prediction),
            sampler="dpm++",
            steps=steps,
            spacing=spacing,
        ),
        theirs(prediction, their_dpm(prediction), t),
        1e-4,
    )


@pytest.mark.parity
def test_golden_run_with_the_recorded_network_outputs(parity, reference):
    golden = load_file(reference / "audioldm2/golden/pipeline_io.safetensors")
    last = lambda a: jnp.asarray(a).transpose(0, 2, 3, 1)  # noqa: E731
    outputs = jnp.stack([last(golden[f"step_{i}.unet_out"]) for i in range(5)])
    timesteps = Schedule().timesteps(5)
    seen = []

    def replay(x, t, condition):
        seen.append(x)
        return outputs[jnp.argmax(jnp.asarray(timesteps) == t[0])]

    nothing = jnp.zeros((2, 1))
    with jax.disable_jit():
        latents = sample(
            guide(replay, nothing, nothing, 3.5), last(golden["in.latents"]), Schedule(), steps=5
        )
    against, spread = "golden pipeline_io", golden["final_latents"].std()
    for i, x in enumerate(seen):
        expected = last(golden[f"step_{i}.unet_in"])
        parity(f"DDIM x of step {i}", f"{against} step_{i}.unet_in", x, expected, 1e-4 * spread)
    parity(
        "DDIM final latents",
        f"{against} final_latents",
        latents,
        last(golden["final_latents"]),
        1e-4,
        relative_to="spread",
    )


def perfect(schedule: Schedule, data):
    """The denoiser that knows the data: the target of the noise that must be in `x`."""

    def denoise(x, t):
        square = jnp.asarray(schedule.alphas_cumprod)[t][:, None, None, None]
        return schedule.target(data, (x - jnp.sqrt(square) * data) / jnp.sqrt(1 - square), t)

    return denoise


@both_predictions
@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_perfect_denoiser_returns_the_data(prediction, steps, sampler):
    schedule = Schedule(prediction=prediction)
    data = jax.random.normal(jax.random.key(4), SHAPE)
    start = schedule.add_noise(data, NOISE, jnp.full(3, schedule.timesteps(steps, "linspace")[0]))
    if sampler == "ddim":
        # DDIM ends at timestep 0, which still holds the noise it started with.
        start = schedule.add_noise(data, NOISE, jnp.full(3, schedule.timesteps(steps)[0]))
        expected = schedule.add_noise(data, NOISE, jnp.zeros(3, jnp.int32))
    else:
        expected = data
    result = sample(perfect(schedule, data), start, schedule, sampler=sampler, steps=steps)
    np.testing.assert_allclose(result, expected, atol=2e-4)


def test_perfect_denoiser_with_fresh_noise_keeps_the_noise_of_timestep_zero():
    schedule, data = Schedule(), jnp.full((2, 32, 32, 4), 0.7)
    result = sample(
        perfect(schedule, data),
        jax.random.normal(jax.random.key(5), data.shape),
        schedule,
        steps=20,
        eta=1.0,
        keys=jax.random.split(jax.random.key(6)),
    )
    alpha, sigma = np.sqrt(schedule.alphas_cumprod[0]), np.sqrt(1 - schedule.alphas_cumprod[0])
    assert abs(result.mean() - alpha * 0.7) < 3 * sigma / np.sqrt(data.size)
    assert abs(result.std() / sigma - 1) < 0.05


def elementwise(x, t):
    return 0.3 * x + 0.001 * t.astype(x.dtype)[:, None, None, None]


RUNS = {
    "ddim": {"sampler": "ddim", "steps": 6},
    "ddim eta 1": {"sampler": "ddim", "steps": 6, "eta": 1.0},
    "dpm++": {"sampler": "dpm++", "steps": 6},
}


@pytest.mark.parametrize("name", RUNS)
def test_batch_mates_change_nothing(name):
    @jax.jit
    def run(noise, keys):
        return sample(elementwise, noise, Schedule(), keys=keys, **RUNS[name])

    together = run(NOISE, KEYS)
    np.testing.assert_array_equal(run(NOISE[::-1], KEYS[::-1])[::-1], together)
    # A batch of another size is another program, which may round otherwise.
    np.testing.assert_allclose(run(NOISE[1:2], KEYS[1:2])[0], together[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RUNS)
def test_jit_equals_eager(name):
    run = partial(sample, ours("epsilon"), schedule=Schedule(), keys=KEYS, **RUNS[name])
    with jax.disable_jit():
        eager = run(NOISE)
    np.testing.assert_allclose(jax.jit(run)(NOISE), eager, atol=1e-5)


def test_guidance_one_is_no_guidance():
    def conditional(x, t, shift):
        return ours("epsilon")(x, t) + shift[:, None, None, None]

    cond, uncond = jnp.array([0.1, 0.2, 0.3]), jnp.zeros(3)
    schedule = Schedule()
    plain = sample(lambda x, t: conditional(x, t, cond), NOISE, schedule, steps=4)
    guided = sample(guide(conditional, cond, uncond, 1.0), NOISE, schedule, steps=4)
    np.testing.assert_array_equal(guided, plain)


def test_latents_stay_float32_with_a_half_precision_network():
    def half(x, t):
        return (0.3 * x).astype(jnp.bfloat16)

    for sampler in ("ddim", "dpm++"):
        result = sample(half, NOISE.astype(jnp.bfloat16), Schedule(), sampler=sampler, steps=3)
        assert result.dtype == jnp.float32


def test_gradient_reaches_the_denoiser():
    def loss(shift):
        return jnp.sum(sample(lambda x, t: 0.3 * x + shift, NOISE, Schedule("v"), steps=3) ** 2)

    assert jnp.abs(jax.grad(loss)(0.1)) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "euler", "steps": 5}, "no sampler 'euler'"),
        ({"steps": 5, "eta": 1.0}, "one random key an example"),
        ({"sampler": "dpm++", "steps": 5, "eta": 1.0}, "deterministic"),
        ({"steps": 5, "spacing": "logsnr"}, "only the sampler 'dpm"),
        ({"steps": 0}, "must be 1 to 999"),
    ],
)
def test_impossible_requests(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(elementwise, NOISE, Schedule(), **arguments)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_guidance_only_at_some_noise_levels(sampler):
    """The network is called with both halves of guidance only within the interval."""
    levels = Schedule().noise_levels()
    t = Sampler(Schedule(), sampler, 9).rows().t
    interval = (float(levels[t[6]]), float(levels[t[2]]))  # the lower end is excluded

    def conditional(x, t, shift):
        return ours("epsilon")(x, t) + shift[:, None, None, None]

    halves = jnp.array([0.1, 0.2, 0.3]), jnp.zeros(3)
    guided, unguided = (guide(conditional, *halves, scale) for scale in (3.0, 1.0))
    run = {"schedule": Schedule(), "sampler": sampler, "steps": 9}

    def by_step(x, now):
        inside = jnp.isin(now, t[2:6])[:, None, None, None]
        return jnp.where(inside, guided(x, now), unguided(x, now))

    found = sample(guided, NOISE, **run, unguided=unguided, interval=interval)
    np.testing.assert_allclose(found, sample(by_step, NOISE, **run), atol=1e-5)
    everywhere = sample(guided, NOISE, **run, unguided=unguided, interval=(0.0, 100.0))
    np.testing.assert_array_equal(everywhere, sample(guided, NOISE, **run))
    assert np.abs(found - everywhere).max() > 1e-2

"""AudioLDM 2's noise schedule, as diffusers saves it (`scheduler/scheduler_config.json`).

The file also says how the released pipeline samples. `mfm_jax.diffusion` samples just so and no
other way.
"""

from collections.abc import Mapping

from convert.configs import builtin, count, number, one_of, required
from mfm_jax.diffusion.schedule import Schedule

WHAT = "scheduler config"
READ = ("beta_end", "beta_start", "num_train_timesteps", "prediction_type")
# What the library would take in place of these is not what we have built in.
REQUIRED = {
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
# A file may leave these out, or say just this.
BUILT_IN = {
    "_class_name": "DDIMScheduler",
    "rescale_betas_zero_snr": False,
    "thresholding": False,
    "timestep_spacing": "leading",
    "trained_betas": None,
}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}


def config(theirs: Mapping) -> Schedule:
    """The schedule that `scheduler_config.json` describes.

    Raises:
        ConversionError: a setting is missing, or is one that we do not have.
    """
    builtin(theirs, BUILT_IN, WHAT)
    required(theirs, (*READ, *REQUIRED), WHAT)
    builtin(theirs, REQUIRED, WHAT)
    return Schedule(
        prediction=one_of(theirs, "prediction_type", PREDICTIONS, WHAT),
        train_steps=count(theirs, "num_train_timesteps", WHAT),
        beta_start=number(theirs, "beta_start", WHAT),
        beta_end=number(theirs, "beta_end", WHAT),
    )


def their_config(ours: Schedule) -> dict:
    """What `scheduler_config.json` says of a schedule."""
    called = {name: theirs for theirs, name in PREDICTIONS.items()}
    return {
        **BUILT_IN,
        **REQUIRED,
        "num_train_timesteps": ours.train_steps,
        "beta_start": ours.beta_start,
        "beta_end": ours.beta_end,
        "prediction_type": called[ours.prediction],
    }

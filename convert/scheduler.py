"""Convert AudioLDM 2's noise schedule from diffusers' `scheduler/scheduler_config.json`.

The file also has the settings of the released sampler, which `mfm_jax.diffusion` has built in.
"""

from collections.abc import Mapping

from convert.configs import builtin, integer, number, one_of, required
from mfm_jax.diffusion.schedule import Schedule

FILE = "scheduler config"
READ = ("beta_end", "beta_start", "num_train_timesteps", "prediction_type")
# The library's defaults for these are not what we have built in.
REQUIRED = {
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
# A file may omit these, or have these values.
BUILT_IN = {
    "_class_name": "DDIMScheduler",
    "rescale_betas_zero_snr": False,
    "thresholding": False,
    "timestep_spacing": "leading",
    "trained_betas": None,
}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}


def config(theirs: Mapping) -> Schedule:
    """Return the schedule that `scheduler_config.json` describes.

    Raises:
        ConversionError: a setting is missing, or is one that we do not have.
    """
    builtin(theirs, BUILT_IN, FILE)
    required(theirs, (*READ, *REQUIRED), FILE)
    builtin(theirs, REQUIRED, FILE)
    return Schedule(
        prediction=one_of(theirs, "prediction_type", PREDICTIONS, FILE),
        train_steps=integer(theirs, "num_train_timesteps", FILE),
        beta_start=number(theirs, "beta_start", FILE),
        beta_end=number(theirs, "beta_end", FILE),
    )


def their_config(ours: Schedule) -> dict:
    """Return the `scheduler_config.json` of a schedule."""
    called = {name: theirs for theirs, name in PREDICTIONS.items()}
    return {
        **BUILT_IN,
        **REQUIRED,
        "num_train_timesteps": ours.train_steps,
        "beta_start": ours.beta_start,
        "beta_end": ours.beta_end,
        "prediction_type": called[ours.prediction],
    }

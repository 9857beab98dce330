"""The schedule, against diffusers."""

import json

import diffusers
import numpy as np
import pytest

from convert.scheduler import config, their_config
from convert.table import ConversionError
from mfm_jax.diffusion.samplers import ddim_rows
from mfm_jax.diffusion.schedule import Schedule


@pytest.fixture
def released(reference):
    return json.loads((reference / "audioldm2/configs/scheduler.json").read_text())


def test_the_released_schedule(released):
    assert config(released) == Schedule()


@pytest.mark.parametrize(
    "ours", [Schedule(), Schedule("v", train_steps=37, beta_start=0.002, beta_end=0.03)]
)
def test_what_diffusers_makes_of_ours(tmp_path, ours):
    """The file goes through `from_pretrained` and back out of `save_pretrained`."""
    (tmp_path / "scheduler_config.json").write_text(json.dumps(their_config(ours)))
    theirs, unused = diffusers.DDIMScheduler.from_pretrained(tmp_path, return_unused_kwargs=True)
    assert unused == {"_class_name": "DDIMScheduler"}
    np.testing.assert_array_equal(theirs.alphas_cumprod.numpy(), ours.alphas_cumprod)
    theirs.set_timesteps(5)
    timesteps, _ = ddim_rows(ours, 5, eta=0.0)
    np.testing.assert_array_equal(theirs.timesteps.numpy(), timesteps)
    theirs.save_pretrained(tmp_path / "again")
    assert config(json.loads((tmp_path / "again/scheduler_config.json").read_text())) == ours


def test_a_schedule_of_the_librarys_own_is_refused(tmp_path):
    diffusers.DDIMScheduler().save_pretrained(tmp_path)
    theirs = json.loads((tmp_path / "scheduler_config.json").read_text())
    with pytest.raises(ConversionError, match="beta_schedule must be scaled_linear, is linear"):
        config(theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "PNDMScheduler"}, "_class_name must be DDIMScheduler, is PNDMScheduler"),
        ({"prediction_type": "sample"}, "prediction_type must be epsilon or v_prediction, is samp"),
        ({"trained_betas": [0.1, 0.2]}, r"trained_betas must be None, is \[0.1, 0.2\]"),
        ({"timestep_spacing": "trailing"}, "timestep_spacing must be leading, is trailing"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr must be False, is True"),
        ({"beta_end": float("nan")}, "beta_end must be a positive number, is nan"),
    ],
)
def test_refuses_what_we_do_not_have(released, change, message):
    with pytest.raises(ConversionError, match=message):
        config(released | change)

"""Seeds have 64 bits wherever a user gives one."""

import jax
import numpy as np
import pytest

from mfm_jax.cli import main
from mfm_jax.data.loader import clips_of
from mfm_jax.errors import SettingError
from mfm_jax.runtime.seeds import random_key
from mfm_jax.storage.weights import initialise, named_weights
from tests.train.regression import Net, Regression, config

SEEDS = (0, 1, 2**31, 2**32 - 1, 2**32, 2**33, 2**63, 2**64 - 1)
OUTSIDE = (-1, 2**64)


def test_every_seed_has_a_key_of_its_own_and_small_ones_those_of_jax():
    keys = [tuple(jax.random.key_data(random_key(seed)).tolist()) for seed in SEEDS]
    assert len(set(keys)) == len(SEEDS)
    assert keys[:4] == [tuple(jax.random.key_data(jax.random.key(s)).tolist()) for s in SEEDS[:4]]
    assert random_key(0).dtype == jax.random.key(0).dtype


def test_weights_and_the_order_of_clips_follow_all_bits():
    kernels = [named_weights(initialise(Net, seed))["first.kernel"] for seed in (0, 2**32)]
    assert np.abs(np.subtract(*kernels)).max() > 0.1
    orders = {tuple(clips_of(24, batch=24, seed=seed, number=0)) for seed in SEEDS}
    assert len(orders) == len(SEEDS)


@pytest.mark.parametrize("seed", OUTSIDE)
def test_what_is_no_seed_is_refused(seed, tmp_path, capsys):
    line = f"must be from 0 to 2**64 - 1, got {seed}"
    with pytest.raises(SettingError) as refused:
        config(Regression(), seed=seed)
    assert str(refused.value) == f"seed {line}"
    for words in (
        ["generate", "a.mp4", "-o", str(tmp_path / "o"), f"--seed={seed}"],
        ["demo", "-o", str(tmp_path / "o"), f"--clip={seed}"],
        ["train", "--config", "tiny", "--workdir", str(tmp_path / "o"), "--set", f"seed={seed}"],
    ):
        assert main(words) == 2
        assert line in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

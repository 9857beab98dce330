"""The program of training with shapes instead of arrays, and devices that need not exist."""

import os
from typing import Any

import jax
from jax.experimental import topologies

from mfm_jax.errors import SettingError
from mfm_jax.inference.programs import Program
from mfm_jax.runtime.sharding import Layout
from mfm_jax.train.recipe import TrainConfig, TrainSetup

MEGACORE = {"v4": {"chip_config_name": "megacore"}}
"""Options by generation with which a chip is one device."""


def tpu_slices(name: str, count: int = 1) -> list[jax.Device]:
    """Return the devices of `count` TPU slices such as "v5e:4x4", which need not exist.

    Raises:
        SettingError: libtpu is not installed, or there is no such slice.
    """
    # Otherwise libtpu queries the machine, and allows only one process at a time.
    quiet = {
        "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_WORKER_ID": "0",
        "TPU_ACCELERATOR_TYPE": "v5litepod-16", "TPU_WORKER_HOSTNAMES": "localhost",
    }  # fmt: skip
    for variable, value in quiet.items():
        os.environ.setdefault(variable, value)
    options: dict[str, Any] = dict(MEGACORE.get(name.split(":")[0], {}))
    if count > 1:
        options["num_slices"] = count
    try:
        return list(
            topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices
        )
    except Exception as error:  # of many types: JAX passes on the errors of libtpu
        if "not installed" in str(error):
            raise SettingError(
                "compiling for TPUs needs libtpu (but no TPU): pip install 'mfm-jax[tpu]'"
            ) from None
        raise SettingError(
            f"there is no TPU slice {name!r}: give a generation and a shape, such as "
            f"v5e:4x4, v5p:4x4x4 or v6e:16x16 ({str(error).splitlines()[0]})"
        ) from None


def training(config: TrainConfig, layout: Layout) -> Program:
    """Return the training step of `train.py`.

    Raises:
        SettingError: the devices do not divide the batch, or the recipe does not know its shapes.
    """
    setup = TrainSetup.of(config, layout)
    batch = {
        name: jax.ShapeDtypeStruct(
            (config.batch, *spec.shape), spec.dtype, sharding=layout.batch(config.batch)
        )
        for name, spec in config.recipe.element_spec().items()
    }
    return Program("training step", setup.step(), (setup.abstract_state(), batch), {})

"""The UNet of a bundle as generation and training run it: with the bundle's adapter, if any."""

from collections.abc import Callable
from typing import Any

from mfm_jax.bundle.bundle import Bundle, BundleError
from mfm_jax.models.adapters import AdaptedUNet
from mfm_jax.models.audiomae import LOA
from mfm_jax.models.unet import UNet


def adapted_unet(bundle: Bundle, component: Callable[[str], Any], loa: LOA) -> UNet | AdaptedUNet:
    """Return `component("unet")`, with `component("adapter")` if the bundle has that.

    Args:
        loa: the grids that the mapper predicts.

    Raises:
        BundleError: UNet and adapter read others.
    """
    check_adapter(bundle, loa)
    unet = component("unet")
    return AdaptedUNet(unet, component("adapter")) if "adapter" in bundle.entries else unet


def check_adapter(bundle: Bundle, loa: LOA) -> None:
    """Check that the UNet and its adapter, if there is one, read the grids of `loa`.

    Raises:
        BundleError: they do not.
    """
    if "adapter" not in bundle.entries:
        if loa.fine is not None:
            raise BundleError(
                f"the mapper predicts a second grid of LOA, and bundle {bundle.path} has no "
                "adapter that reads it: train one (configs/base_sync.py)"
            )
        return
    adapter = bundle.config("adapter")
    if adapter.loa != loa:
        raise BundleError(
            f"the mapper predicts LOA of {_pools(loa)}, and the adapter in bundle {bundle.path} "
            f"reads {_pools(adapter.loa)}: train a mapper with that (recipe.network.loa)"
        )
    if adapter.unet != bundle.config("unet"):
        raise BundleError(
            f"the adapter in bundle {bundle.path} is for a UNet of other sizes: train one for "
            "this UNet"
        )


def _pools(loa: LOA) -> str:
    """Return the grid and its pools in words."""
    pools = " and ".join(f"{time} x {mel}" for time, mel in (grid.pool for grid in loa.grids))
    return f"{loa.grid[0]} x {loa.grid[1]} patches pooled by {pools}"

"""The UNet of a bundle as generation and training run it: with the bundle's adapter, if any."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from mfm_jax.bundle.bundle import Bundle, BundleError, Entry
from mfm_jax.models.adapters import AdaptedUNet, AdapterConfig
from mfm_jax.models.streams import networks_of
from mfm_jax.models.unet import UNet


def misfit(entries: Mapping[str, Entry], written: Collection[str] = ()) -> str:
    """Return why the adapter does not fit the other components; empty if it does.

    Args:
        written: components that are written now. Those that are written together go together:
            their checksums differ from those that the adapter knows if their precision does.
    """
    if "adapter" not in entries:
        return ""
    adapter: AdapterConfig = entries["adapter"].config
    if "unet" in entries and adapter.unet != entries["unet"].config:
        return "it is for a UNet of other sizes"
    if "mapper" in entries:
        mapper = entries["mapper"].config
        both = set(adapter.streams) & set(mapper.streams) & set(adapter.tensors)
        if others := [n for n in sorted(both) if adapter.tensors[n] != mapper.tensors[n]]:
            return f"it reads other tokens of {', '.join(others)} than the mapper"
    if written and (others := _replaced(entries, written)):
        return f"it was trained with another {' and another '.join(others)}"
    return ""


def _replaced(entries: Mapping[str, Entry], written: Collection[str]) -> list[str]:
    """Return the networks that the adapter was trained with and that are others now."""
    read = [*networks_of(entries["adapter"].config.streams)]
    unet = dict(entries["unet"].source.trained_with) if "unet" in entries else {}
    if unet.get("adapter") != entries["adapter"].checksum:  # else LoRA was trained behind it
        read.append("unet")
    trained = dict(entries["adapter"].source.trained_with)
    apart = [n for n in read if n in entries and (n in written) != ("adapter" in written)]
    return [n for n in apart if trained.get(n, "") not in ("", entries[n].checksum)]


def adapter_of(bundle: Bundle) -> AdapterConfig | None:
    """Return the config of the bundle's adapter; None if it has none.

    Raises:
        BundleError: it does not fit the other components.
    """
    if reason := misfit(bundle.entries):
        raise BundleError(
            f"the adapter in bundle {bundle.path} cannot be used, because {reason}: train one for "
            "this bundle (configs/base_sync.py)"
        )
    return bundle.config("adapter") if "adapter" in bundle.entries else None


def adapted_unet(bundle: Bundle, component: Callable[[str], Any]) -> UNet | AdaptedUNet:
    """Return `component("unet")`, with `component("adapter")` if the bundle has that.

    Raises:
        BundleError: they do not go together.
    """
    adapter, unet = adapter_of(bundle), component("unet")
    return unet if adapter is None else AdaptedUNet(unet, component("adapter"))

"""The encoders of a bundle, by name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mfm_jax.bundle import Bundle, BundleError
from mfm_jax.bundle.adapted import adapter_of
from mfm_jax.encoders.cavp import CAVPEncoder
from mfm_jax.encoders.encoder import Encoder
from mfm_jax.encoders.motion import MotionEncoder
from mfm_jax.encoders.moving import MovingEncoder
from mfm_jax.encoders.synchformer import SynchformerEncoder
from mfm_jax.encoders.timechat import TimeChatEncoder
from mfm_jax.mapper import MapperConfig, Streams
from mfm_jax.media.windows import Window, WindowSpec, timechat_view
from mfm_jax.models.streams import SHARED
from mfm_jax.runtime.compiled import NO_PROGRAMS, Programs

ENCODERS: Mapping[str, type[Encoder]] = {
    "cavp": CAVPEncoder,
    "timechat": TimeChatEncoder,
    "synchformer": SynchformerEncoder,
    "motion": MotionEncoder,
    "moving": MovingEncoder,
}
"""Every encoder that is known.

Its name is that of its stream, and of its component in a bundle unless it shares another's.
"""


def component_of(name: str) -> str:
    """Return the component of a bundle that an encoder runs; empty if it has no weights."""
    return "" if ENCODERS[name].formula else SHARED.get(name, name)


def bundled_names(bundle: Bundle) -> list[str]:
    """Return the encoders that have a component of their own in the bundle."""
    return [name for name in ENCODERS if name in bundle.entries]


def open_encoder(bundle: Bundle, name: str, tensor: str = "") -> Encoder:
    """Return an encoder for the bundle's windows.

    Args:
        tensor: the kind of its tokens, where there is a choice; the first if not given.

    Raises:
        BundleError: there is no such encoder, the bundle lacks it, or its config does not go with
            the windows or the tokens.
    """
    if name not in ENCODERS:
        raise BundleError(f"{name!r:.50} is no video encoder: known are {', '.join(ENCODERS)}")
    kind = ENCODERS[name]
    component = component_of(name)
    config = bundle.config(component) if component else None
    if tensor and tensor not in kind.tensors:
        raise BundleError(f"{name} has no tokens {tensor!r:.50}, only {', '.join(kind.tensors)}")
    try:
        return kind(config, bundle.settings.seconds, tensor or next(iter(kind.tensors), ""))
    except ValueError as error:
        raise BundleError(f"{name} in bundle {bundle.path}: {error}") from None


def open_encoders(
    bundle: Bundle, names: Iterable[str], tensors: Mapping[str, str]
) -> dict[str, Encoder]:
    """Return encoders by name; `tensors` has the kinds of tokens of those that have a choice.

    Raises:
        BundleError: as `open_encoder`.
    """
    return {name: open_encoder(bundle, name, tensors.get(name, "")) for name in names}


def read_in_generation(bundle: Bundle) -> dict[str, Encoder]:
    """Return the encoders that the bundle's mapper reads, or the adapter of its UNet.

    Raises:
        BundleError: as `open_encoder`; there is no mapper, or the adapter does not fit.
    """
    mapper: MapperConfig = bundle.config("mapper")
    adapter = adapter_of(bundle)
    names, tensors = list(mapper.streams), mapper.tensors
    if adapter is not None:
        names, tensors = [*names, *adapter.streams], adapter.tensors | tensors
    return open_encoders(bundle, dict.fromkeys(names), tensors)


def encoder_network(encoder: Encoder, name: str, component: Callable[[str], Any]) -> Any:
    """Return what an encoder runs, of the component of its name; None if it has no weights.

    Args:
        component: returns the component of a name, with weights or with shapes.
    """
    its = component_of(name)
    return encoder.network(component(its)) if its else None


def window_spec(bundle: Bundle, encoders: Mapping[str, Encoder] | None = None) -> WindowSpec:
    """Return the windows of a bundle, and what encoders see of one.

    Args:
        encoders: those that see them; all that the bundle has if not given.

    Raises:
        BundleError: its settings give no window.
    """
    if encoders is None:
        encoders = open_encoders(bundle, bundled_names(bundle), {})
    # A clip is looked at though there is no encoder: whether it can be read, and how long it is.
    views = {name: encoder.view for name, encoder in encoders.items()}
    try:
        return WindowSpec(
            bundle.settings.seconds, bundle.settings.overlap, views or {"timechat": timechat_view()}
        )
    except ValueError as error:
        raise BundleError(f"the settings of bundle {bundle.path} do not fit ({error})") from None


def stack_windows(encoders: Mapping[str, Encoder], windows: Sequence[Window]) -> dict[str, Any]:
    """Return what each encoder reads of windows."""
    return {
        name: encoder.inputs([window.seen[name] for window in windows])
        for name, encoder in encoders.items()
    }


def encode_windows(
    encoders: Mapping[str, Encoder],
    networks: Mapping[str, Any],
    inputs: Mapping[str, Any],
    programs: Programs = NO_PROGRAMS,
) -> Streams:
    """Return the tokens of each encoder; `inputs` are those of `stack_windows`."""
    return {
        name: programs(encoder.encode, networks[name], inputs[name], **encoder.options)
        for name, encoder in encoders.items()
    }

"""Load the networks of a run: all at once, or stage by stage."""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax import numpy as jnp

from mfm_jax.bundle import Bundle, BundleError
from mfm_jax.inference.candidates import Choice, Judge
from mfm_jax.inference.exported import Exports
from mfm_jax.inference.joint import (
    JointNetworks,
    Row,
    Started,
    latent_overlap,
    start_joint_sound,
)
from mfm_jax.inference.memory import plan
from mfm_jax.inference.pipeline import Made, Sampling, VideoToAudio
from mfm_jax.inference.prompts import Prompts
from mfm_jax.inference.requests import Request
from mfm_jax.inference.staged import StagedNetworks
from mfm_jax.inference.unwanted import unwanted_loa
from mfm_jax.inference.work import Item, Maker, Networks, the_only_one
from mfm_jax.runtime.compiled import Programs, in_background
from mfm_jax.runtime.sharding import Layout
from mfm_jax.storage.hub import is_of_hub
from mfm_jax.storage.paths import TINY_BUNDLE, array_path
from mfm_jax.typing import Float

Unwanted = Float[np.ndarray, "L E"] | None

MEMORY = ("high", "low")
"""All networks on the device, or those of one stage at a time."""


@dataclass(frozen=True)
class Loader:
    """Loads what a run needs of a bundle."""

    bundle: Bundle
    requests: Sequence[Request]
    sampling: Sampling
    layout: Layout
    batch: int  # windows
    precision: str
    memory: str  # of `MEMORY`
    candidates: int
    veto: Sequence[str]
    say: Callable[[str], object]  # tells a line
    note: Callable[[str], object]  # tells what is other than one might expect
    joint: bool = False  # windows agree where they overlap
    negative_sound: Path | None = None  # a file with sound that guidance moves away from

    def __call__(self) -> Maker:
        """Encode the prompts, load networks and return what makes sounds with them.

        Raises:
            BundleError: a network is missing or damaged.
            UsageError: the bundle cannot do what is asked for.
        """
        programs = self._programs()
        if self.memory == "low":
            programs = self._planned(programs)
        # T5 is dropped before the other networks are loaded.
        prompts = Prompts.encoded(self.requests, self.bundle, self.precision, self.note, programs)
        unwanted = None
        if self.negative_sound is not None:
            dtype = jnp.dtype(self.precision)
            unwanted = unwanted_loa(self.bundle, self.negative_sound, dtype=dtype)
        sound = partial(self._sound, prompts, unwanted)
        if self.memory == "low":
            choose = self._choose(partial(self._open, ["mapper"], programs))
            return StagedNetworks(lambda names: self._open(names, programs), sound, choose)
        model = self._open(None, programs)

        def predict(items: Sequence[Item]) -> Any:
            return model.predict(model.encode([window for _, window in items]))

        if self.joint:
            latent_overlap(model)  # one that does not fit is told at once
            start_all = partial(self._start_joint, prompts, unwanted, model)
            return JointNetworks(predict, start_all, self._choose(lambda: model))

        def start(items: Sequence[Item]) -> Made:
            return sound(model, items, predict(items))

        return Networks(start, self._choose(lambda: model))

    def _open(self, names: Sequence[str] | None, programs: Programs) -> VideoToAudio:
        """Load the networks of these names, or all."""
        return VideoToAudio.open(
            self.bundle.path,
            self.precision,
            self.layout,
            verify=self.bundle.verify,
            only=names,
            programs=programs,
        )

    def _sound(
        self,
        prompts: Prompts,
        unwanted: Unwanted,
        model: VideoToAudio,
        items: Sequence[Item],
        read: Any,
    ) -> Made:
        """Start to make the sounds of windows from what `VideoToAudio.predict` gave of them."""
        asked = [job.request for job, _ in items]
        return model.sound(
            read,
            [window for _, window in items],
            [request.seed for request in asked],
            self.sampling,
            prompts.texts([request.prompt for request in asked]),
            prompts.texts([request.negative_prompt for request in asked]),
            candidates=self.candidates,
            unwanted=unwanted,
        )

    def _start_joint(
        self,
        prompts: Prompts,
        unwanted: Unwanted,
        model: VideoToAudio,
        rows: Sequence[Row],
        batch: int,
    ) -> Started:
        """Start to make the sounds of all windows of videos from their LOA."""
        asked = [row.job.request for row in rows]
        return start_joint_sound(
            model,
            rows,
            batch,
            self.sampling,
            prompts.texts([request.prompt for request in asked]),
            prompts.texts([request.negative_prompt for request in asked]),
            candidates=self.candidates,
            unwanted=unwanted,
        )

    def _choose(
        self, with_mapper: Callable[[], VideoToAudio]
    ) -> Callable[[Sequence[Made]], Choice]:
        """Return what chooses among candidates; its networks stay on the device."""
        if self.candidates == 1:
            return the_only_one
        dtype = jnp.dtype(self.precision)
        return Judge.open(self.bundle, with_mapper(), self.veto, dtype=dtype).choose

    def _programs(self) -> Programs:
        """Return the programs beside the bundle that fit. They are read while weights are."""
        exports = Exports(self.bundle, self.layout, self.batch, self.precision, self.sampling)
        return in_background(lambda: exports.read(self.say))

    def _planned(self, ready: Programs) -> Programs:
        """Compile before weights are read, and tell the memory that is needed."""
        ranking = ["audiomae", "mapper", *(["cnn14"] if self.veto else [])]
        found = plan(
            self.bundle,
            self.layout,
            batch=self.batch,
            dtype=jnp.dtype(self.precision),
            sampling=self.sampling,
            prompts=any(request.reads_text for request in self.requests),
            beside=ranking if self.candidates > 1 else [],
            ready=ready,
        )
        for line in found.lines():
            self.say(line)
        return found.programs


def absolute_name(bundle: str | Path) -> str | Path | None:
    """Return by what name other machines open a bundle; None for the shipped miniature."""
    if isinstance(bundle, str) and is_of_hub(bundle):
        return bundle
    path = array_path(bundle)
    return None if path == TINY_BUNDLE else path.absolute()


def open_loader(
    name: str | Path | None,
    expected: str,
    verify: bool,
    devices: Callable[[], tuple[Layout, int]],
    loader: Callable[..., Loader],
) -> tuple[Loader, int]:
    """Return what loads the networks in this process, and the windows that it computes at once.

    Args:
        name: of the bundle, from `absolute_name`.
        expected: identity of the bundle.
        devices: chooses a layout of this process's devices, and so many windows.
        loader: makes a `Loader` of a bundle, a layout, the windows, `say` and `note`.

    Raises:
        BundleError: there is no such bundle on this machine, or another one.
    """
    bundle = Bundle.open(TINY_BUNDLE if name is None else name, verify=verify)
    if bundle.identity != expected:
        raise BundleError(
            f"{bundle.path} on {platform.node()} is another bundle than where the command was "
            "given: use the same everywhere"
        )
    layout, batch = devices()
    return loader(bundle=bundle, layout=layout, batch=batch, say=print, note=print), batch

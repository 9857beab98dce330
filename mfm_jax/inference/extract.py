"""Extraction: the features that training reads, computed once for each clip.

Generation runs the same encoders: a mapper is trained on the features that it will be given.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.sharding import NamedSharding

from mfm_jax.bundle import Bundle
from mfm_jax.data.clips import Clip, DataError
from mfm_jax.data.decoded import first_window, samples_of
from mfm_jax.data.features import DESCRIPTION, SOUND_ENCODERS, WITH_WEIGHTS, bundled, describe
from mfm_jax.data.records import LEASES, DatasetWriter, Failure, Field
from mfm_jax.encoders import (
    Encoder,
    encode_windows,
    encoder_network,
    open_encoders,
    stack_windows,
    window_spec,
)
from mfm_jax.inference.sound_encoders import encode_audiomae
from mfm_jax.inference.stream import Device, in_full, read_ahead
from mfm_jax.media.audio import kaldi_fbank, level, log_mel, prepare_for_audiomae
from mfm_jax.media.windows import Window, WindowSpec, blank_window
from mfm_jax.models.vae import VAE
from mfm_jax.runtime.failures import FailureLog
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh
from mfm_jax.runtime.throughput import Throughput
from mfm_jax.storage.files import check_folder
from mfm_jax.storage.leases import Lease, Leases
from mfm_jax.storage.paths import array_path
from mfm_jax.typing import Array, Float

SILENT = -60.0
"""dBFS RMS below which a clip counts as silent."""

STATIC = 2.0
"""Grey levels of 255: a clip no frame of which differs more from the first counts as static.

Coding alone makes up to 1.5 of a picture that stands still.
"""

POLL = 2.0
"""Seconds after which is looked again whether the work of others is done, or to be taken over."""

DROPS = ("silent", "static")
"""Kinds of clips that can be left out: they teach that sound does not follow the picture."""

Networks = Mapping[str, Any]


class Prepared(NamedTuple):
    """A clip as the encoders read it, on the host."""

    window: Window
    fbank: Float[np.ndarray, "T M"] | None  # None without an AudioMAE
    mel: Float[np.ndarray, "T2 M2"]


@dataclass(frozen=True)
class Preparation:
    """Turns clips into batches for encoders."""

    bundle: Bundle
    encoders: Mapping[str, Encoder]  # of video
    sounds: tuple[str, ...]  # of `SOUND_ENCODERS`
    drop: tuple[str, ...] = ()  # of `DROPS`

    @classmethod
    def of(
        cls, bundle: Bundle, names: Iterable[str], timechat: str, drop: Iterable[str] = ()
    ) -> "Preparation":
        """Prepare for the encoders of these names.

        Raises:
            BundleError: the bundle lacks one, or there is no such encoder.
        """
        sounds = tuple(name for name in names if name in SOUND_ENCODERS)
        video = [name for name in names if name not in sounds]
        opened = open_encoders(bundle, video, {"timechat": timechat})
        return cls(bundle, opened, sounds, tuple(drop))

    def networks(self, component: Callable[[str], Any]) -> dict[str, Any]:
        """Return what encodes, by name; `component` returns the bundle's component of a name."""
        component = cache(component)  # two encoders may run parts of one
        video = {n: encoder_network(e, n, component) for n, e in self.encoders.items()}
        return video | {name: component(name) for name in self.sounds}

    @cached_property
    def spec(self) -> WindowSpec:
        """The frames and the seconds that are decoded of a clip."""
        return window_spec(self.bundle, self.encoders)

    def clip(self, clip: Clip) -> Prepared | Failure:
        """Decode a clip's first window, unless it is to be dropped.

        Raises:
            MediaError: as `first_window`.
        """
        window, wave = first_window(clip, self.spec)
        if "silent" in self.drop and (loud := level(wave)) < SILENT:
            return Failure(clip.id, f"dropped: silent, {loud:.0f} dBFS")
        if "static" in self.drop and (change := _change(window)) < STATIC:
            return Failure(clip.id, f"dropped: static, its frames differ by {change:.2f} of 255")
        return self.spectrograms(window, wave)

    def spectrograms(self, window: Window, wave: Float[np.ndarray, " A"]) -> Prepared:
        """Compute AudioMAE's filter bank and the VAE's mel of one normalised waveform.

        As AudioLDM2 was trained: cut to the window, mean removed, peak 0.5, then padded
        (utilities/data/dataset.py:321, 395 of AudioLDM-training-finetuning).
        """
        wave = prepare_for_audiomae(wave, samples_of(self.spec))
        fbank = None
        if "audiomae" in self.sounds:
            fbank = kaldi_fbank(wave, self.bundle.config("audiomae").frames)
        return Prepared(window, fbank, np.asarray(log_mel(wave)))

    def blank(self) -> Prepared:
        """Return a black and silent clip, for its shapes."""
        silence = np.zeros(samples_of(self.spec), np.float32)
        return self.spectrograms(blank_window(self.spec), silence)

    def batch(self, clips: Sequence[Prepared]) -> dict[str, Any]:
        """Return the input of each encoder."""
        inputs = stack_windows(self.encoders, [clip.window for clip in clips])
        if "audiomae" in self.sounds:
            inputs["audiomae"] = np.stack([c.fbank for c in clips if c.fbank is not None])
        if "vae" in self.sounds:
            inputs["vae"] = np.stack([c.mel for c in clips])[..., None]
        return inputs


def _change(window: Window) -> float:
    """Return the largest mean difference of a frame from the first, as TimeChat sees them.

    Without TimeChat it is as the first encoder sees them.
    """
    seen = window.seen.get("timechat") or next(iter(window.seen.values()))
    frames = seen.pixels
    return float(np.abs(frames.astype(np.float32) - frames[0]).mean(axis=(1, 2, 3)).max())


def encode(
    networks: Networks, inputs: Mapping[str, Any], *, encoders: Mapping[str, Encoder]
) -> dict[str, Array]:
    """Compute the features of a batch: float16, and times in float32 seconds."""
    streams = encode_windows(encoders, networks, inputs)
    features = {name: stream.tokens for name, stream in streams.items()}
    if "audiomae" in inputs:
        # Unpooled: the LOA grid is a choice of training.
        features["audiomae"] = encode_audiomae(networks["audiomae"], inputs["audiomae"])
    if "vae" in inputs:
        features["latents"] = _latents(networks["vae"], inputs["vae"])
    features = {name: value.astype(jnp.float16) for name, value in features.items()}
    times = {f"{name}_seconds": stream.seconds for name, stream in streams.items()}
    return {**features, **times}


@jax.jit
def _latents(vae: VAE, mel: Float[Array, "B T M 1"]) -> Float[Array, "B H W C"]:
    """Return the mean of the posterior, scaled as diffusion reads it."""
    return vae.encode(mel)[0]


def extract(
    bundle: Bundle,
    clips: Iterable[Clip],
    folder: Path,
    *,
    batch: int = 8,
    encoders: Sequence[str] | None = None,
    timechat: str = "video",
    precision: str = "float32",
    drop: Sequence[str] = (),
    licence: str = "",
    share: tuple[int, int] = (0, 1),
    shard: int | None = None,
    progress: Callable[[int], None] = lambda clips: None,
    say: Callable[[str], None] = lambda line: None,
    throughput: Throughput | None = None,
) -> list[Failure]:
    """Store the features of the first window of each clip, where `folder` lacks them.

    An element holds, of each video encoder, its tokens `[T, D]` under its name and their times
    `[T]`, as `cavp` and `cavp_seconds`; of AudioMAE, `audiomae` `[1 + patches, D]`; and of the VAE,
    `latents` `[H, W, C]`. Clips are in the order of their ids. An interrupted run goes on where it
    stopped. Clips that cannot be read or have no sound are left out, listed in `failed.csv` and
    returned.
    Exceptions that nobody expected are recorded in `failures.log` as well.
    `progress` is called with the number of clips just done, and `say` with a line for each that is
    left out. A batch is divided over this process's devices. Clips are decoded ahead, and a batch
    is on its way to the device while another is computed; `throughput` counts both.

    Args:
        batch: clips computed at once, a multiple of the devices.
        encoders: those that are run, of `ENCODERS` and `SOUND_ENCODERS`; all that the bundle has if
            not given.
        timechat: which of TimeChat's tokens, as in `MapperConfig`.
        precision: of the weights and the arithmetic, one of `PRECISIONS`; features are float16.
        drop: kinds of clips to leave out as well: `silent`, `static`.
        licence: SPDX expression of the terms of the clips, kept with the features; empty if
            unknown.
        share: (i, n): do part `i` of `n` of the work. Other processes, on any machine that sees
            `folder`, do the others. The last one finishes the folder; the result does not depend
            on `n`. Processes that are all given (0, 1) divide the work as they go.
        shard: clips in one file, which is written whole or not at all; 256 if not given.

    Raises:
        DataError: the bundle has no encoder, `folder` holds something else, or no clip can be read.
        BundleError: the bundle lacks an encoder or such TimeChat tokens, or weights cannot be read.
        WriteError: nothing can be written into `folder`, or there is no room for it.
    """
    names = bundled(bundle) if encoders is None else list(dict.fromkeys(encoders))
    if not names:
        raise DataError(f"bundle {bundle.path} has none of {', '.join(WITH_WEIGHTS)}: add one")
    check_folder(array_path(folder))
    preparation = Preparation.of(bundle, names, timechat, drop)
    layout = Layout(make_mesh(MeshConfig(), jax.local_devices()))
    sharding = layout.batch(batch)
    about = describe(bundle, timechat, names) | ({"drop": sorted(drop)} if drop else {})
    about |= {"licence": licence} if licence else {}
    about |= {"precision": precision} if precision != "float32" else {}
    fields = element_fields(preparation)
    writer = DatasetWriter.open(folder, DESCRIPTION, about, fields, clips, shard=shard)
    index, parts = share
    mine = range(index, len(writer.shards), parts)
    left = set(writer.missing()) & set(mine)
    throughput = throughput or Throughput()

    def skip(shards: Iterable[int]) -> None:
        clips = sum(len(writer.shards[shard]) for shard in shards)
        throughput.skip(clips)
        progress(clips)

    skip(set(range(len(writer.shards))) - left)
    networks: dict[str, Any] = {}
    with Leases(folder / LEASES) as leases:
        shards = SharedShards(writer, mine, leases)
        while shards.wait():
            networks = networks or preparation.networks(
                lambda name: bundle.load(
                    name, jnp.dtype(precision), sharding=lambda *_: layout.replicated
                )
            )
            extraction = Extraction(preparation, networks, sharding, FailureLog(folder), throughput)
            # One stream over all files, so that the device does not wait at the end of each.
            with closing(extraction.features(shards.clips(), batch)) as found:
                for first in found:
                    shard, lease = shards.begun.popleft()
                    its = chain([first], islice(found, len(writer.shards[shard]) - 1))
                    writer.write(shard, _told(its, progress, say))
                    leases.give_back(lease)
                    left.discard(shard)
        skip(left)  # which other workers have made
    return writer.finish() if not writer.missing() else writer.failed()


@dataclass(eq=False)
class SharedShards:
    """The files of a dataset that this worker makes, taken one after the other as it goes.

    Other workers that were given the same task make the others. Each takes a file by a lease, so
    that the file of one that dies goes to another.
    """

    writer: DatasetWriter
    mine: Sequence[int]  # the numbers of those that it may make
    leases: Leases
    begun: deque[tuple[int, Lease]] = field(default_factory=deque)

    def wait(self) -> bool:
        """Wait until a file can be taken; return False once all are made."""
        while missing := self._missing():
            if self._take(missing):
                return True
            time.sleep(POLL)
        return False

    def clips(self) -> Iterator[Clip]:
        """Yield the clips of the file that `wait` took, and of all that can be taken after it."""
        yield from self.writer.shards[self.begun[-1][0]]
        while self._take(self._missing()):
            yield from self.writer.shards[self.begun[-1][0]]

    def _missing(self) -> list[int]:
        missing = set(self.writer.missing()) - {shard for shard, _ in self.begun}
        return [shard for shard in self.mine if shard in missing]

    def _take(self, missing: Sequence[int]) -> bool:
        for shard in missing:
            lease = self.leases.take(f"{shard:05d}")
            if lease is None:
                continue
            if shard in self._missing():
                self.begun.append((shard, lease))
                return True
            self.leases.give_back(lease)  # it was made just before
        return False


def _told(
    found: Iterable[dict[str, np.ndarray] | Failure],
    progress: Callable[[int], None],
    say: Callable[[str], None],
) -> Iterator[dict[str, np.ndarray] | Failure]:
    """Pass the features of clips on, and report each clip that is done or left out."""
    for one in found:
        if isinstance(one, Failure):
            say(f"{one.id} is left out: {one.reason}")
        yield one
        progress(1)


def element_fields(preparation: Preparation) -> dict[str, Field]:
    """Return the arrays of an element, from shapes alone."""
    networks = preparation.networks(preparation.bundle.abstract)
    inputs = preparation.batch([preparation.blank()])
    features = jax.eval_shape(partial(encode, encoders=preparation.encoders), networks, inputs)
    return {name: Field(tuple(f.shape[1:]), str(f.dtype)) for name, f in features.items()}


Item = tuple[Clip, Prepared | Failure]
Features = dict[str, np.ndarray]


@dataclass(frozen=True)
class Extraction:
    """Computes the features of clips. A clip fails alone, whatever it raises."""

    preparation: Preparation
    networks: Networks
    sharding: NamedSharding
    log: FailureLog
    throughput: Throughput = field(default_factory=Throughput)

    def features(
        self, clips: Iterable[Clip], batch: int
    ) -> Generator[Features | Failure, None, None]:
        """Yield the features of each clip, in order, computed `batch` at a time: one shape."""

        def start(group: list[Item]) -> dict[str, Array]:
            full = in_full(_good(group), batch) if _good(group) else []
            return self.start([one for _, one in full])

        device = Device[Item, Features](start, jax.device_get, self.throughput)
        with closing(read_ahead(clips, self.prepare, ahead=2 * batch)) as items:
            for group, result in device.results(_groups(items, batch)):
                encoded = iter(self._encoded(device, _good(group), result))
                self.throughput.did(len(group) * self.preparation.spec.seconds)
                for _, one in group:
                    yield one if isinstance(one, Failure) else next(encoded)

    def prepare(self, clip: Clip) -> Iterator[Prepared | Failure]:
        """Decode a clip; yield why it cannot be, if so."""
        self.throughput.open(self.preparation.spec.seconds)
        try:
            yield self.preparation.clip(clip)
        except Exception as error:
            yield self._failure(clip, error)

    def start(self, prepared: Sequence[Prepared]) -> dict[str, Array]:
        """Start to compute the features of a full batch."""
        if not prepared:
            return {}
        inputs = jax.device_put(self.preparation.batch(prepared), self.sharding)
        return encode(self.networks, inputs, encoders=self.preparation.encoders)

    def _encoded(
        self,
        device: Device[Item, Features],
        good: list[tuple[Clip, Prepared]],
        result: Features | Exception,
    ) -> list[Features | Failure]:
        """Return the features of each clip. Where clips fail together, each is tried alone."""
        if not isinstance(result, Exception):
            return [{n: value[row] for n, value in result.items()} for row in range(len(good))]
        if len(good) == 1:
            return [self._failure(good[0][0], result)]
        alone = ([pair] for pair in good)
        return [
            found for pair in alone for found in self._encoded(device, pair, device.result([*pair]))
        ]

    def _failure(self, clip: Clip, error: Exception) -> Failure:
        return Failure(clip.id, self.log.reason(str(clip.path), error))


def _good(group: Sequence[Item]) -> list[tuple[Clip, Prepared]]:
    return [(clip, one) for clip, one in group if isinstance(one, Prepared)]


def _groups(items: Iterator[Item], batch: int) -> Iterator[list[Item]]:
    """Yield clips in order, with at most `batch` in a group that could be decoded."""
    group: list[Item] = []
    for item in items:
        group.append(item)
        if len(_good(group)) == batch or len(group) == 4 * batch:
            yield group
            group = []
    if group:
        yield group

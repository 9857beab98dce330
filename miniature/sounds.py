"""Makes sound for clips: from the video alone or, as ceilings, from the true sound."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.foley.scores import Contacts
from mfm_jax.foley.world import read_events
from mfm_jax.inference.pipeline import (
    Condition,
    Sampling,
    VideoToAudio,
    sound_from_loa,
    stitch,
)
from mfm_jax.mapper import Streams
from mfm_jax.media.audio import RATE, kaldi_fbank, log_mel, prepare_for_audiomae
from mfm_jax.media.frames import windows
from mfm_jax.media.probe import probe
from mfm_jax.media.soundtrack import read_audio
from mfm_jax.media.windows import Window, WindowSpec
from mfm_jax.models.adapters import AdaptedUNet
from mfm_jax.models.audiomae import AudioMAE
from mfm_jax.models.vae import VAE
from mfm_jax.models.vocoder import Vocoder
from mfm_jax.typing import Array, Float

WAYS = ("video", "loa", "vae", "vocoder", "real")
"""Ways of making sound: from the video alone, then the ceilings: from true LOA (and from the video,
where the bundle has an adapter that reads it), from the VAE's latents of the true sound, from its
log-mel, and the true sound itself."""

BATCH = 16  # windows computed at once


def without_adapter(model: VideoToAudio) -> VideoToAudio:
    """Return networks whose UNet reads LOA alone."""
    unet = model.networks.unet
    if isinstance(unet, AdaptedUNet):
        return replace(model, networks=model.networks._replace(unet=unet.unet))
    return model


class Piece(NamedTuple):
    """The material that the sound of a window is made of."""

    window: Window | None  # its frames, where they are seen
    wave: Float[np.ndarray, " A"]  # its true sound


@dataclass(frozen=True)
class KnownClip:
    """A video file with its true contacts and sound."""

    path: Path
    truth: Contacts
    wave: Float[np.ndarray, " A"]  # at 16 kHz with its peak at 0.5, as in training
    kind: str  # motion of the first body


def read_clip(path: Path, kind: str = "") -> KnownClip:
    """Read a Foley clip that was written to `path`.

    Raises:
        MediaError, WorldError: a file of it is missing or broken.
    """
    events = read_events(path)
    times = np.array([event.time for event in events])
    wave = read_audio(path)
    assert wave is not None, f"{path} has no sound"
    truth = Contacts(times, tuple(event.material for event in events))
    return KnownClip(path, truth, prepare_for_audiomae(wave, len(wave)), kind)


@dataclass(frozen=True)
class Synthesiser:
    """Makes sound for clips with the networks of a bundle."""

    model: VideoToAudio
    audiomae: AudioMAE
    sampling: Sampling

    @classmethod
    def open(cls, path: Path, sampling: Sampling | None = None) -> "Synthesiser":
        """Open a bundle.

        Args:
            sampling: the bundle's own if None.

        Raises:
            BundleError: a component is missing or does not fit.
        """
        bundle, model = Bundle.open(path), VideoToAudio.open(path)
        s = model.settings
        own = Sampling(s.sampler, s.steps, s.guidance)
        return cls(model, bundle.load("audiomae", jnp.float32), sampling or own)

    @property
    def spec(self) -> WindowSpec:
        """Windows that clips are cut into, and the frames that the encoders see of each."""
        return self.model.spec

    def sounds(
        self, clips: Sequence[KnownClip], way: str, *, seed: int = 0
    ) -> Iterator[Float[np.ndarray, " A"]]:
        """Make a sound for each clip, as long as its true sound, in one of `WAYS`.

        The noise of a window depends only on `seed`, on the index of the clip and on that of the
        window, so two bundles get the same noise.
        """
        if way == "real":
            yield from (clip.wave for clip in clips)
            return
        keys = jax.random.split(jax.random.key(seed), len(clips))
        counts = [len(self.spec.starts(self._seconds(clip))) for clip in clips]
        jobs = (
            (piece, jax.random.fold_in(key, i))
            for clip, key in zip(clips, keys, strict=True)
            for i, piece in enumerate(self._pieces(clip, way))
        )
        made = self._in_batches(jobs, way)
        for clip, count in zip(clips, counts, strict=True):
            yield stitch(list(islice(made, count)), self.spec, len(clip.wave))

    def _seconds(self, clip: KnownClip) -> float:
        return probe(clip.path).seconds

    def _pieces(self, clip: KnownClip, way: str) -> Iterator[Piece]:
        """Yield what the sound of each window of a clip is made of, in one of `WAYS`."""
        starts = self.spec.starts(self._seconds(clip))
        sees = way == "video" or (
            way == "loa" and isinstance(self.model.networks.unet, AdaptedUNet)
        )
        seen = windows(clip.path, self.spec) if sees else repeat(None)
        for start, window in zip(starts, seen, strict=False):
            first, length = round(start * RATE), round(self.spec.seconds * RATE)
            wave = prepare_for_audiomae(clip.wave[first : first + length], length)
            yield Piece(window, wave)

    def _in_batches(self, jobs: Iterator, way: str) -> Iterator[Float[np.ndarray, " A"]]:
        while group := list(islice(jobs, BATCH)):
            # The last batch is padded with copies: another shape would be compiled again.
            full = group + [group[-1]] * (BATCH - len(group))
            pieces, keys = [piece for piece, _ in full], jnp.stack([key for _, key in full])
            yield from np.asarray(self._make(pieces, keys, way))[: len(group)]

    def _make(self, pieces: Sequence[Piece], keys: Array, way: str) -> Array:
        """Make the sounds of one batch of windows."""
        networks = self.model.networks
        if way in ("vae", "vocoder"):
            mels = jnp.asarray(np.stack([log_mel(piece.wave) for piece in pieces]))
            if way == "vae":
                mels = _through_vae(networks.vae, mels)
            return _vocode(networks.vocoder, mels)
        read = Condition(np.zeros(0, np.float32))
        if seen := [piece.window for piece in pieces if piece.window is not None]:
            read = self.model.predict(self.model.encode(seen))
        if way == "loa":
            frames = self.audiomae.config.frames
            fbanks = jnp.asarray(np.stack([kaldi_fbank(piece.wave, frames) for piece in pieces]))
            true = networks.mapper.config.loa.pooled(_listen(self.audiomae, fbanks))
            read = read._replace(loa=true)
        return self.sound(jnp.asarray(read.loa), keys, read.streams)

    def sound(
        self, loa: Float[Array, "B K D"], keys: Array, streams: Streams | None = None
    ) -> Float[Array, "B A"]:
        """Turn LOA into sound with diffusion, VAE and vocoder.

        Args:
            streams: what the adapter of the UNet reads, if it has one.
        """
        return sound_from_loa(
            self.model.networks.sound_networks, loa, keys, None, None, None, streams,
            settings=self.model.settings, sampling=self.sampling,
        )  # fmt: skip


@jax.jit
def _listen(audiomae: AudioMAE, fbanks: Float[Array, "B T M"]) -> Float[Array, "B L D"]:
    return audiomae(fbanks)


@jax.jit
def _through_vae(vae: VAE, mels: Float[Array, "B T M"]) -> Float[Array, "B T M"]:
    return vae.decode(vae.encode(mels[..., None])[0])[..., 0]


@jax.jit
def _vocode(vocoder: Vocoder, mels: Float[Array, "B T M"]) -> Float[Array, "B A"]:
    return vocoder(mels)[:, : mels.shape[1] * vocoder.config.hop]

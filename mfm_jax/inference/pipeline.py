"""Video to audio: encode, fuse and map, sample, decode, vocode.

Imports jax, flax, einops and numpy only. Frames come in as arrays and waveforms go out as arrays;
`mfm_jax.media.video` reads and writes files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from einops import repeat
from jax import numpy as jnp
from jax.typing import DTypeLike

from mfm_jax.bundle import Bundle, Settings
from mfm_jax.diffusion import guide, sample
from mfm_jax.inference.encoders import (
    Frames,
    encode_video,
    sentence_length,
    stack_cavp,
    stack_timechat,
    window_spec,
)
from mfm_jax.mapper import Mapper, Streams
from mfm_jax.media.audio import RATE
from mfm_jax.media.windows import Window, WindowSpec
from mfm_jax.models.cavp import CAVPVideo
from mfm_jax.models.text import EmptyText
from mfm_jax.models.timechat import TimeChat
from mfm_jax.models.unet import UNet
from mfm_jax.models.vae import VAE
from mfm_jax.models.vocoder import Vocoder
from mfm_jax.runtime.sharding import Layout, MeshConfig, constrain, make_mesh
from mfm_jax.typing import Array, Bool, Float, Shaped


class Text(NamedTuple):
    """T5 states for the UNet's text branch; `mask` is False at padding."""

    states: Float[Array, "B L D"]
    mask: Bool[Array, "B L"]


class Sounding(NamedTuple):
    """The networks that make sound of LOA; `text` only where the UNet reads text."""

    mapper: Mapper
    unet: UNet
    vae: VAE
    vocoder: Vocoder
    text: EmptyText | None


class Networks(NamedTuple):
    """The frozen networks and the mapper between them; `text` as in `Sounding`."""

    cavp: CAVPVideo
    timechat: TimeChat
    mapper: Mapper
    unet: UNet
    vae: VAE
    vocoder: Vocoder
    text: EmptyText | None

    @property
    def sounding(self) -> Sounding:
        """Those that make sound."""
        return Sounding(self.mapper, self.unet, self.vae, self.vocoder, self.text)


class Given(NamedTuple):
    """What generation reads of a batch of windows, beside the networks."""

    frames: Frames
    keys: Shaped[Array, " B"]  # of each window's noise
    text: Text | None
    negative: Text | None


class Sampling(NamedTuple):
    """How latents are sampled."""

    sampler: str = "dpm++"  # or "ddim"
    steps: int = 25
    guidance: float = 3.5  # 1 is no guidance
    eta: float = 0.0  # of ddim: 0 deterministic, 1 ancestral


@jax.jit
def predict_loa(mapper: Mapper, streams: Streams) -> Float[Array, "B K D"]:
    """LOA from video, in float32."""
    return constrain(mapper.generate(streams).astype(jnp.float32), "batch")


@partial(jax.jit, static_argnames=("settings", "sampling"))
def sound_from_loa(
    networks: Sounding,
    loa: Float[Array, "B K D"],
    keys: Shaped[Array, " B"],
    text: Text | None,
    negative: Text | None,
    *,
    settings: Settings,
    sampling: Sampling,
) -> Float[Array, "B A"]:
    """Sample latents under `loa` (and text), decode them to a log-mel and vocode it.

    Guidance pushes away from zeros for LOA, and from `negative` for text, as AudioLDM2 was trained.
    """
    unet, vae, vocoder = networks.unet, networks.vae, networks.vocoder
    seconds = jnp.asarray(networks.mapper.config.loa.times())

    def denoise(x, t, given):
        tokens, words = given
        contexts: tuple[Array, ...] = (tokens,)
        masks: tuple[Array | None, ...] = (None,)
        if words is not None:
            contexts, masks = (tokens, words.states), (None, words.mask)
        return unet(x, t, contexts, masks, context_seconds=seconds)

    shape = vae.latent_shape(settings.frames, vocoder.config.mels)
    start, later = jnp.swapaxes(jax.vmap(jax.random.split)(keys), 0, 1)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(start)
    latents = sample(
        guide(denoise, (loa, text), (jnp.zeros_like(loa), negative), sampling.guidance),
        noise,
        settings.schedule,
        sampler=sampling.sampler,
        steps=sampling.steps,
        eta=sampling.eta,
        keys=later,
    )
    mel = vae.decode(latents)[..., 0]
    return vocoder(mel)[:, : settings.frames * vocoder.config.hop].astype(jnp.float32)


@dataclass(frozen=True)
class VideoToAudio:
    """The opened networks of a bundle, ready to make sound for windows of video."""

    networks: Networks
    settings: Settings
    spec: WindowSpec  # what the encoders see of a window
    sentence: int  # tokens of a timestamp sentence, padding included
    layout: Layout  # of weights and windows on the devices

    @classmethod
    def open(
        cls, path: Path, dtype: DTypeLike = jnp.float32, layout: Layout | None = None
    ) -> "VideoToAudio":
        """Load every network that generation needs, computing in `dtype`.

        Weights are cut and windows divided over the devices of `layout`, which are this process's
        own; it is one device if not given.

        Raises:
            BundleError: a component is missing or does not fit.
        """
        if layout is None:
            layout = Layout(make_mesh(MeshConfig(), jax.local_devices()[:1]))
        bundle = Bundle.open(path)
        names = ["cavp", "timechat", "mapper", "unet", "vae", "vocoder"]
        with_text = len(bundle.config("unet").contexts) > 1
        loaded = {name: bundle.load(name, dtype, sharding=layout.weight) for name in names}
        text = bundle.load("text", dtype, sharding=layout.weight) if with_text else None
        return cls(
            Networks(**loaded, text=text),
            bundle.settings,
            window_spec(bundle),
            sentence_length(bundle),
            layout,
        )

    def frames(self, windows: Sequence[Window]) -> Frames:
        """Stack the windows' frames and write their timestamps."""
        vocabulary = self.networks.timechat.config.vocabulary
        return Frames(stack_cavp(windows), stack_timechat(windows, vocabulary, self.sentence))

    def __call__(
        self,
        windows: Sequence[Window],
        seed: int = 0,
        sampling: Sampling | None = None,
        prompt: Text | None = None,
        negative: Text | None = None,
    ) -> Float[np.ndarray, "B A"]:
        """A waveform in [-1, 1] at 16 kHz for each window, as long as a window.

        A window's sound depends on its frames, its index and `seed`, and on nothing else in the
        batch. `prompt` and `negative` hold one row each, for all windows.

        Raises:
            SettingError: the devices of the layout do not divide the windows.
        """
        sampling = sampling or Sampling(
            self.settings.sampler, self.settings.steps, self.settings.guidance
        )
        place = self.layout.batch(len(windows))
        given = jax.device_put(self.given(windows, seed, prompt, negative), place)
        n = self.networks
        with jax.set_mesh(self.layout.mesh):
            streams = encode_video(
                n.cavp, n.timechat, given.frames, tensor=n.mapper.config.timechat
            )
            loa = predict_loa(n.mapper, streams)
            wave = sound_from_loa(
                n.sounding,
                loa,
                given.keys,
                given.text,
                given.negative,
                settings=self.settings,
                sampling=sampling,
            )
        return np.asarray(wave)

    def given(
        self,
        windows: Sequence[Window],
        seed: int = 0,
        prompt: Text | None = None,
        negative: Text | None = None,
    ) -> Given:
        """What the compiled programs read of `windows`, before it is divided over the devices."""
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            jax.random.key(seed), jnp.array([w.index for w in windows], jnp.uint32)
        )
        return Given(self.frames(windows), keys, *self._texts(len(windows), prompt, negative))

    def _texts(self, batch: int, prompt: Text | None, negative: Text | None):
        """The text of each half of guidance, of one length; T5("") where none is given."""
        if self.networks.text is None:
            if prompt is not None or negative is not None:
                raise ValueError("this bundle's UNet reads no text: leave the prompt out")
            return None, None
        states = self.networks.text(1)
        empty = Text(states, jnp.ones(states.shape[:2], bool))
        texts = [prompt or empty, negative or empty]
        longest = max(t.mask.shape[1] for t in texts)
        return [
            Text(
                repeat(_padded(t.states, longest), "1 l d -> b l d", b=batch),
                repeat(_padded(t.mask, longest), "1 l -> b l", b=batch),
            )
            for t in texts
        ]


def _padded(x: Array, length: int) -> Array:
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def stitch(
    waves: Sequence[Float[np.ndarray, " A"]], spec: WindowSpec, samples: int
) -> Float[np.ndarray, " {samples}"]:
    """One waveform of `samples` from the windows of a video, cross-faded where they overlap.

    The fade keeps power constant: neighbours were sampled apart and do not correlate. What the
    windows leave of the video's end is silent.
    """
    step = round((spec.seconds - spec.overlap) * RATE)
    overlap = round(spec.overlap * RATE)
    rise = np.sin(np.linspace(0, np.pi / 2, overlap, dtype=np.float32))
    covered = step * (len(waves) - 1) + max(map(len, waves))
    total = np.zeros(max(covered, samples), np.float32)
    for i, wave in enumerate(waves):
        wave = wave.copy()
        if i > 0:
            wave[:overlap] *= rise
        if i < len(waves) - 1:
            wave[step : step + overlap] *= rise[::-1]
        total[i * step : i * step + len(wave)] += wave
    return total[:samples]

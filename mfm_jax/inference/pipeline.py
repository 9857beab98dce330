"""Video to audio: encode, fuse and map, sample, decode, vocode.

Imports jax, flax, einops, numpy and orbax (which reads the weights), and nothing else. Frames come
in as arrays and waveforms go out as arrays; `mfm_jax.inference.work` reads and writes files.
"""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from jax.typing import DTypeLike

from mfm_jax.bundle import Bundle, Settings
from mfm_jax.bundle.adapted import adapted_unet
from mfm_jax.diffusion import guide, sample
from mfm_jax.diffusion.guidance import Denoiser
from mfm_jax.encoders import (
    Encoder,
    component_of,
    encode_windows,
    encoder_network,
    read_in_generation,
    stack_windows,
    window_spec,
)
from mfm_jax.mapper import Mapper, Streams
from mfm_jax.media.audio import RATE
from mfm_jax.media.windows import Window, WindowSpec
from mfm_jax.models.adapters import AdaptedUNet, seeing, without_video
from mfm_jax.models.text import EmptyText
from mfm_jax.models.unet import UNet
from mfm_jax.models.vae import VAE
from mfm_jax.models.vocoder import Vocoder
from mfm_jax.runtime.compiled import NO_PROGRAMS, Programs
from mfm_jax.runtime.seeds import SEEDS, random_key
from mfm_jax.runtime.sharding import Layout, MeshConfig, constrain, make_mesh
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.typing import Array, Bool, Float, Shaped

LOADERS = 3
"""Networks that are loaded at a time."""


class Text(NamedTuple):
    """T5 states that the UNet's text branch reads; `mask` is False at padding."""

    states: Float[Array | np.ndarray, "B L D"]
    mask: Bool[Array | np.ndarray, "B L"]


class SoundNetworks(NamedTuple):
    """The networks that turn LOA into sound; `text` is None unless the UNet reads text."""

    mapper: Mapper
    unet: UNet | AdaptedUNet
    vae: VAE
    vocoder: Vocoder
    text: EmptyText | None


class Networks(NamedTuple):
    """The frozen networks and the mapper; `text` is None unless the UNet reads text."""

    encoders: Mapping[str, Any]  # by the streams that mapper and adapter read
    mapper: Mapper
    unet: UNet | AdaptedUNet
    vae: VAE
    vocoder: Vocoder
    text: EmptyText | None

    @property
    def sound_networks(self) -> SoundNetworks:
        """The networks after the video encoders."""
        return SoundNetworks(self.mapper, self.unet, self.vae, self.vocoder, self.text)


class GenerationInputs(NamedTuple):
    """Everything that generation reads for a batch of windows, apart from the networks."""

    frames: Mapping[str, Any]  # inputs of each encoder
    keys: Shaped[Array, " B"]  # random keys, one for each window
    text: Text | None
    negative: Text | None


class Condition(NamedTuple):
    """The condition of the UNet for each window, beside text."""

    loa: Float[Array | np.ndarray, "B L E"]
    streams: Streams | None = None  # that its adapter reads, if it has one


class Made(NamedTuple):
    """Sounds of windows, and the LOA that they were made of; or those of one window, without B."""

    waves: Float[Array | np.ndarray, "B N A"]  # N candidates
    loa: Float[Array | np.ndarray, "B L E"]


class Sampling(NamedTuple):
    """Settings of the diffusion sampler."""

    sampler: str = "dpm++"  # or "ddim"
    steps: int = 25
    guidance: float = 3.5  # scale of classifier-free guidance; 1 is none
    eta: float = 0.0  # for ddim: 0 is deterministic, 1 is ancestral
    spacing: str | None = None  # of the timesteps of dpm++, as in `mfm_jax.diffusion.sample`
    # Noise levels sigma / alpha between which there is guidance, the lower one excluded.
    interval: tuple[float, float] | None = None
    rescale: float = 0.0  # 0 to 1: how far guidance keeps the spread of the prediction


@jax.jit
def predict_loa(mapper: Mapper, streams: Streams) -> Float[Array, "B L E"]:
    """Predict the LOA of each window from its video tokens, in float32."""
    return constrain(mapper.generate(streams).astype(jnp.float32), "batch")


def guided(
    unet: UNet | AdaptedUNet,
    seconds: Float[Array, " L"],
    condition: tuple[Condition, Text | None],
    unwanted: Float[Array | np.ndarray, "B L E"] | None,
    negative: Text | None,
    sampling: Sampling,
) -> tuple[Denoiser, Denoiser]:
    """Return the denoiser with guidance, and the one without.

    The unconditional half of guidance reads `unwanted`, or zeros, in place of LOA, `negative` in
    place of the text, and no video.

    Args:
        seconds: times of the LOA tokens.
    """
    (loa, streams), _ = condition
    nothing = jnp.zeros_like(loa) if unwanted is None else jnp.asarray(unwanted)
    blank = None if streams is None else without_video(streams)
    empty = Condition(nothing, blank), negative

    def denoise(x: Array, t: Array, condition: tuple[Condition, Text | None]) -> Array:
        (tokens, video), words = condition
        contexts: tuple[Any, ...] = (tokens,)
        masks: tuple[Array | None, ...] = (None,)
        if words is not None:
            contexts, masks = (tokens, words.states), (None, words.mask)  # type: ignore[assignment]
        return seeing(unet, video)(x, t, contexts, masks, context_seconds=seconds)

    return (
        guide(denoise, condition, empty, sampling.guidance, sampling.rescale),
        guide(denoise, condition, empty, 1.0),
    )


@partial(jax.jit, static_argnames=("settings", "sampling"))
def latents_from_loa(
    networks: SoundNetworks,
    loa: Float[Array, "B L E"],
    keys: Shaped[Array, " B"],
    text: Text | None,
    negative: Text | None,
    unwanted: Float[Array, "B L E"] | None = None,
    streams: Streams | None = None,
    *,
    settings: Settings,
    sampling: Sampling,
) -> Float[Array, "B H W C"]:
    """Sample latents conditioned on `loa` (and text, and video), in float32.

    The unconditional half of guidance reads `unwanted`, or zeros, in place of LOA and `negative` in
    place of the text. AudioLDM2 was trained with zeros.

    Args:
        streams: what the adapter of the UNet reads, if it has one.
    """
    vae, vocoder = networks.vae, networks.vocoder
    seconds = jnp.asarray(networks.mapper.config.loa.times())
    shape = vae.latent_shape(settings.frames, vocoder.config.mels)
    start, later = jnp.swapaxes(jax.vmap(jax.random.split)(keys), 0, 1)
    noise = jax.vmap(lambda key: jax.random.normal(key, shape))(start)
    condition = Condition(loa, streams), text
    denoise, unguided = guided(networks.unet, seconds, condition, unwanted, negative, sampling)
    return sample(
        denoise,
        noise,
        settings.schedule,
        sampler=sampling.sampler,
        steps=sampling.steps,
        spacing=sampling.spacing,
        eta=sampling.eta,
        keys=later,
        unguided=unguided,
        interval=sampling.interval,
    )


@partial(jax.jit, static_argnames="settings")
def sound_from_latents(
    networks: SoundNetworks, latents: Float[Array, "B H W C"], *, settings: Settings
) -> Float[Array, "B A"]:
    """Decode latents to a log-mel and vocode it."""
    vocoder = networks.vocoder
    mel = networks.vae.decode(latents)[..., 0]
    return vocoder(mel)[:, : settings.frames * vocoder.config.hop].astype(jnp.float32)


@partial(jax.jit, static_argnames=("settings", "sampling"))
def sound_from_loa(
    networks: SoundNetworks,
    loa: Float[Array, "B L E"],
    keys: Shaped[Array, " B"],
    text: Text | None,
    negative: Text | None,
    unwanted: Float[Array, "B L E"] | None = None,
    streams: Streams | None = None,
    *,
    settings: Settings,
    sampling: Sampling,
) -> Float[Array, "B A"]:
    """Do `latents_from_loa` and `sound_from_latents` in one program."""
    latents = latents_from_loa(
        networks, loa, keys, text, negative, unwanted, streams, settings=settings, sampling=sampling
    )
    return sound_from_latents(networks, latents, settings=settings)


@dataclass(frozen=True)
class VideoToAudio:
    """The networks of a bundle, ready to make sound for windows of video."""

    networks: Networks
    settings: Settings
    spec: WindowSpec  # length of a window and the frames that the encoders see of it
    encoders: Mapping[str, Encoder]  # those that mapper and adapter read
    layout: Layout  # shardings of the weights and the windows
    programs: Programs = NO_PROGRAMS  # those that are compiled already

    @classmethod
    def open(
        cls,
        bundle: str | Path | None = None,
        precision: DTypeLike = "float32",
        layout: Layout | None = None,
        *,
        verify: bool = True,
        only: Collection[str] | None = None,
        programs: Programs = NO_PROGRAMS,
    ) -> "VideoToAudio":
        """Load every network that generation needs.

        Args:
            bundle: a folder, or a repository of the hub (`hf://organisation/name@revision`); the
                miniature that comes with the package if None.
            precision: type of the weights, in which the networks then compute.
            layout: shardings on devices of this process; its first device alone if None.
            verify: compare the weights with their checksums.
            only: the networks to load, of the fields of `Networks`; the others have shapes in place
                of weights.
            programs: those that are compiled already.

        Raises:
            BundleError: there is no such bundle, or a component is missing or does not fit.
        """
        if layout is None:
            layout = Layout(make_mesh(MeshConfig(), jax.local_devices()[:1]))
        opened = Bundle.open(TINY_BUNDLE if bundle is None else bundle, verify=verify)
        encoders = read_in_generation(opened)
        names = [name for name in Networks._fields if name != "encoders"]
        if len(opened.config("unet").contexts) == 1:
            names.remove("text")
        if "adapter" in opened.entries:
            names.append("adapter")
        read = [name for name in map(component_of, encoders) if name]

        def component(name: str) -> Any:
            field = "encoders" if name in read else "unet" if name == "adapter" else name
            if only is not None and field not in only:
                return opened.abstract(name)
            return opened.load(name, jnp.dtype(precision), sharding=layout.weight)

        # Threads read one network's files while another is described. Orbax has barriers where
        # there are several processes, and then threads would get in each other's way.
        with ThreadPoolExecutor(LOADERS if jax.process_count() == 1 else 1) as pool:
            every = list(dict.fromkeys([*read, *names]))
            loaded = dict(zip(every, pool.map(component, every), strict=True))
        unet = adapted_unet(opened, loaded.__getitem__)
        networks = {name: loaded[name] for name in Networks._fields if name in loaded}
        video = {n: encoder_network(e, n, loaded.__getitem__) for n, e in encoders.items()}
        return cls(
            Networks(**{"text": None} | networks | {"encoders": video, "unet": unet}),
            opened.settings,
            window_spec(opened, encoders),
            encoders,
            layout,
            programs,
        )

    def frames(self, windows: Sequence[Window]) -> dict[str, Any]:
        """Return what each encoder reads of `windows`."""
        return stack_windows(self.encoders, windows)

    def __call__(
        self,
        windows: Sequence[Window],
        seed: int = 0,
        sampling: Sampling | None = None,
        prompt: Text | None = None,
        negative: Text | None = None,
    ) -> Float[np.ndarray, "B A"]:
        """Generate a waveform in [-1, 1] at 16 kHz for each window, as long as the window.

        A window's sound depends on its frames, its index and `seed`, and on nothing else in the
        batch. `prompt` and `negative` hold one row each, which serves all windows.

        Raises:
            SettingError: the devices of the layout do not divide the windows.
        """
        batch = len(windows)
        made = self.start(windows, [seed] * batch, sampling, [prompt] * batch, [negative] * batch)
        return np.asarray(made.waves[:, 0])

    def start(
        self,
        windows: Sequence[Window],
        seeds: Sequence[int],
        sampling: Sampling | None = None,
        prompts: Sequence[Text | None] = (),
        negatives: Sequence[Text | None] = (),
        *,
        candidates: int = 1,
    ) -> Made:
        """Start to make sound, with a seed and texts for each window.

        JAX computes while Python goes on; the result can be fetched later.

        Args:
            prompts: one row for each window, or None for the empty text; all empty if not given.
            negatives: the same for the unconditional half of guidance.
            candidates: sounds for each window, of the given seed and of those after it. The video
                is encoded once for all.

        Raises:
            SettingError: the devices of the layout do not divide the windows.
        """
        read = self.predict(self.encode(windows))
        return self.sound(read, windows, seeds, sampling, prompts, negatives, candidates=candidates)

    def encode(self, windows: Sequence[Window]) -> Streams:
        """Start to encode windows: the first stage, which needs the encoders.

        Raises:
            SettingError: the devices of the layout do not divide the windows.
        """
        frames = self.put(self.frames(windows), len(windows))
        with jax.set_mesh(self.layout.mesh):
            return encode_windows(self.encoders, self.networks.encoders, frames, self.programs)

    def predict(self, streams: Streams) -> Condition:
        """Start to predict the LOA of encoded windows: the second stage, which needs the mapper.

        The streams that the UNet's adapter reads go with it.
        """
        streams = self.put(streams, len(next(iter(streams.values())).tokens))
        mapper, unet = self.networks.mapper, self.networks.unet
        with jax.set_mesh(self.layout.mesh):
            read = {name: streams[name] for name in mapper.config.streams}
            loa = self.programs(predict_loa, mapper, read)
        if not isinstance(unet, AdaptedUNet):
            return Condition(loa)
        return Condition(loa, {name: streams[name] for name in unet.adapter.config.streams})

    def sound(
        self,
        read: Condition,
        windows: Sequence[Window],
        seeds: Sequence[int],
        sampling: Sampling | None = None,
        prompts: Sequence[Text | None] = (),
        negatives: Sequence[Text | None] = (),
        *,
        candidates: int = 1,
        unwanted: Float[np.ndarray, "L E"] | None = None,
    ) -> Made:
        """Start to make sound of what `predict` gave: the last stage, without the encoders.

        The other arguments are those of `start`.

        Args:
            unwanted: LOA that guidance moves away from, in place of zeros.
        """
        sampling = sampling or Sampling(
            self.settings.sampler, self.settings.steps, self.settings.guidance
        )
        batch, numbers = len(windows), [window.index for window in windows]
        texts = self.texts(batch, prompts, negatives)
        (loa, streams), text, negative = self.put((read, *texts), batch)
        others = None if unwanted is None else self.put(np.stack([unwanted] * batch), batch)
        # Left out where they are not there, as in programs that are compiled beforehand.
        more = () if others is None and streams is None else (others, streams)
        waves = []
        with jax.set_mesh(self.layout.mesh):
            for number in range(candidates):
                keys = self.keys(numbers, [(seed + number) % SEEDS for seed in seeds])
                wave = self.programs(
                    sound_from_loa,
                    self.networks.sound_networks,
                    loa,
                    self.put(keys, batch),
                    text,
                    negative,
                    *more,
                    settings=self.settings,
                    sampling=sampling,
                )
                waves.append(wave)
        return Made(jnp.stack(waves, axis=1), loa)

    def put(self, tree: Any, batch: int) -> Any:
        """Put arrays of a batch on the devices, sharded by window."""
        return jax.device_put(tree, self.layout.batch(batch))

    def inputs(
        self,
        windows: Sequence[Window],
        seeds: Sequence[int],
        prompts: Sequence[Text | None] = (),
        negatives: Sequence[Text | None] = (),
    ) -> GenerationInputs:
        """Return the inputs of the compiled programs, not yet sharded over the devices."""
        text, negative = self.texts(len(windows), prompts, negatives)
        return GenerationInputs(
            self.frames(windows),
            self.keys([window.index for window in windows], seeds),
            text,
            negative,
        )

    def keys(self, numbers: Sequence[int], seeds: Sequence[int]) -> Shaped[Array, " B"]:
        """Return the random keys of windows: those of their numbers in the video and of seeds."""
        known = {seed: random_key(seed) for seed in seeds}
        return jax.vmap(jax.random.fold_in)(
            jnp.stack([known[seed] for seed in seeds]),
            jnp.array(numbers, jnp.uint32),
        )

    def texts(
        self, batch: int, prompts: Sequence[Text | None], negatives: Sequence[Text | None]
    ) -> tuple[Text | None, Text | None]:
        """Return the texts of both halves of guidance, padded to one length.

        The states of the empty text stand in for one that is not given.
        """
        given = [text for text in (*prompts, *negatives) if text is not None]
        if self.networks.text is None:
            if given:
                raise ValueError("this bundle's UNet reads no text: leave the prompt out")
            return None, None
        states = self.networks.text(1)
        empty = Text(states, jnp.ones(states.shape[:2], bool))
        longest = max(text.mask.shape[1] for text in (empty, *given))

        def stacked(texts: Sequence[Text | None]) -> Text:
            rows = [empty if text is None else text for text in texts or [None] * batch]
            padded = [(_padded(row.states, longest), _padded(row.mask, longest)) for row in rows]
            return Text(*(jnp.concatenate(parts) for parts in zip(*padded, strict=True)))

        return stacked(prompts), stacked(negatives)


def _padded(x: Array | np.ndarray, length: int) -> Array:
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def stitch(
    waves: Sequence[Float[np.ndarray, " A"]],
    spec: WindowSpec,
    samples: int,
    *,
    joint: bool = False,
) -> Float[np.ndarray, " {samples}"]:
    """Join the windows of a video into one waveform of `samples`, with cross-fades at overlaps.

    The fade keeps the power constant, because neighbouring windows are sampled independently and do
    not correlate. Those that were sampled jointly are nearly equal, and their fade is linear.
    Samples after the last window are silent.
    """
    step = round((spec.seconds - spec.overlap) * RATE)
    overlap = round(spec.overlap * RATE)
    rise = np.linspace(0, 1, overlap, dtype=np.float32)
    if not joint:
        rise = np.sin(np.pi / 2 * rise)
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

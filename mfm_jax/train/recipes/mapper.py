"""The mapper: LOA of a clip's sound from the video encoders' tokens."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from mfm_jax.bundle import Bundle, Component, Settings, Source, write_bundle
from mfm_jax.data.clips import DataError
from mfm_jax.data.loader import Element, batches
from mfm_jax.errors import SettingError
from mfm_jax.foley.clips import LICENCE, FeatureRecipe
from mfm_jax.inference.pipeline import Sampling, SoundNetworks, Text, predict_loa, sound_from_loa
from mfm_jax.mapper import GPT2Mapper, Mapper, MapperConfig, Stream, Streams, build_mapper
from mfm_jax.mapper.fusion import stream_of
from mfm_jax.models.audiomae import LOA, pool_loa
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.runtime.sharding import Layout, fetch
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.train.losses import ERRORS, clip_contrast, cosine_distance
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array, Float

SOUNDS = 4
"""Clips that sounds are made of during training."""


def tiny_mapper() -> MapperConfig:
    """Between the tiny encoders: 16 LOA tokens of 160 ms, in standard deviations."""
    return MapperConfig(
        encoders=(("cavp", 32, 64), ("timechat", 16, 96)),
        loa_width=128,
        loa=LOA(grid=(16, 8), pool=(1, 8)),
        gpt2=GPT2Config.tiny(),
        head=True,
    )


@dataclass(frozen=True)
class LOARecipe(FeatureRecipe):
    """What both stages of a mapper's training share; the workdir becomes a bundle with it."""

    bundle: str = str(TINY_BUNDLE)
    clips: str = ""

    @property
    def mapper(self) -> MapperConfig:
        """Of the mapper that is trained."""
        raise NotImplementedError

    @property
    def expects(self) -> dict[str, Any]:
        """Of the tokens: which of TimeChat's, and how AudioMAE's lie."""
        return {"timechat": self.mapper.timechat, "grid": list(self.mapper.loa.grid)}

    def read(self, element: Element) -> Element:
        """The streams that the mapper reads, and the true LOA.

        Raises:
            DataError: the features lack one of them.
        """
        names = [n for s in self.mapper.streams for n in (s, f"{s}_seconds")]
        found, loa = take(element, (*names, "audiomae")), self.mapper.loa
        tokens = jnp.asarray(found.pop("audiomae"), jnp.float32)
        return {**found, "loa": np.asarray(pool_loa(tokens[None], loa.grid, loa.pool)[0])}

    def row(self) -> dict[str, jax.ShapeDtypeStruct]:
        row = {}
        for name, tokens, width in self.mapper.encoders:
            stream = stream_of(name)
            row[stream] = jax.ShapeDtypeStruct((tokens, width), jnp.float16)
            row[f"{stream}_seconds"] = jax.ShapeDtypeStruct((tokens,), jnp.float32)
        loa = self.mapper.loa.tokens, self.mapper.loa_width
        return {**row, "loa": jax.ShapeDtypeStruct(loa, jnp.float32)}

    def streams(self, batch: Batch) -> Streams:
        """What the mapper reads of a batch."""
        return {
            name: Stream(batch[name].astype(jnp.float32), batch[f"{name}_seconds"])
            for name in self.mapper.streams
        }

    def evaluate(self, module: Any, source: Any, batch: int) -> dict[str, float]:
        """LOA errors, free-running, in the units of `standardise`, on held-out clips.

        `loa_error` is the mapper's, `loa_error_mean` that of the mean LOA of these clips at every
        place, `loa_error_shuffled` that of the mapper's LOA of another clip.
        """
        made, true = predictions(self, module, batches(source, batch=batch, seed=0, train=False))
        errors = {
            "loa_error": made,
            "loa_error_mean": np.broadcast_to(true.mean(axis=0, keepdims=True), true.shape),
            "loa_error_shuffled": np.roll(made, 1, axis=0),
        }
        return {name: float(((x - true) ** 2).mean()) for name, x in errors.items()}

    def sounds(self, module: Any, source: Any) -> dict[str, Float[np.ndarray, " A"]]:
        """Of the first clips, as the bundle's settings say, with the same noise every time.

        Raises:
            BundleError: the bundle lacks a network.
            SettingError: its UNet reads LOA of another width.
        """
        bundle = Bundle.open(Path(self.bundle))
        check_width(bundle, self.mapper)
        batch = next(batches(source, batch=SOUNDS, seed=0, train=False))
        waves = fetch(_sound(self, self.sound_networks(module, bundle), batch, bundle.settings))
        return {self.name_of(source, i): wave for i, wave in enumerate(waves)}

    def sound_networks(self, module: Any, bundle: Bundle) -> SoundNetworks:
        """The networks that make sound, of which those that are not trained are the bundle's."""
        unet, vae, vocoder = (on_mesh(bundle, name) for name in ("unet", "vae", "vocoder"))
        with_text = len(bundle.config("unet").contexts) > 1
        return SoundNetworks(
            module, unet, vae, vocoder, on_mesh(bundle, "text") if with_text else None
        )

    def finish(self, module: Any, workdir: Path, command: str) -> Path | None:
        """Make the workdir a bundle: the other networks are those of the recipe's."""
        write_bundle(workdir, self.components(module, command), base=Path(self.bundle))
        return workdir

    def components(self, module: Any, command: str) -> dict[str, Component]:
        """What the bundle gets of the trained network."""
        return {"mapper": Component(self.mapper, module, Source(command, LICENCE))}


@dataclass(frozen=True)
class MapperRecipe(LOARecipe):
    """Stage 1: teacher-forced regression to LOA.

    Trained on true LOA alone, a mapper has never seen its own errors, on which it must go on when
    it generates. `own`, `noise` and `blank` are remedies; all at 0 is none.
    """

    network: MapperConfig = field(default_factory=tiny_mapper)
    error: str = "mse"  # or "l1", as in AudioLDM2's code; the sound is the same (miniature.md)
    cosine: float = 0.0  # weight of one minus the cosine between predicted and true tokens
    contrast: float = 0.1  # weight of telling the clips of a batch apart by their LOA
    temperature: float = 0.1  # of that
    # A component of the bundle whose GPT-2 the mapper starts from: "gpt2", or AudioLDM2's own
    # "sequence". From random weights if empty.
    start: str = ""
    own: float = 0.5  # share of fed LOA tokens that are the mapper's own
    noise: float = 0.0  # largest deviation of noise on the true tokens fed, in those of LOA
    blank: float = 0.0  # share of fed tokens that are zeros in the units of `standardise`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.error not in ERRORS:
            raise SettingError(f"recipe.error is mse or l1, not {self.error!r}")
        if self.start not in ("", "gpt2", "sequence"):
            raise SettingError(f"recipe.start is gpt2, sequence or empty, not {self.start!r}")
        check_shares(self, "own", "blank")

    @property
    def mapper(self) -> MapperConfig:
        return self.network

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return build_mapper(self.network, rngs=rngs)

    def begin(self, module: Mapper, source: Any) -> Mapper:
        """Take over a trained GPT-2; measure the mean and the spread of LOA, if it works in those.

        Raises:
            SettingError: the GPT-2 to start from has other sizes.
        """
        if self.start and isinstance(module, GPT2Mapper):
            module.gpt2 = self._trunk()
        if module.standardised:
            loa = np.stack([source[i]["loa"] for i in range(len(source))])
            module.loa_mean[...] = jnp.asarray(loa.mean(axis=(0, 1)))
            module.loa_std[...] = jnp.asarray(np.maximum(loa.std(axis=(0, 1)), 1e-6))
        return module

    def _trunk(self) -> GPT2:
        bundle = Bundle.open(Path(self.bundle))
        config = bundle.config(self.start)
        sizes = config if self.start == "gpt2" else config.gpt2
        if sizes != self.network.gpt2:
            raise SettingError(
                f"recipe.start: {self.start} is {sizes}, the mapper's is {self.network.gpt2}"
            )
        network = bundle.load(self.start, jnp.float32)
        return network if self.start == "gpt2" else network.gpt2

    def loss(self, module: Mapper, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        streams, loa = self.streams(batch), batch["loa"]
        made = self.predict(module, streams, loa, key)
        predicted, target = made.astype(jnp.float32), module.standardise(loa)
        metrics = {self.error: ERRORS[self.error](predicted, target)}
        total = metrics[self.error]
        if self.cosine:
            metrics["cosine"] = cosine_distance(predicted, target)
            total = total + self.cosine * metrics["cosine"]
        if self.contrast:
            metrics["contrast"] = clip_contrast(made, target, self.temperature)
            total = total + self.contrast * metrics["contrast"]
        return total, metrics

    def predict(
        self, module: Mapper, streams: Streams, loa: Float[Array, "B K D"], key: Array
    ) -> Float[Array, "B K D"]:
        """LOA as the mapper predicts it in training, in the units of `standardise`.

        What it has made of the video serves both passes, where there are two.
        """
        if not isinstance(module, GPT2Mapper):  # reads no LOA
            return module(streams, loa)
        if not self.own:
            return module(streams, self.feed(module, loa, loa, key))
        begun = module.begin(streams)
        own = module.restore(module.follow(begun, loa)).astype(loa.dtype)
        return module.follow(begun, self.feed(module, loa, jax.lax.stop_gradient(own), key))

    def feed(
        self,
        module: GPT2Mapper,
        loa: Float[Array, "B K D"],
        own: Float[Array, "B K D"],
        key: Array,
    ) -> Float[Array, "B K D"]:
        """True LOA as the mapper is fed it in training, in LOA's own units.

        Each clip has a level of noise of its own, drawn from 0 to `noise`. `own` is what the mapper
        makes of the true LOA; tokens from there get no noise.
        """
        level_key, noise_key, blank_key = (jax.random.fold_in(key, i) for i in range(3))
        fed = loa
        if self.noise:
            level = self.noise * jax.random.uniform(level_key, (len(loa), 1, 1))
            spread = module.loa_std[...] if module.standardised else loa.std(axis=(0, 1))
            fed = loa + level * spread[None, None] * jax.random.normal(noise_key, loa.shape)
        if self.own:
            mine = jax.random.uniform(key, (*loa.shape[:2], 1)) < self.own
            # Position k reads vectors before k, so `own` at k is what the mapper would feed on.
            fed = jnp.where(mine, own, fed)
        if self.blank:
            lost = jax.random.uniform(blank_key, (*loa.shape[:2], 1)) < self.blank
            fed = jnp.where(lost, module.restore(jnp.zeros_like(fed)), fed)
        return fed


def take(element: Element, names: Sequence[str]) -> Element:
    """The arrays `names` of an element.

    Raises:
        DataError: it lacks one.
    """
    if missing := [name for name in names if name not in element]:
        raise DataError(
            f"the features have no {', '.join(missing)}: extract them with a bundle that has the "
            "networks for it"
        )
    return {name: element[name] for name in names}


def check_width(bundle: Bundle, mapper: MapperConfig) -> None:
    """Whether the bundle's UNet reads LOA of the mapper's width.

    Raises:
        SettingError: it does not.
    """
    width = bundle.config("unet").contexts[0]
    if width != mapper.loa_width:
        raise SettingError(
            f"recipe.bundle: the UNet of {bundle.path} reads LOA of width {width}, "
            f"the mapper predicts {mapper.loa_width}: give a bundle in which they fit"
        )


def on_mesh(bundle: Bundle, name: str) -> Any:
    """A network of the bundle, whole on every device of the mesh in use."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return bundle.load(name, jnp.float32)
    return bundle.load(name, jnp.float32, sharding=lambda *_: Layout(mesh).whole)


def check_shares(recipe: LOARecipe, *names: str) -> None:
    """Whether these fields lie between 0 and 1.

    Raises:
        SettingError: one does not.
    """
    for name in names:
        if not 0 <= getattr(recipe, name) <= 1:
            raise SettingError(
                f"recipe.{name} is a share from 0 to 1, not {getattr(recipe, name)!r}"
            )


def predictions(
    recipe: LOARecipe, module: Mapper, loader: Iterable[Any]
) -> tuple[Float[np.ndarray, "N K D"], Float[np.ndarray, "N K D"]]:
    """LOA predicted from video alone and true LOA, both in the units of `standardise`."""
    pairs = [fetch(_predict(recipe, module, batch)) for batch in loader]
    made, true = zip(*pairs, strict=True)
    return np.concatenate(made), np.concatenate(true)


@partial(jax.jit, static_argnums=0)
def _predict(recipe: LOARecipe, module: Mapper, batch: Batch) -> tuple[Array, Array]:
    made = module.generate(recipe.streams(batch))
    return module.standardise(made), module.standardise(batch["loa"])


@partial(jax.jit, static_argnums=(0, 3))
def _sound(
    recipe: LOARecipe, networks: SoundNetworks, batch: Batch, settings: Settings
) -> Float[Array, "B A"]:
    loa = predict_loa(networks.mapper, recipe.streams(batch))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(len(loa)))
    text = None
    if networks.text is not None:
        states = networks.text(len(loa))
        text = Text(states, jnp.ones(states.shape[:2], bool))
    sampling = Sampling(settings.sampler, settings.steps, settings.guidance)
    return sound_from_loa(networks, loa, keys, text, text, settings=settings, sampling=sampling)

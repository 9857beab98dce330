"""Stage 1 of the mapper: predict the LOA of a clip's sound from the video encoders' tokens."""

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
from mfm_jax.inference.pipeline import Sampling, SoundNetworks, Text, predict_loa, sound_from_loa
from mfm_jax.mapper import GPT2Mapper, Mapper, MapperConfig, Stream, Streams, build_mapper
from mfm_jax.mapper.fusion import stream_of
from mfm_jax.models.adapters import AdaptedUNet
from mfm_jax.models.gpt2 import GPT2
from mfm_jax.models.streams import networks_of
from mfm_jax.runtime.sharding import Layout, fetch
from mfm_jax.storage.hub import bundle_path
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.train.losses import ERRORS, clip_contrast, cosine_distance
from mfm_jax.train.recipe import check_shares
from mfm_jax.train.recipes.features import FeatureRecipe, text_config
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array, Float

SAMPLES = 4
"""Clips that the network makes sound for during training."""


@dataclass(frozen=True)
class LOARecipe(FeatureRecipe):
    """The base of both stages of a mapper's training; the workdir becomes a bundle."""

    bundle: str = str(TINY_BUNDLE)

    @property
    def mapper(self) -> MapperConfig:
        """The sizes of the mapper that is trained."""
        raise NotImplementedError

    @property
    def encoders(self) -> tuple[tuple[str, int, int], ...]:
        """The streams that are read, and their sizes."""
        return each_stream(self.mapper.encoders)

    @property
    def reads(self) -> tuple[str, ...]:
        return (*(name for name, *_ in self.encoders), "audiomae")

    @property
    def expects(self) -> dict[str, Any]:
        return {"timechat": self.mapper.timechat, "grid": list(self.mapper.loa.grid)}

    def read(self, element: Element) -> Element:
        """Return the streams that are read, and the true LOA.

        Raises:
            DataError: the features lack one of them, or have other widths.
        """
        tokens = np.asarray(take(element, ("audiomae",))["audiomae"], np.float32)
        found = read_streams(element, self.encoders)
        return {**found, "loa": self.mapper.loa.pooled(tokens[None])[0]}

    def element_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        loa = self.mapper.loa.tokens, self.mapper.loa_width
        return {**stream_specs(self.encoders), "loa": jax.ShapeDtypeStruct(loa, jnp.float32)}

    def streams(self, batch: Batch) -> Streams:
        """Return the streams of a batch that the mapper reads."""
        return streams_of(batch, self.mapper.streams)

    def evaluate(self, module: Any, dataset: Any, batch: int) -> dict[str, float]:
        """Return the LOA errors of held-out clips, free-running, in the units of `standardise`.

        `loa_error` is the mapper's, `loa_error_mean` that of the mean LOA of these clips at every
        place, `loa_error_shuffled` that of the mapper's LOA of another clip.
        """
        made, true = predictions(self, module, batches(dataset, batch=batch, seed=0, train=False))
        errors = {
            "loa_error": made,
            "loa_error_mean": np.broadcast_to(true.mean(axis=0, keepdims=True), true.shape),
            "loa_error_shuffled": np.roll(made, 1, axis=0),
        }
        return {name: float(((x - true) ** 2).mean()) for name, x in errors.items()}

    def sounds(self, module: Any, dataset: Any) -> dict[str, Float[np.ndarray, " A"]]:
        """Return the sound of the first clips, with the bundle's settings and the same noise.

        An adapter of the bundle's UNet is not heard in stage 1, which may read other streams.

        Raises:
            BundleError: the bundle lacks a network.
            SettingError: its UNet reads LOA of another width.
        """
        bundle = Bundle.open(bundle_path(self.bundle))
        check_width(bundle, self.mapper)
        batch = next(batches(dataset, batch=SAMPLES, seed=0, train=False))
        waves = fetch(_sound(self, self.sound_networks(module, bundle), batch, bundle.settings))
        return {dataset.id_of(i): wave for i, wave in enumerate(waves)}

    def sound_networks(self, module: Any, bundle: Bundle) -> SoundNetworks:
        """Return the networks that make sound: the trained one, and the others from the bundle."""
        unet, vae, vocoder = (on_mesh(bundle, name) for name in ("unet", "vae", "vocoder"))
        text = None if text_config(bundle) is None else on_mesh(bundle, "text")
        return SoundNetworks(module, unet, vae, vocoder, text)

    def finish(self, module: Any, workdir: Path, command: str) -> Path | None:
        """Make the workdir a bundle; its other networks come from the recipe's bundle."""
        write_bundle(workdir, self.components(module, command), base=bundle_path(self.bundle))
        return workdir

    def components(self, module: Any, command: str) -> dict[str, Component]:
        """Return what the bundle gets of the trained network."""
        components = ("audiomae", *networks_of(self.mapper.streams))
        source = self.provenance(command, components, Bundle.open(bundle_path(self.bundle)))
        return {"mapper": Component(self.mapper, module, source)}


@dataclass(frozen=True)
class MapperRecipe(LOARecipe):
    """Teacher-forced regression to LOA.

    A mapper trained on true LOA alone has never seen its own errors, and must go on from them when
    it generates. `scheduled_sampling`, `noise_std` and `token_dropout` are remedies; 0 turns each
    off.
    """

    network: MapperConfig = field(default_factory=MapperConfig.tiny)
    error: str = "mse"  # or "l1", as in AudioLDM2's code; the sound is the same (miniature.md)
    cosine_weight: float = 0.0  # of one minus the cosine between predicted and true tokens
    contrast_weight: float = 0.1  # of telling the clips of a batch apart by their LOA
    temperature: float = 0.1  # of that contrast
    # A component of the bundle whose GPT-2 the mapper starts from: "gpt2", or AudioLDM2's own
    # "sequence". Empty: random weights.
    init_from: str = ""
    scheduled_sampling: float = 0.5  # share of fed LOA tokens that the mapper itself predicted
    noise_std: float = 0.0  # largest deviation of noise on the true tokens fed, in those of LOA
    token_dropout: float = 0.0  # share of fed tokens that are zeros in the units of `standardise`

    def __post_init__(self) -> None:
        if self.error not in ERRORS:
            raise SettingError(f"recipe.error is mse or l1, not {self.error!r}")
        if self.init_from not in ("", "gpt2", "sequence"):
            raise SettingError(
                f"recipe.init_from is gpt2, sequence or empty, not {self.init_from!r}"
            )
        check_shares(self, "scheduled_sampling", "token_dropout")

    @property
    def mapper(self) -> MapperConfig:
        return self.network

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return build_mapper(self.network, rngs=rngs)

    def provenance(self, command: str, components: Sequence[str], bundle: Bundle | None) -> Source:
        started = (self.init_from,) if self.init_from else ()
        return super().provenance(command, (*components, *started), bundle)

    def warm_start(self, module: Mapper, dataset: Any) -> Mapper:
        """Take over a trained GPT-2, and measure the mean and spread of LOA if LOA is standardised.

        Raises:
            SettingError: the GPT-2 to start from has other sizes.
        """
        if self.init_from and isinstance(module, GPT2Mapper):
            module.gpt2 = self._pretrained_gpt2()
        if module.standardised:
            loa = np.stack([dataset[i]["loa"] for i in range(len(dataset))])
            module.loa_mean[...] = jnp.asarray(loa.mean(axis=(0, 1)))
            module.loa_std[...] = jnp.asarray(np.maximum(loa.std(axis=(0, 1)), 1e-6))
        return module

    def _pretrained_gpt2(self) -> GPT2:
        bundle = Bundle.open(bundle_path(self.bundle))
        config = bundle.config(self.init_from)
        sizes = config if self.init_from == "gpt2" else config.gpt2
        if sizes != self.network.gpt2:
            raise SettingError(
                f"recipe.init_from: {self.init_from} is {sizes}, "
                f"the mapper's is {self.network.gpt2}"
            )
        network = bundle.load(self.init_from, jnp.float32)
        return network if self.init_from == "gpt2" else network.gpt2

    def loss(self, module: Mapper, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        streams, loa = self.streams(batch), batch["loa"]
        made = self.predict(module, streams, loa, key)
        predicted, target = made.astype(jnp.float32), module.standardise(loa)
        metrics = {self.error: ERRORS[self.error](predicted, target)}
        total = metrics[self.error]
        if self.cosine_weight:
            metrics["cosine"] = cosine_distance(predicted, target)
            total = total + self.cosine_weight * metrics["cosine"]
        if self.contrast_weight:
            metrics["contrast"] = clip_contrast(made, target, self.temperature)
            total = total + self.contrast_weight * metrics["contrast"]
        return total, metrics

    def predict(
        self, module: Mapper, streams: Streams, loa: Float[Array, "B L E"], key: Array
    ) -> Float[Array, "B L E"]:
        """Return LOA as the mapper predicts it in training, in the units of `standardise`.

        With scheduled sampling there are two passes, which share the prefix of the video.
        """
        if not isinstance(module, GPT2Mapper):  # reads no LOA
            return module(streams, loa)
        if not self.scheduled_sampling:
            return module(streams, self.feed(module, loa, loa, key))
        prefix = module.prefill(streams)
        own = module.restore(module.teacher_force(prefix, loa)).astype(loa.dtype)
        return module.teacher_force(prefix, self.feed(module, loa, jax.lax.stop_gradient(own), key))

    def feed(
        self,
        module: GPT2Mapper,
        loa: Float[Array, "B L E"],
        own: Float[Array, "B L E"],
        key: Array,
    ) -> Float[Array, "B L E"]:
        """Return LOA as the mapper is fed it in training, in LOA's own units.

        The level of noise is drawn for each clip, from 0 to `noise_std`. `own` is what the mapper
        predicts from the true LOA; tokens taken from there get no noise.
        """
        level_key, noise_key, blank_key = (jax.random.fold_in(key, i) for i in range(3))
        fed = loa
        if self.noise_std:
            level = self.noise_std * jax.random.uniform(level_key, (len(loa), 1, 1))
            spread = module.loa_std[...] if module.standardised else loa.std(axis=(0, 1))
            fed = loa + level * spread[None, None] * jax.random.normal(noise_key, loa.shape)
        if self.scheduled_sampling:
            mine = jax.random.uniform(key, (*loa.shape[:2], 1)) < self.scheduled_sampling
            # Position k reads vectors before k, so `own` at k is what the mapper would feed on.
            fed = jnp.where(mine, own, fed)
        if self.token_dropout:
            lost = jax.random.uniform(blank_key, (*loa.shape[:2], 1)) < self.token_dropout
            fed = jnp.where(lost, module.restore(jnp.zeros_like(fed)), fed)
        return fed


def each_stream(
    encoders: Sequence[tuple[str, int, int]],
) -> tuple[tuple[str, int, int], ...]:
    """Return each stream once; a mapper may read one twice ("cavp", "cavp:2")."""
    known = {stream_of(name): (tokens, width) for name, tokens, width in encoders}
    return tuple((name, *sizes) for name, sizes in known.items())


def read_streams(element: Element, encoders: Sequence[tuple[str, int, int]]) -> Element:
    """Return the tokens of streams, and their times.

    Raises:
        DataError: the features lack one, or have other widths.
    """
    found = take(element, [n for name, *_ in encoders for n in (name, f"{name}_seconds")])
    for name, _, width in encoders:
        if (there := found[name].shape[-1]) != width:
            raise DataError(
                f"the features have {name} of width {there}, the network reads {width}: set the "
                "encoders of its config to what there is"
            )
    return found


def stream_specs(
    encoders: Sequence[tuple[str, int, int]],
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of what `read_streams` returns."""
    spec = {}
    for name, tokens, width in encoders:
        spec[name] = jax.ShapeDtypeStruct((tokens, width), jnp.float16)
        spec[f"{name}_seconds"] = jax.ShapeDtypeStruct((tokens,), jnp.float32)
    return spec


def streams_of(batch: Batch, names: Iterable[str]) -> Streams:
    """Return streams of a batch."""
    return {
        name: Stream(batch[name].astype(jnp.float32), batch[f"{name}_seconds"]) for name in names
    }


def take(element: Element, names: Sequence[str]) -> Element:
    """Return the arrays `names` of an element.

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
    """Check that the bundle's UNet reads LOA of the mapper's width.

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
    """Load a network of the bundle onto every device of the mesh in use."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return bundle.load(name, jnp.float32)
    return bundle.load(name, jnp.float32, sharding=lambda *_: Layout(mesh).replicated)


def predictions(
    recipe: LOARecipe, module: Mapper, loader: Iterable[Any]
) -> tuple[Float[np.ndarray, "N K D"], Float[np.ndarray, "N K D"]]:
    """Return LOA predicted from video alone and true LOA, in the units of `standardise`."""
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
    unet, video = networks.unet, None
    if isinstance(unet, AdaptedUNet):
        video = streams_of(batch, unet.adapter.config.streams)
    return sound_from_loa(
        networks, loa, keys, text, text, None, video, settings=settings, sampling=sampling
    )

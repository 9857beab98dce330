"""Synchformer's two stages: towers that match segments, then the offset between sound and picture.

In the first one, Segment AVCLIP, a segment of video is drawn to its own sound, away from those of
all other segments in the batch. In the second one the sound is cut out earlier or later than the
picture, and the sync transformer says by how much. Both parts lie within the clip, so that no
padding gives the offset away (v-iashin/Synchformer: `open_clip/model.py` AVCLIP, and
`dataset/transforms.py` TemporalCropAndOffset).
"""

from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from einops import rearrange, reduce
from flax import nnx
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.data.decoded import ClipSpec, SynchformerSpec, to_float
from mfm_jax.data.loader import Element
from mfm_jax.data.sources import Split
from mfm_jax.errors import SettingError
from mfm_jax.media.audio import RATE, synchformer_mel
from mfm_jax.media.segments import segment_samples, segments
from mfm_jax.models.synchformer import AudioTower, Synchformer, SynchformerConfig, VideoTower
from mfm_jax.models.synchformer_video import normalise
from mfm_jax.models.timechat import PIXEL_MEAN, PIXEL_STD
from mfm_jax.runtime.config import later
from mfm_jax.storage.weights import abstract, named_weights, with_weights
from mfm_jax.train.contrastive import clamp_logit_scale, clip_loss
from mfm_jax.train.inflate import check_sizes, inflated
from mfm_jax.train.recipes.decoded import BundleRecipe
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array, Float, Int

OVERLAPPING, APART = 1, 2
"""Steps between segments in halves of one."""


@dataclass(frozen=True)
class SynchformerRecipe(BundleRecipe):
    """The base of both stages: the clips, and how picture and sound are cut out of them."""

    network: SynchformerConfig = field(default_factory=SynchformerConfig.tiny)
    seconds: float = ClipSpec.tiny().seconds  # of each clip; shorter clips are left out
    jitter: float = 0.05  # seconds, by which a sound is at most earlier or later than it should be
    gain: float = 2.0  # the most by which a sound is made louder or softer

    def prepare(self, workdir: Path) -> Split:
        height, width = self.network.video.image
        spec = SynchformerSpec(self.seconds, self.network.fps, height, width)
        return self.decoded(spec, workdir, "synchformer")

    def read(self, element: Element) -> Element:
        return {"frames": element["synchformer"], "wave": element["wave"]}

    def element_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of what `transform` makes of a clip."""
        frames = int(self.seconds * self.network.fps + 1e-9), *self.network.video.image, 3
        empty = np.zeros(frames, np.uint8), np.zeros(round(self.seconds * RATE), np.int16)
        read = dict(zip(("frames", "wave"), empty, strict=True))
        made = self.transform(read, np.random.default_rng(0))
        return {n: jax.ShapeDtypeStruct(np.shape(x), x.dtype) for n, x in made.items()}

    @property
    def room(self) -> int:
        """Frames of a clip beyond those that are cut out of it."""
        return int(self.seconds * self.network.fps + 1e-9) - self.cut_frames

    @property
    def cut_frames(self) -> int:
        """Frames that are cut out of a clip."""
        raise NotImplementedError

    def cut(
        self, element: Element, first: int, offset: float, step: int, gain: float = 1.0
    ) -> Element:
        """Cut frames out of a clip, and the log-mels of the sound that lies `offset` later.

        Args:
            first: the first frame.
            offset: in seconds.
            step: halves of a segment from one segment to the next.
            gain: factor on the sound.
        """
        fps, size = self.network.fps, segment_samples(self.network.video.frames, self.network.fps)
        count = round(self.cut_frames / fps * RATE)
        most = len(element["wave"]) - count
        start = min(max(round((first / fps + offset) * RATE), 0), most)
        wave = gain * to_float(element["wave"][start : start + count])
        columns = self.network.audio.columns
        mel = [synchformer_mel(piece, columns) for piece in segments(wave, size)[::step]]
        return {
            "frames": element["frames"][first : first + self.cut_frames],
            "mel": np.stack(mel).astype(np.float16),
        }

    def augmented(
        self, element: Element, first: int, offset: float, step: int, rng: np.random.Generator
    ) -> Element:
        """Return `cut` with a jitter and a gain of the sound, and half the pictures mirrored."""
        jitter = rng.uniform(-self.jitter, self.jitter)
        gain = float(np.exp(rng.uniform(-1, 1) * np.log(self.gain)))
        cut = self.cut(element, first, offset + jitter, step, gain)
        mirrored = cut["frames"][:, :, ::-1] if rng.random() < 0.5 else cut["frames"]
        return {**cut, "frames": mirrored}

    def pictures(self, frames: Array, step: int) -> Float[Array, "B S T H W 3"]:
        """Return the segments of a batch of frames, as the video tower reads them."""
        cut = jax.vmap(partial(segments, length=self.network.video.frames))(frames)
        return normalise(jnp.asarray(cut)[:, ::step])


class Towers(nnx.Module):
    """Both towers, and the factor on the products of what they say of a segment."""

    def __init__(self, config: SynchformerConfig, *, rngs: nnx.Rngs) -> None:
        self.video = VideoTower(config.video, rngs=rngs)
        self.audio = AudioTower(config.audio, rngs=rngs)
        self.logit_scale = nnx.Param(jnp.asarray(np.log(1 / 0.07), jnp.float32), axes=())

    def __call__(
        self, frames: Float[Array, "B S T H W 3"], mel: Float[Array, "B S T2 M"]
    ) -> tuple[Float[Array, "N D"], Float[Array, "N D"], Float[Array, ""]]:
        """Return a unit vector for each segment of video and of sound, and the factor."""
        video = self.video(rearrange(frames, "b s t h w c -> (b s) t h w c"))
        audio = self.audio(rearrange(mel, "b s t m -> (b s) t m"))
        scale = jnp.exp(clamp_logit_scale(self.logit_scale[...]))
        return unit_mean(video), unit_mean(audio), scale


def unit_mean(vectors: Float[Array, "N T D"]) -> Float[Array, "N D"]:
    """Return the direction of the mean over time, in float32."""
    mean = reduce(vectors.astype(jnp.float32), "n t d -> n d", "mean")
    return mean * jax.lax.rsqrt((mean**2).sum(axis=-1, keepdims=True) + 1e-12)


@dataclass(frozen=True)
class SegmentsRecipe(SynchformerRecipe):
    """Contrastive training of the towers: the first stage.

    The bundle's sync transformer is not a number until it is trained, so that DeSync refuses it.
    """

    segments: int = 3  # of a clip, without overlap, from a random moment on
    init_from: str = later("")  # timechat: the tower starts as its vision transformer

    def __post_init__(self) -> None:
        if self.init_from not in ("", "timechat"):
            raise SettingError(f"recipe.init_from is timechat or empty, not {self.init_from!r}")
        if self.room < 0:
            raise SettingError(
                f"recipe.segments: {self.segments} segments are longer than recipe.seconds, "
                f"{self.seconds:g}"
            )

    @property
    def cut_frames(self) -> int:
        return self.segments * self.network.video.frames

    def transform(self, element: Element, rng: np.random.Generator) -> Element:
        return self.augmented(element, int(rng.integers(self.room + 1)), 0.0, APART, rng)

    def eval_transform(self, element: Element, rng: np.random.Generator) -> Element:
        """Return the segments in the middle."""
        return self.cut(element, self.room // 2, 0.0, APART)

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return Towers(self.network, rngs=rngs)

    def check(self, workdir: Path) -> None:
        super().check(workdir)
        if self.init_from:
            its = Bundle.open(self.bundle_path(workdir)).config(self.init_from)
            try:
                check_sizes(self.network.video, its.vit)
            except ValueError as error:
                raise SettingError(f"recipe.init_from: {error}") from None

    def warm_start(self, module: Towers, dataset: Any) -> Towers:
        """Take over the vision transformer of the bundle's TimeChat, if `init_from` says so."""
        if self.init_from:
            its = Bundle.open(self.bundle_path(Path())).load(self.init_from, jnp.float32)
            module.video = inflated(module.video, its.vit, PIXEL_MEAN, PIXEL_STD)
        return module

    def loss(self, module: Towers, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        video, audio, scale = module(
            self.pictures(batch["frames"], APART), batch["mel"].astype(jnp.float32)
        )
        value = clip_loss(video, audio, scale)
        chance = jnp.asarray(1 / len(video))
        return value, {"hits": retrieved(video, audio), "hits_chance": chance, "scale": scale}

    def finish(self, module: Towers, workdir: Path, command: str) -> Path:
        whole = with_towers(self.network, named_weights(module))
        started = (self.init_from,) if self.init_from else ()
        return self.write_component(
            "synchformer", self.network, whole, workdir, command, trained_with=started
        ).path


def retrieved(video: Float[Array, "N D"], audio: Float[Array, "N D"]) -> Float[Array, ""]:
    """Return the share of segments that are nearest to their own counterpart, of both ways."""
    products, own = video @ audio.T, jnp.arange(len(video))
    hits = [products.argmax(axis=axis) == own for axis in (0, 1)]
    return jnp.stack(hits).astype(jnp.float32).mean()


def with_towers(config: SynchformerConfig, towers: dict[str, Any]) -> Synchformer:
    """Return a Synchformer with these towers, whose other weights are no numbers."""
    network = abstract(partial(Synchformer, config))
    weights = {
        name: towers.get(name, jnp.full(leaf.shape, jnp.nan, leaf.dtype))
        for name, leaf in named_weights(network).items()
    }
    return with_weights(network, weights)


@dataclass(frozen=True)
class OffsetsRecipe(SynchformerRecipe):
    """Training of the sync transformer on the bundle's towers: the second stage.

    The optimizer's `lr_multipliers` freeze the towers (`ONLY_SYNC`), as the original does.
    """

    bundle: str = "runs/tiny/bundle"

    loaded = ("video.*", "audio.*")

    def __post_init__(self) -> None:
        if self.room < round(self.network.sync.largest * self.network.fps):
            need = self.cut_frames / self.network.fps + self.network.sync.largest
            raise SettingError(
                f"recipe.seconds: offsets of up to {self.network.sync.largest:g} s between "
                f"{self.network.sync.segments} segments need clips of {need:g} s, not "
                f"{self.seconds:g}"
            )

    @cached_property
    def _bundle(self) -> Bundle:
        return Bundle.open(self.bundle_path(Path()))

    def check(self, workdir: Path) -> None:
        super().check(workdir)
        found, wanted = self._bundle.config("synchformer"), self.network
        if (found.video, found.audio, found.fps) != (wanted.video, wanted.audio, wanted.fps):
            raise SettingError(
                f"recipe.network has other towers than bundle {self.bundle}: make them the same, "
                "or train its segments first"
            )

    @property
    def cut_frames(self) -> int:
        return self.network.video.frames * (self.network.sync.segments + 1) // 2

    def shifted(self, rng: np.random.Generator) -> tuple[int, int, float]:
        """Draw a class, the first frame and the offset of the sound in seconds.

        Both parts lie within the clip, as in the original.
        """
        offsets = self.network.sync.seconds()
        label = int(rng.integers(len(offsets)))
        offset = float(offsets[label])
        early, late = (max(0.0, sign * offset) * self.network.fps for sign in (-1, 1))
        first = int(rng.integers(np.ceil(early - 1e-4), self.room - np.ceil(late - 1e-4) + 1))
        return label, first, offset

    def transform(self, element: Element, rng: np.random.Generator) -> Element:
        label, first, offset = self.shifted(rng)
        cut = self.augmented(element, first, offset, OVERLAPPING, rng)
        return {**cut, "label": np.int32(label)}

    def eval_transform(self, element: Element, rng: np.random.Generator) -> Element:
        """Return an element with an offset that is the same in every evaluation."""
        label, first, offset = self.shifted(rng)
        return {**self.cut(element, first, offset, OVERLAPPING), "label": np.int32(label)}

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return Synchformer(self.network, rngs=rngs)

    def warm_start(self, module: Synchformer, dataset: Any) -> Synchformer:
        """Take over the bundle's towers."""
        found = self._bundle.load("synchformer", jnp.float32)
        module.video, module.audio = found.video, found.audio
        return module

    def loss(self, module: Synchformer, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        frames = self.pictures(batch["frames"], OVERLAPPING)
        logits = module(frames, batch["mel"].astype(jnp.float32)).astype(jnp.float32)
        value = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return value, accuracies(logits, batch["label"])

    def finish(self, module: Synchformer, workdir: Path, command: str) -> Path:
        return self.write_component(
            "synchformer", self.network, module, workdir, command, trained_with=("synchformer",)
        ).path


ONLY_SYNC: tuple[tuple[str, float | None], ...] = (("sync.*", 1.0), ("*", None))
"""`OptimizerConfig.lr_multipliers` of the second stage."""


def accuracies(logits: Float[Array, "B V"], label: Int[Array, " B"]) -> dict[str, Array]:
    """Return the shares of right classes, and of those at most one class off, beside chance."""
    count = logits.shape[1]
    off = jnp.abs(logits.argmax(axis=1) - label)
    return {
        "accuracy": (off == 0).mean(),
        "accuracy_chance": jnp.asarray(1 / count),
        "within_one": (off <= 1).mean(),
        "within_one_chance": jnp.asarray((3 * count - 2) / count**2),
    }

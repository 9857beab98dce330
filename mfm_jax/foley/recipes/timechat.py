"""TimeChat's visual branch learns to tell material, kind of motion and times of contact."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from mfm_jax.data.loader import Element
from mfm_jax.foley.recipes.labelled import LabelledRecipe
from mfm_jax.foley.world import KINDS, MATERIALS
from mfm_jax.layers import linear
from mfm_jax.models.timechat import TimeChat, TimeChatConfig, normalise
from mfm_jax.text.timestamps import timestamp_sentences
from mfm_jax.text.wordpiece import encode
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array, Float


class Heads(nnx.Module):
    """Linear classifiers of tokens: materials and motions of the bodies, and contacts."""

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.materials = linear(width, len(MATERIALS), ("embed", None), rngs=rngs)
        self.kinds = linear(width, len(KINDS), ("embed", None), rngs=rngs)
        self.contact = linear(width, 1, ("embed", None), rngs=rngs)

    def ask(
        self, tokens: Float[Array, "B S D"], contacts: Float[Array, "B S"], batch: Batch
    ) -> tuple[Array, dict[str, Array]]:
        """Return the loss and metrics.

        Materials and motions are read from the mean token, a contact from the token of its piece.
        """
        mean = tokens.mean(axis=1)
        materials, named = classify(self.materials(mean), batch["materials"])
        kinds, told = classify(self.kinds(mean), batch["kinds"])
        logits = self.contact(tokens)[..., 0]
        contact = (jax.nn.softplus(logits) - contacts * logits).mean()
        metrics = {"materials": named, "kinds": told, "contact": contact}
        return materials + kinds + 4.0 * contact, metrics


class Classifier(nnx.Module):
    """TimeChat's visual branch with heads on the tokens of both stages, which are not kept."""

    def __init__(self, config: TimeChatConfig, *, rngs: nnx.Rngs) -> None:
        self.timechat = TimeChat(config, rngs=rngs)
        self.frame = Heads(config.image_qformer.width, rngs=rngs)
        self.video = Heads(config.video_qformer.width, rngs=rngs)


@dataclass(frozen=True)
class TimeChatRecipe(LabelledRecipe):
    """Cross-entropies of the labels that the Foley world writes beside its clips.

    Both stages have a loss: the queries of each frame, as BLIP-2 trains them on single images, and
    the video tokens, each of which is responsible for its own piece of the clip.
    """

    network: TimeChatConfig = field(default_factory=TimeChatConfig.tiny)
    brightness: float = 0.1  # largest change of a clip's brightness in training, as a share

    @cached_property
    def sentence(self) -> int:
        """Tokens of a timestamp sentence, padding included."""
        tenths = timestamp_sentences(np.arange(0, self.spec.seconds + 0.1, 0.1))
        return encode(tenths, self.network.vocabulary)[0].shape[1]

    @property
    def pieces(self) -> int:
        """Number of video tokens of a clip, and of the pieces that they are responsible for."""
        config = self.network
        return len(config.windows(config.frames)) * config.video_qformer.queries

    def read(self, element: Element) -> Element:
        sentences = timestamp_sentences(element["timechat_seconds"].tolist())
        ids, mask = encode(sentences, self.network.vocabulary, length=self.sentence)
        onsets = element["onsets"][element["onsets"] >= 0]
        pieces = np.zeros(self.pieces, np.float32)
        pieces[
            np.minimum((onsets * len(pieces) / self.spec.seconds).astype(int), len(pieces) - 1)
        ] = 1
        # A contact belongs to the frame that is nearest to it.
        frames = np.zeros(len(sentences), np.float32)
        frames[np.abs(onsets[:, None] - element["timechat_seconds"]).argmin(axis=1)] = 1
        return {
            "frames": element["timechat"],
            "ids": ids.astype(np.int32),
            "mask": mask,
            "materials": element["materials"],
            "kinds": element["kinds"],
            "in_frames": frames,
            "in_pieces": pieces,
        }

    def transform(self, element: Element, rng: np.random.Generator) -> Element:
        """Mirror half the clips, and change the brightness a little."""
        frames = element["frames"]
        frames = frames[:, :, ::-1] if rng.random() < 0.5 else frames
        factor = np.float32(1 + self.brightness * rng.uniform(-1, 1))
        frames = np.clip(frames * factor, 0, 255).astype(np.uint8)
        return {**element, "frames": frames}

    def eval_transform(self, element: Element, rng: np.random.Generator) -> Element:
        return element

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return Classifier(self.network, rngs=rngs)

    def loss(self, module: Classifier, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        tokens = module.timechat.encode(normalise(batch["frames"]), batch["ids"], batch["mask"])
        queries = tokens.frames[:, :, : self.network.image_qformer.queries].mean(axis=2)
        frame, of_frame = module.frame.ask(queries, batch["in_frames"], batch)
        video, of_video = module.video.ask(tokens.video, batch["in_pieces"], batch)
        metrics = {f"frame_{name}": value for name, value in of_frame.items()}
        return frame + video, metrics | {f"video_{name}": v for name, v in of_video.items()}

    def finish(self, module: Classifier, workdir: Path, command: str) -> Path:
        return self.write_component(
            "timechat", self.network, module.timechat, workdir, command
        ).path


def classify(
    logits: Float[Array, "B V"], present: Float[Array, "B V"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return the cross-entropy to equal shares of the classes that are present, and the hit rate.

    Clips with no class present are ignored.
    """
    count = present.sum(axis=1)
    known = count > 0
    share = present / jnp.maximum(count, 1)[:, None]
    error = -(share * jax.nn.log_softmax(logits)).sum(axis=1)
    hits = jnp.take_along_axis(present, logits.argmax(axis=1)[:, None], axis=1)[:, 0]
    total = jnp.maximum(known.sum(), 1).astype(logits.dtype)
    return error.sum(where=known) / total, hits.sum() / total

"""TimeChat's visual branch on the Foley world: tell material, kind and times of contact."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from mfm_jax.data.foley_world import KINDS, MATERIALS
from mfm_jax.data.loader import Element
from mfm_jax.layers import linear
from mfm_jax.models.timechat import TimeChat, TimeChatConfig, normalise
from mfm_jax.train.foley import SPEC, MediaRecipe
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array, Float, Int
from mfm_jax.windows import timestamp_sentences
from mfm_jax.wordpiece import encode

BINS = 16
"""Pieces of a clip in which there is a contact or none."""


class Classifier(nnx.Module):
    """The branch that is kept, and heads on the mean of its video tokens that are not."""

    def __init__(self, config: TimeChatConfig, *, rngs: nnx.Rngs) -> None:
        d = config.video_qformer.d
        self.timechat = TimeChat(config, rngs=rngs)
        self.material = linear(d, len(MATERIALS), ("embed", None), rngs=rngs)
        self.kind = linear(d, len(KINDS), ("embed", None), rngs=rngs)
        self.bins = linear(d, BINS, ("embed", None), rngs=rngs)


@dataclass(frozen=True)
class TimeChatRecipe(MediaRecipe):
    """Cross-entropies of the labels that the Foley world writes beside its clips."""

    network: TimeChatConfig = field(default_factory=TimeChatConfig.tiny)
    brightness: float = 0.1  # largest change of a clip's brightness in training, as a share

    @cached_property
    def sentence(self) -> int:
        """Tokens of a timestamp sentence, padding included."""
        tenths = timestamp_sentences(np.arange(0, SPEC.seconds + 0.1, 0.1))
        return encode(tenths, self.network.vocabulary)[0].shape[1]

    def read(self, element: Element) -> Element:
        sentences = timestamp_sentences(element["timechat_seconds"])
        ids, mask = encode(sentences, self.network.vocabulary, length=self.sentence)
        onsets = element["onsets"]
        bins = np.zeros(BINS, np.float32)
        bins[np.minimum((onsets[onsets >= 0] * BINS / SPEC.seconds).astype(int), BINS - 1)] = 1
        return {
            "frames": element["timechat"],
            "ids": ids.astype(np.int32),
            "mask": mask,
            "material": element["material"],
            "kind": element["kind"],
            "bins": bins,
        }

    def transform(self, element: Element, rng: np.random.Generator) -> Element:
        """Mirror half the clips, and change the brightness a little."""
        frames = element["frames"]
        frames = frames[:, :, ::-1] if rng.random() < 0.5 else frames
        factor = np.float32(1 + self.brightness * rng.uniform(-1, 1))
        frames = np.clip(frames * factor, 0, 255).astype(np.uint8)
        return {**element, "frames": frames}

    def still(self, element: Element, rng: np.random.Generator) -> Element:
        return element

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return Classifier(self.network, rngs=rngs)

    def loss(self, module: Classifier, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        tokens = module.timechat.encode(normalise(batch["frames"]), batch["ids"], batch["mask"])
        mean = tokens.video.mean(axis=1)
        material, hits = classify(module.material(mean), batch["material"])
        kind, kind_hits = classify(module.kind(mean), batch["kind"])
        logits = module.bins(mean)
        bins = (jax.nn.softplus(logits) - batch["bins"] * logits).mean()
        metrics = {"material": hits, "kind": kind_hits, "bins": bins}
        return material + kind + 4.0 * bins, metrics

    def finish(self, module: Classifier, workdir: Path, command: str) -> None:
        self.put("timechat", self.network, module.timechat, command)


def classify(
    logits: Float[Array, "B V"], labels: Int[Array, " B"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy and share of right answers; a label of -1 counts for nothing."""
    known = labels >= 0
    count = jnp.maximum(known.sum(), 1).astype(logits.dtype)
    chances = jax.nn.log_softmax(logits)[jnp.arange(len(labels)), jnp.maximum(labels, 0)]
    hits = (logits.argmax(axis=1) == labels) & known
    return -jnp.sum(chances, where=known) / count, hits.sum() / count

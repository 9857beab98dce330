"""CAVP: moments of video and of sound that belong together are drawn together."""

from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import jax
import numpy as np
from einops import rearrange
from flax import nnx
from jax import numpy as jnp

from mfm_jax.data.decoded import to_float
from mfm_jax.data.loader import Element
from mfm_jax.errors import SettingError
from mfm_jax.media.audio import cavp_mel
from mfm_jax.models.cavp import CAVP, CAVPConfig
from mfm_jax.train.contrastive import temporal_semantic
from mfm_jax.train.recipes.decoded import DecodedRecipe
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array, Float


@dataclass(frozen=True)
class CAVPRecipe(DecodedRecipe):
    """Contrastive training of both towers, which become two components of the bundle."""

    network: CAVPConfig = field(default_factory=CAVPConfig.tiny)
    objective: str = "moments"  # each moment against all of the batch; or the paper's "clips"
    silence_weight: float = 0.15  # of a silent moment; the loudest of a clip has 1 more

    def __post_init__(self) -> None:
        if self.objective not in ("moments", "clips"):
            raise SettingError(f"recipe.objective is moments or clips, not {self.objective!r}")

    def read(self, element: Element) -> Element:
        mel = cavp_mel(to_float(element["wave"]), self.network.hop)
        # A window need not be a whole number of frames long.
        columns = prod(pool[0] for pool in self.network.audio.pools)
        mel = mel[:, : len(element["cavp"]) * columns]
        return {"frames": element["cavp"], "mel": mel.astype(np.float16)}

    def transform(self, element: Element, rng: np.random.Generator) -> Element:
        """Mirror half the clips: their sound is the same."""
        frames = element["frames"]
        return {**element, "frames": frames[:, :, ::-1] if rng.random() < 0.5 else frames}

    def eval_transform(self, element: Element, rng: np.random.Generator) -> Element:
        return element

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return CAVP(self.network, rngs=rngs)

    def loss(self, module: CAVP, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        frames, mel = batch["frames"].astype(jnp.float32) / 255.0, batch["mel"].astype(jnp.float32)
        rngs = nnx.Rngs(key)
        video, audio, scale = module(frames, mel, pool=False, rngs=rngs)
        if self.objective == "clips":
            pooled = module(frames, mel, pool=True, rngs=rngs)
            parts = temporal_semantic(*pooled[:2], video, audio, scale)
            return parts.total, {"across": parts.across, "within": parts.within, "scale": scale}
        weights = self.silence_weight + loudness(mel, audio.shape[1])
        value, hits = moments(video, audio, scale, weights)
        return value, {"hits": hits, "scale": scale}

    def finish(self, module: CAVP, workdir: Path, command: str) -> Path:
        towers = {"cavp": module.video, "cavp_audio": module.audio}
        networks = {name: (self.network, tower) for name, tower in towers.items()}
        return self.write_components(networks, workdir, command).path


def loudness(mel: Float[Array, "B M T"], steps: int) -> Float[Array, "B {steps}"]:
    """Return the loudness of each moment, from 0 at a clip's quietest to 1 at its loudest."""
    level = rearrange(mel, "b m (t k) -> b t (k m)", t=steps).mean(axis=-1)
    low, high = level.min(axis=1, keepdims=True), level.max(axis=1, keepdims=True)
    return (level - low) / jnp.maximum(high - low, 1e-3)


def moments(
    video: Float[Array, "B T D"],
    audio: Float[Array, "B T D"],
    scale: Float[Array, ""],
    weights: Float[Array, "B T"],
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Return InfoNCE over all moments of the batch, both ways, and the weighted share of hits."""
    video, audio = (rearrange(x, "b t d -> (b t) d") for x in (video, audio))
    share = weights.reshape(-1) / weights.sum()
    logits = scale * video @ audio.T
    ways = [jax.nn.log_softmax(logits, axis=axis) for axis in (0, 1)]
    value = -sum(share @ jnp.diagonal(way) for way in ways) / 2
    hits = share @ (logits.argmax(axis=1) == jnp.arange(len(logits))).astype(jnp.float32)
    return value, hits

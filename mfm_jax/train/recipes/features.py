"""Recipes that learn from the features that a bundle's encoders compute of each clip."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mfm_jax.bundle import Bundle
from mfm_jax.data.clips import Clip
from mfm_jax.data.features import DESCRIPTION, FeatureSource, begun_with, bundled, check
from mfm_jax.data.records import Failure, check_same, read_about
from mfm_jax.data.sources import SPLITS, Split
from mfm_jax.inference.extract import extract
from mfm_jax.models.text import EmptyTextConfig
from mfm_jax.models.vae import VAE
from mfm_jax.runtime.distributed import say
from mfm_jax.storage.weights import abstract
from mfm_jax.train.recipes.decoded import BundleRecipe

BATCH = 16
"""Clips that features are computed of at once."""


def latent_shape(bundle: Bundle) -> tuple[int, int, int]:
    """Return the shape of the latents of a clip: rows, columns, channels."""
    vae = abstract(partial(VAE, bundle.config("vae")))
    return vae.latent_shape(bundle.settings.frames, bundle.config("vocoder").mels)


def text_config(bundle: Bundle) -> EmptyTextConfig | None:
    """Return the config of the empty text; None if the bundle's UNet reads no text."""
    return bundle.config("text") if len(bundle.config("unet").contexts) > 1 else None


@dataclass(frozen=True)
class FeatureRecipe(BundleRecipe):
    """A recipe that learns from features: those that its source is, or those of its clips.

    Features of clips are computed on first use, into the workdir. A folder that is begun keeps to
    its encoders.
    """

    @property
    def reads(self) -> tuple[str, ...]:
        """The encoders whose features are read; they have to be those of the bundle."""
        raise NotImplementedError

    def computes(self, bundle: Bundle) -> list[str]:
        """Return the encoders that are run: those that the recipe reads, and the bundle's others.

        Later recipes may read what this one does not.
        """
        return list(dict.fromkeys((*bundled(bundle), *self.reads)))

    @property
    def expects(self) -> dict[str, Any]:
        """Settings that the features must have been extracted with, where they name them."""
        return {}

    def check(self, workdir: Path) -> None:
        Bundle.open(self.bundle_path(workdir))
        super().check(workdir)

    def prepare(self, workdir: Path) -> Split:
        bundle = Bundle.open(self.bundle_path(workdir))
        folders = self.source.features()
        if folders is None:
            folders = Split(*(workdir / "features" / name for name in SPLITS))
            tensor = self.expects.get("timechat", "video")
            names = self.computes(bundle)

            def compute(clips: list[Clip], folder: Path) -> list[Failure]:
                return extract(
                    bundle,
                    clips,
                    folder,
                    batch=BATCH,
                    encoders=begun_with(folder) or names,
                    timechat=tensor,
                    licence=self.source.licence,
                    say=say,
                )

            self.fill(folders, DESCRIPTION, workdir, compute)
        further = self.source.further_features()
        for folder in (*folders, *further.train, *further.heldout):
            check(folder, bundle, self.reads)
            found = read_about(folder / DESCRIPTION)
            check_same(folder, found, {k: v for k, v in self.expects.items() if k in found})
        return self.cached(*map(FeatureSource, folders, further))

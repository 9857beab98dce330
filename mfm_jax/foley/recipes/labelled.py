"""The base of recipes that learn from the labels of the Foley world."""

from dataclasses import dataclass, field
from pathlib import Path

from mfm_jax.data.sources import ClipSource, Split
from mfm_jax.errors import SettingError
from mfm_jax.foley.clips import FoleyClips
from mfm_jax.train.recipes.decoded import DecodedRecipe


@dataclass(frozen=True)
class LabelledRecipe(DecodedRecipe):
    """A recipe that learns from the labels beside Foley clips."""

    source: ClipSource = field(default_factory=FoleyClips)

    def prepare(self, workdir: Path) -> Split:
        if self.source.labels is None:
            raise SettingError(
                f"recipe.source: a {type(self).__name__} learns from the labels of Foley clips, "
                "which no other clips have: leave recipe.source as it is"
            )
        return super().prepare(workdir)

"""A folder of features as `mfm_jax.data.features` leaves it, of noise instead of clips."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mfm_jax.bundle import Bundle
from mfm_jax.data.clips import Clip
from mfm_jax.data.features import DESCRIPTION, describe
from mfm_jax.data.records import DatasetWriter, Field

TINY = {
    "cavp": (32, 64),
    "cavp_seconds": (32,),
    "timechat": (16, 96),
    "timechat_seconds": (16,),
    "audiomae": (129, 128),
    "latents": (64, 16, 8),
}
"""The shapes of an element with the encoders of `tests.bundles`."""


def write_features(
    bundle: Bundle, folder: Path, clips: int, shapes: Mapping[str, tuple[int, ...]] = TINY
) -> None:
    """Write features of `clips` clips that pass for those of the bundle's encoders."""
    rng = np.random.default_rng(clips)
    kinds = {n: np.float32 if n.endswith("seconds") else np.float16 for n in shapes}
    fields = {name: Field(shape, np.dtype(kinds[name]).name) for name, shape in shapes.items()}
    named = [Clip(f"clip{i:02d}", Path(f"{i}.mp4")) for i in range(clips)]
    writing = DatasetWriter.open(folder, DESCRIPTION, describe(bundle, "video"), fields, named)
    for shard in writing.missing():
        elements = (
            {name: rng.standard_normal(s).astype(kinds[name]) for name, s in shapes.items()}
            for _ in writing.shards[shard]
        )
        writing.write(shard, elements)
    assert writing.finish() == []

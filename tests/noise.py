"""A window of random frames."""

import numpy as np

from mfm_jax.media.windows import Seen, Window, WindowSpec


def window(spec: WindowSpec, index: int) -> Window:
    """Return a window of noise."""
    rng = np.random.default_rng(index)
    seen = {}
    for name, view in spec.views.items():
        count = view.count(spec.seconds)
        pixels = rng.integers(0, 256, (count, *view.size, 3), np.uint8)
        seen[name] = Seen(pixels, np.arange(count) * spec.seconds / count)
    return Window(index, 0.0, float(spec.seconds), seen)

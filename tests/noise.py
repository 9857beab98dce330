"""A window of random frames."""

import numpy as np

from mfm_jax.media.windows import Window, WindowSpec


def window(spec: WindowSpec, index: int) -> Window:
    """Return a window of noise."""
    rng = np.random.default_rng(index)
    cavp, timechat = (
        rng.integers(0, 256, (frames, size, size, 3), np.uint8)
        for frames, size in (
            (spec.cavp_frames, spec.cavp_size),
            (spec.timechat_frames, spec.timechat_size),
        )
    )
    times = [np.arange(len(x)) * spec.seconds / len(x) for x in (cavp, timechat)]
    return Window(index, 0.0, float(spec.seconds), cavp, times[0], timechat, times[1])

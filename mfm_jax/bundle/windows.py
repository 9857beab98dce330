"""The windows of video that the encoders of a bundle read."""

from dataclasses import replace

import numpy as np

from mfm_jax.bundle.bundle import Bundle, BundleError
from mfm_jax.media.windows import WindowSpec
from mfm_jax.text.timestamps import timestamp_sentences
from mfm_jax.text.wordpiece import encode as encode_sentences


def window_spec(bundle: Bundle) -> WindowSpec:
    """Return the window that the bundle's encoders see, with defaults for encoders it lacks.

    Raises:
        BundleError: its settings give no window.
    """
    try:
        spec = WindowSpec(bundle.settings.seconds, bundle.settings.overlap)
        if "cavp" in bundle.entries:
            cavp = bundle.config("cavp")
            spec = replace(spec, cavp_fps=cavp.fps, cavp_size=cavp.size)
        if "timechat" in bundle.entries:
            timechat = bundle.config("timechat")
            spec = replace(spec, timechat_frames=timechat.frames, timechat_size=timechat.vit.image)
        return spec
    except ValueError as error:
        raise BundleError(f"the settings of bundle {bundle.path} do not fit ({error})") from None


def sentence_length(bundle: Bundle) -> int:
    """Return the tokens of a window's longest timestamp sentence, which all are padded to.

    Raises:
        BundleError: TimeChat's vocabulary cannot write one.
    """
    tenths = np.arange(0, bundle.settings.seconds + 0.1, 0.1)
    try:
        ids, _ = encode_sentences(timestamp_sentences(tenths), bundle.config("timechat").vocabulary)
    except ValueError as error:
        raise BundleError(f"timechat in bundle {bundle.path}: {error}") from None
    return ids.shape[1]

"""The paper's two encoders, as they were before there were others: values, and what is stored."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from mfm_jax.bundle import Bundle, write_bundle
from mfm_jax.data.clips import DataError
from mfm_jax.data.decoded import ClipSpec
from mfm_jax.data.features import DESCRIPTION, begun_with, check, describe
from mfm_jax.data.records import UNFINISHED
from mfm_jax.inference.pipeline import Sampling, VideoToAudio
from mfm_jax.mapper import MapperConfig
from mfm_jax.runtime.config import from_json, to_json
from tests.bundles import SETTINGS, untrained, untrained_bundle
from tests.noise import window

# Of the version before encoders had an interface, with the bundle and the window of this test.
CAVP = [[-0.14421749, -0.1773832, -0.11339844], [-0.16182680, -0.15582064, -0.01213653]]
TIMECHAT = [[-2.07228136, -0.80083036, 0.51808894], [-1.53473067, -0.94569814, 0.93074828]]
LOA = [
    [2.21422029, -0.02278533, -0.12699692], [0.28053203, -0.92144948, -1.08930767],
    [0.93966287, -1.40378547, -0.67989671], [1.99104083, -1.73443758, -0.49440759],
]  # fmt: skip
WAVE = [0.03728074, 0.12636785, 0.08017091, 0.04367397]
SPEC = {
    "seconds": 2.56, "overlap": 0.32, "cavp_fps": 12.5, "cavp_size": 32,
    "timechat_frames": 8, "timechat_size": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return untrained_bundle(tmp_path_factory.mktemp("bundle"))


def test_tokens_loa_and_sound_are_those_of_before(bundle):
    model = VideoToAudio.open(bundle.path)
    seen = [window(model.spec, 5)]
    streams = model.encode(seen)
    assert list(streams) == ["cavp", "timechat"]
    np.testing.assert_allclose(streams["cavp"].tokens[0, :2, :3], CAVP, atol=1e-4)
    np.testing.assert_allclose(streams["timechat"].tokens[0, :2, :3], TIMECHAT, atol=1e-4)
    np.testing.assert_allclose(model.predict(streams).loa[0, ::5, :3], LOA, atol=1e-4)
    wave = model(seen, 3, Sampling("ddim", 2, 2.0))
    np.testing.assert_allclose(wave[0, 1000:1004], WAVE, atol=1e-4)


def test_what_is_stored_has_the_fields_of_before(bundle):
    stored = json.loads((bundle.path / "bundle.json").read_text())
    config = stored["components"]["mapper"]["config"]
    assert list(config) == [
        "encoders", "loa_width", "loa", "kind", "fusion", "gpt2", "head", "timechat",
    ]  # fmt: skip
    assert from_json(MapperConfig, config) == bundle.config("mapper")
    assert "stems" in to_json(replace(bundle.config("mapper"), stems=("cavp",)))
    about = describe(bundle, "video")
    assert list(about) == ["encoders", "spec", "timechat", "grid"]
    assert list(about["encoders"]) == ["cavp", "timechat", "audiomae", "vae"]
    assert json.dumps(about["spec"]) == json.dumps(SPEC)
    assert json.dumps(asdict(ClipSpec.tiny())) == json.dumps(SPEC)  # of decoded clips


@pytest.mark.parametrize("name", [DESCRIPTION, UNFINISHED])
@pytest.mark.parametrize(
    "names", [("cavp", "timechat", "audiomae", "vae"), ("cavp",), ("audiomae", "vae")], ids=str
)
def test_folders_of_features_of_before_are_opened(bundle, tmp_path, names, name):
    """They tell of both encoders, whichever there are; those that are missing have defaults."""
    parts = {part: untrained()[part] for part in names}
    few = write_bundle(tmp_path / "bundle", parts, settings=SETTINGS)
    about = describe(few, "video", names)
    defaults = {"cavp_fps": 4, "cavp_size": 224, "timechat_frames": 96, "timechat_size": 224}
    told = {**about, "spec": defaults | about["spec"], "clips": 1, "ids": "0", "fields": {}}
    (tmp_path / name).write_text(json.dumps(told))
    assert begun_with(tmp_path) == list(names)
    if name == DESCRIPTION:
        check(tmp_path, few)
        told["spec"]["overlap"] = 0.5
        (tmp_path / name).write_text(json.dumps(told))
        with pytest.raises(DataError, match=r"spec\.overlap is 0\.5, not 0\.32"):
            check(tmp_path, few)

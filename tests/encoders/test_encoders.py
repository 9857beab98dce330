"""Four video encoders, two of them beside the paper's: their tokens, features, training, sounds."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.bundle import Bundle, BundleError, write_bundle
from mfm_jax.cli import main
from mfm_jax.data.clips import list_clips
from mfm_jax.data.features import FeatureSource, check, describe
from mfm_jax.data.sources import ClipFiles
from mfm_jax.encoders import ENCODERS as registry
from mfm_jax.encoders import (
    Encoder,
    encode_windows,
    encoder_network,
    open_encoders,
    read_in_generation,
    stack_windows,
    window_spec,
)
from mfm_jax.encoders.encoder import stream
from mfm_jax.inference.extract import extract
from mfm_jax.inference.pipeline import VideoToAudio
from mfm_jax.inference.programs import generation
from mfm_jax.media.frames import windows
from mfm_jax.media.segments import segments
from mfm_jax.media.synchformer_frames import synchformer_frames
from mfm_jax.media.windows import View
from mfm_jax.media.write import write_frames
from mfm_jax.models.synchformer import SynchformerConfig
from mfm_jax.models.synchformer_video import normalise
from mfm_jax.models.timechat import normalise as scaled
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.mapper import MapperRecipe
from tests.bundles import CONFIGS, SETTINGS, untrained, untrained_component
from train import train

ENCODERS = (("cavp", 32, 64), ("timechat", 16, 96), ("synchformer", 56, 32), ("motion", 64, 64))
NAMES = tuple(name for name, *_ in ENCODERS)
MAPPER = replace(
    CONFIGS["mapper"],
    encoders=ENCODERS,
    stems=("motion",),
    gpt2=replace(CONFIGS["mapper"].gpt2, positions=184),  # exactly enough
)
FLASH = 31  # the frame that is white, at 25 a second


def small(config):
    return replace(config, width=32, depth=1, heads=2, mlp_width=32)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    tiny = SynchformerConfig.tiny()
    synchformer = SynchformerConfig(small(tiny.video), small(tiny.audio), small(tiny.sync))
    parts = {
        **untrained(),
        "synchformer": untrained_component("synchformer", synchformer, 8),
        "mapper": untrained_component("mapper", MAPPER, 9),
    }
    return write_bundle(tmp_path_factory.mktemp("bundle"), parts, settings=SETTINGS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of 3 s with a flash at the left, longer than one window of 2.56 s, and with sound."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    wave = 0.1 * rng.standard_normal(48_000).astype(np.float32)
    for name in "abcdef":
        frames = np.full((75, 60, 96, 3), 40 + 10 * ord(name) % 70, np.uint8)
        frames[FLASH, :, :24] = 250
        write_frames(iter(frames), folder / f"{name}.mp4", fps=25, wave=wave)
    return folder


@pytest.fixture(scope="module")
def seen(bundle, folder):
    """The encoders of the mapper, the first window, and the tokens of it."""
    encoders = read_in_generation(bundle)
    first = next(windows(folder / "a.mp4", window_spec(bundle, encoders)))
    networks = {n: encoder_network(e, n, bundle.load) for n, e in encoders.items()}
    streams = encode_windows(encoders, networks, stack_windows(encoders, [first, first]))
    return encoders, first, networks, streams


def test_tokens_have_the_sizes_that_the_mapper_is_told(seen):
    _, _, _, streams = seen
    assert {n: s.tokens.shape for n, s in streams.items()} == {n: (2, t, w) for n, t, w in ENCODERS}
    for tokens, seconds, _ in streams.values():
        assert seconds.shape == tokens.shape[:2]
        assert np.isfinite(tokens).all()
        assert 0 <= float(seconds.min()) <= float(seconds.max()) < 2.56


def test_synchformer_sees_the_frames_of_desync_and_gives_the_tokens_of_its_segments(seen, folder):
    _, first, networks, streams = seen
    tower = networks["synchformer"]
    frames = synchformer_frames(folder / "a.mp4", 2.56, image=(32, 32))
    np.testing.assert_array_equal(first.seen["synchformer"].pixels, frames)
    pieces = jnp.asarray(segments(frames, 16))
    assert pieces.shape == (7, 16, 32, 32, 3)
    tokens = jax.jit(lambda tower, x: tower(normalise(x)))(tower, pieces).reshape(56, 32)
    np.testing.assert_allclose(streams["synchformer"].tokens[0], tokens, atol=1e-5)
    steps = np.arange(7)[:, None] * 0.32 + np.arange(8) * 0.08 + 0.02  # of two frames each
    np.testing.assert_allclose(streams["synchformer"].seconds[0], steps.ravel(), atol=1e-6)


def test_motion_is_where_and_when_the_picture_changes(seen):
    motion = seen[3]["motion"]
    energy = np.asarray(motion.tokens[0]).reshape(64, 8, 8)
    assert motion.tokens.dtype == jnp.float32
    changes = np.flatnonzero(energy[:, :, :2].mean(axis=(1, 2)) > 3)
    np.testing.assert_array_equal(changes, [FLASH, FLASH + 1])
    assert energy[:, :, 3:].max() < 1.5  # nothing but coding on the right
    assert not energy[0].any()
    np.testing.assert_allclose(motion.seconds[0], np.arange(64) / 25, atol=1e-6)


def test_what_moves_is_the_patches_where_the_picture_changes(bundle, folder, tmp_path):
    command = ["extract", str(folder), "--bundle", str(bundle.path), "--batch", "2"]
    assert main([*command, "-o", str(tmp_path / "f"), "--encoders", "moving"]) == 0
    source = FeatureSource(tmp_path / "f")
    assert source.about["encoders"] == {"moving": describe(bundle, "video")["encoders"]["timechat"]}
    check(tmp_path / "f", bundle)
    tokens = source[0]["moving"].astype(np.float32)
    assert tokens.shape == (64, 96)
    np.testing.assert_allclose(source[0]["moving_seconds"], np.arange(64) / 25, atol=1e-6)
    encoder = open_encoders(bundle, ["moving"], {})
    pixels = next(windows(folder / "a.mp4", window_spec(bundle, encoder))).seen["moving"].pixels
    assert pixels.shape == (64, 64, 64, 3)
    timechat = bundle.load("timechat")
    some = scaled(jnp.asarray(pixels[None, ::8]))[0]
    whole = jax.jit(lambda net, x: net.vit_norm(net.vit(x)))(timechat, some)
    patches = np.asarray(whole)[:, 1:]
    change = np.abs(np.diff(pixels.astype(float), axis=0, prepend=pixels[:1])).mean(axis=3)
    places = change.reshape(64, 8, 8, 8, 8).mean(axis=(2, 4))
    padded = np.pad(places, ((0, 0), (1, 1), (1, 1)))
    near = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    weights = np.max(near, axis=0).reshape(64, 64) ** 2 + 1e-6
    weights /= weights.sum(axis=1, keepdims=True)
    for t in range(64):
        seen = min((t + 4) // 8, 7)  # the nearest of the frames 0, 8, ... 56
        np.testing.assert_allclose(tokens[t], weights[t] @ patches[seen], atol=3e-3)
    # All that moves is a quarter of the picture, and what lies beside that counts as well.
    assert weights[FLASH].reshape(8, 8)[:, :3].sum() > 0.99
    np.testing.assert_allclose(weights[0], 1 / 64)  # nothing has changed before the first frame


def test_a_step_of_training_from_videos_and_sound_from_the_result(bundle, folder, tmp_path):
    """Of the recipe, the features, the trained bundle, and the command that uses it."""
    recipe = MapperRecipe(
        source=ClipFiles(str(folder), share=0.01), bundle=str(bundle.path), network=MAPPER
    )
    config = TrainConfig(recipe=recipe, optimizer=OptimizerConfig(1e-3, 1), steps=2, batch=4)
    assert train(config, tmp_path / "run", "a test") == 0
    source = FeatureSource(tmp_path / "run" / "features" / "train")
    assert list(source.about["encoders"]) == [*NAMES, "audiomae", "vae"]
    assert source.about["spec"]["motion_fps"] == source.about["spec"]["synchformer_fps"] == 25
    shapes = {name: array.shape for name, array in source[0].items() if name in NAMES}
    assert shapes == {name: (tokens, width) for name, tokens, width in ENCODERS}
    trained = Bundle.open(tmp_path / "run")
    used = dict(trained.entries["mapper"].source.trained_with)
    assert used.keys() == {"audiomae", "cavp", "timechat", "synchformer"}
    before, after = (b.load("mapper").stems["motion"] for b in (bundle, trained))
    assert np.abs(before.first.kernel[...] - after.first.kernel[...]).max() > 0
    command = ["generate", str(folder / "a.mp4"), "--bundle", str(tmp_path / "run"), "--steps", "2"]
    assert main([*command, "-o", str(tmp_path / "a.wav")]) == 0
    assert (tmp_path / "a.wav").stat().st_size > 2 * 48_000


@jax.jit
def encode_brightness(network, frames):
    pixels, seconds = frames
    return stream(pixels.astype(jnp.float32).mean(axis=(2, 3)), seconds)


class Brightness(Encoder):
    """An encoder that nothing but the registry knows."""

    title = "brightness"
    formula = "mean red, green and blue of eight frames"
    encode = staticmethod(encode_brightness)

    def __init__(self, config, seconds, tensor=""):
        super().__init__(config, seconds, tensor)
        self.view = View((4, 6), "squash_area", frames=8)


def test_one_more_encoder_is_a_class_and_a_line(bundle, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(registry, "brightness", Brightness)
    extract(bundle, list_clips(folder)[:2], tmp_path / "f", batch=2, encoders=["brightness"])
    source = FeatureSource(tmp_path / "f")
    assert source[0]["brightness"].shape == (8, 3)
    np.testing.assert_allclose(source[0]["brightness_seconds"], np.arange(8) * 0.32, atol=1e-6)
    assert (
        source.about["spec"] | {"brightness_frames": 8, "brightness_size": [4, 6]}
        == (source.about["spec"])
    )
    check(tmp_path / "f", bundle)
    config = replace(MAPPER, encoders=(("brightness", 8, 3),), stems=())
    parts = {"mapper": untrained_component("mapper", config, 3)}
    one = write_bundle(tmp_path / "bundle", parts, base=bundle.path)
    model = VideoToAudio.open(one.path, only=["encoders", "mapper"])
    seen = [next(windows(folder / name, model.spec)) for name in ("a.mp4", "b.mp4")]
    assert np.isfinite(model.predict(model.encode(seen)).loa).all()


def test_the_command_extracts_what_it_is_told(bundle, folder, tmp_path, capsys):
    command = ["extract", str(folder), "--bundle", str(bundle.path), "--batch", "2"]
    told = [*command, "-o", str(tmp_path / "f"), "--encoders"]
    assert main([*told, "motion"]) == 0
    assert FeatureSource(tmp_path / "f")[0].keys() == {"motion", "motion_seconds"}
    assert main([*told, "motion", "vae"]) != 0
    assert "was made with other settings (encoders.vae is absent" in capsys.readouterr().err
    assert main([*command, "-o", str(tmp_path / "g"), "--encoders", "motoin"]) == 2
    assert "'motoin' is no video encoder: known are cavp, timechat," in capsys.readouterr().err
    assert not (tmp_path / "g").exists()


def test_the_programs_that_are_planned_are_those_that_run(bundle):
    layout = Layout(make_mesh(MeshConfig(), jax.local_devices()[:1]))
    programs = generation(bundle, layout, batch=2, dtype=jnp.bfloat16)
    titles = [program.name for program in programs]
    assert titles == ["CAVP", "TimeChat", "Synchformer", "motion", "mapper", "AudioLDM2"]
    mapper = programs[4]
    planned = mapper.arguments[1]
    for name, program in zip(NAMES, programs[:4], strict=True):
        given = program.traced(layout).out_info
        assert jax.tree.map(lambda x: (x.shape, x.dtype), given) == jax.tree.map(
            lambda x: (x.shape, x.dtype), planned[name]
        )
    assert mapper.traced(layout).out_info.shape == (2, 16, 128)


@pytest.mark.parametrize(
    ("encoders", "message"),
    [
        ((("clip", 4, 8),), "'clip' is no video encoder: known are cavp"),
        ((("timechat", 16, 96), ("synchformer", 56, 32)), "has no 'synchformer'"),
    ],
    ids=["unknown", "missing"],
)
def test_a_mapper_whose_encoder_is_not_there_is_refused_in_one_line(tmp_path, encoders, message):
    config = replace(MAPPER, encoders=encoders, stems=())
    mapper = untrained_component("mapper", config, 1)
    bundle = write_bundle(tmp_path, {**untrained(), "mapper": mapper}, settings=SETTINGS)
    with pytest.raises(BundleError, match=message):
        VideoToAudio.open(bundle.path)


def test_an_encoder_says_what_does_not_go_with_its_windows(bundle, tmp_path):
    copies = partial(write_bundle, base=bundle.path)
    short = copies(tmp_path, {}, settings=replace(SETTINGS, frames=32, overlap=0.0))
    with pytest.raises(BundleError, match=r"windows of 0\.32 s are shorter than its segments"):
        open_encoders(short, ["synchformer"], {})
    with pytest.raises(BundleError, match="timechat has no tokens 'words', only video, frame"):
        open_encoders(bundle, ["timechat"], {"timechat": "words"})

"""The same clips re-encoded as other files."""

import itertools
from fractions import Fraction

import av
import numpy as np
import pytest
from flax import nnx

from mfm_jax.bundle import Source, write_bundle
from mfm_jax.foley.world import MATERIALS, World, write_world
from mfm_jax.media.frames import windows
from mfm_jax.media.probe import probe
from mfm_jax.models.listener import Listener, ListenerConfig
from miniature.document import LABELS, POINTS, markdown
from miniature.robust import VARIANTS, Variant, as_variant, first_clips, read_frames, robust
from miniature.scores import open_clips
from tests.bundles import untrained_bundle
from tests.windows import pair_spec

SPEC = pair_spec(2.56, 0.32, 12.5, 64, 8, 64)
BY_NAME = {variant.name: variant for variant in VARIANTS}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_world(World(), (20_000_000, 20_000_001), folder)
    return open_clips(folder)


@pytest.fixture(scope="module")
def made(clips, tmp_path_factory):
    """Return the first clip in every variant, by name."""
    folder = tmp_path_factory.mktemp("variants")
    return {v.name: next(as_variant(clips[:1], v, folder)) for v in VARIANTS}


def through_fps_filter(path, fps):
    """Return the frames that ffmpeg's `fps` filter outputs."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        nodes = [
            graph.add_buffer(template=stream),
            graph.add("fps", f"fps={fps}"),
            graph.add("buffersink"),
        ]
        for a, b in itertools.pairwise(nodes):
            a.link_to(b)
        graph.configure()
        found = []
        for frame in itertools.chain(container.decode(stream), [None]):
            graph.push(frame)
            while True:
                try:
                    found.append(graph.pull().to_ndarray(format="rgb24"))
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
        return found


def seen(clip):
    """Return the frames of the first window that CAVP reads."""
    return next(windows(clip.path, SPEC)).seen["cavp"].pixels.astype(float)


@pytest.mark.parametrize("name", [v.name for v in VARIANTS if v.fps])
def test_frames_are_shown_when_ffmpegs_filter_shows_them(clips, made, name):
    fps = BY_NAME[name].fps
    theirs, ours = through_fps_filter(clips[0].path, fps), read_frames(made[name].path)
    assert len(ours) == len(theirs)
    error = np.abs(np.array(ours, float) - np.array(theirs)).mean(axis=(1, 2, 3))
    assert error.max() < 2.5  # two by encoding again; five and more where a frame is off by one
    info = probe(made[name].path)
    assert info.fps == pytest.approx(float(fps))
    assert abs(info.seconds - probe(clips[0].path).seconds) <= 0.5 / fps + 1e-9


@pytest.mark.parametrize(
    ("name", "side", "rotation"),
    [("again", 64, 0), ("360p", 360, 0), ("720p", 720, 0), ("rotated", 64, 90)],
)
def test_other_files_show_the_encoders_the_same(clips, made, name, side, rotation):
    info = probe(made[name].path)
    assert (info.width, info.height, info.rotation) == (side, side, rotation)
    assert info.seconds == pytest.approx(probe(clips[0].path).seconds)
    assert not info.has_audio
    original, ours = seen(clips[0]), seen(made[name])
    assert np.abs(ours - original).mean() < 3
    assert np.abs(np.rot90(ours, axes=(1, 2)) - original).mean() > 10


def test_what_is_stored_of_a_rotated_clip_lies_on_its_side(clips, made):
    stored, upright = (np.array(read_frames(c.path), float) for c in (made["rotated"], clips[0]))
    assert np.abs(stored - upright).mean() > 10
    assert np.abs(np.rot90(stored, -1, axes=(1, 2)) - upright).mean() < 3


def test_files_are_written_once_and_keep_their_truth(clips, tmp_path):
    variant = Variant("slow", fps=Fraction(5))
    first = list(as_variant(clips, variant, tmp_path))
    written = [clip.path.stat().st_mtime_ns for clip in first]
    first[1].path.unlink()
    again = list(as_variant(clips, variant, tmp_path))
    assert again[0].path.stat().st_mtime_ns == written[0]
    assert probe(again[1].path).frames == 13
    for clip, original in zip(again, clips, strict=True):
        assert clip.path == tmp_path / "slow" / original.path.name
        assert clip.truth is original.truth
        assert clip.wave is original.wave
    assert {p.name for p in (tmp_path / "slow").iterdir()} == {c.path.name for c in clips}


def test_the_same_file_again_differs_by_nothing_and_another_by_what_is_said(clips, tmp_path):
    config = ListenerConfig(tuple(material.name for material in MATERIALS))
    source = Source("a test", "none")
    components = {"listener": (config, Listener(config, rngs=nnx.Rngs(0)), source)}
    bundle = tmp_path / "bundle"
    untrained_bundle(bundle, steps=1, guidance=1.0)
    write_bundle(bundle, components)
    same = tmp_path / "variants" / "same"
    same.mkdir(parents=True)
    for clip in clips:
        (same / clip.path.name).symlink_to(clip.path)
    variants = (Variant("same"), Variant("slow", fps=Fraction(3)))
    found = robust(bundle, clips, tmp_path / "variants", variants)
    assert found["scores"]["same"] == found["scores"]["original"]
    assert set(found["differences"]["same"].values()) == {0}
    slow, original = found["scores"]["slow"], found["scores"]["original"]
    assert slow["windows"] == 2  # 8 frames at 3 a second are longer than a window
    assert original["windows"] == 1
    for name in LABELS:
        gap = found["differences"]["slow"][name]
        assert gap == pytest.approx((slow[name] - original[name]) * (100 if name in POINTS else 1))
        assert abs(found["largest"][name]["difference"]) == abs(gap)
    assert found["differences"]["slow"]["log_mel"] != 0
    scores, gaps = found["tables"]
    assert [row[0] for row in scores["rows"]] == ["original", "same", "slow"]
    assert [row[0] for row in gaps["rows"]] == ["same", "slow", "largest"]
    assert gaps["rows"][-1][5].endswith("(slow)")
    assert "| slow | 2.00 |" in markdown(scores)


def test_clips_are_the_first_of_the_test_split(tmp_path):
    assert [clip.path.stem for clip in first_clips(tmp_path, 1)] == ["20000000"]
    assert (tmp_path / "test_clips" / "20000000.mp4").exists()

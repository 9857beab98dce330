import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from jax import numpy as jnp

from mfm_jax.bundle import Bundle, BundleError, write_bundle
from mfm_jax.cli import main
from mfm_jax.data import records
from mfm_jax.data.clips import Clip, DataError, list_clips
from mfm_jax.data.features import FeatureSource, check, describe
from mfm_jax.encoders import encode_windows
from mfm_jax.foley.world import World, generate_clip, write_world
from mfm_jax.inference import extract as extraction
from mfm_jax.inference.extract import extract
from mfm_jax.inference.pipeline import VideoToAudio
from mfm_jax.media.audio import RATE, kaldi_fbank, log_mel, prepare_for_audiomae
from mfm_jax.media.frames import windows
from mfm_jax.media.soundtrack import read_audio
from mfm_jax.media.write import write_frames
from mfm_jax.storage import leases
from mfm_jax.storage.files import publish
from mfm_jax.storage.leases import Leases
from mfm_jax.storage.paths import TINY_BUNDLE
from tests.bundles import CONFIGS, SETTINGS, untrained, untrained_bundle, untrained_component
from tests.silent import write_silent

SHAPES = {
    "cavp": (32, 64),
    "cavp_seconds": (32,),
    "timechat": (16, 96),
    "timechat_seconds": (16,),
    "audiomae": (129, 128),
    "latents": (64, 16, 8),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return untrained_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Seven clips, between them one without sound and one that is no video."""
    folder = tmp_path_factory.mktemp("clips")
    made = list_clips(write_world(World(), range(7), folder))
    write_silent(made[0].path, folder / "1-silent.mp4")
    (folder / "3-text.mp4").write_text("not a video")
    return [*made, *(Clip(name, folder / f"{name}.mp4") for name in ("1-silent", "3-text"))]


@pytest.fixture(autouse=True, scope="module")
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "SHARD", 4)
        yield


@pytest.fixture(scope="module")
def extracted(bundle, clips, tmp_path_factory, small_shards):
    folder = tmp_path_factory.mktemp("features") / "all"
    steps = []
    failed = extract(bundle, clips, folder, batch=2, progress=steps.append)
    assert sum(steps) == 9
    return folder, failed


def close(ours, theirs):
    """Up to float16, relative to the spread of the feature."""
    theirs = np.asarray(theirs, np.float32)
    np.testing.assert_allclose(
        ours.astype(np.float32), theirs, rtol=2e-3, atol=2e-3 * max(theirs.std(), 1e-6)
    )


def test_sizes_and_precision(extracted):
    source = FeatureSource(extracted[0])
    assert len(source) == 7
    for i in range(7):
        element = source[i]
        assert {name: value.shape for name, value in element.items()} == SHAPES
        for name, value in element.items():
            assert value.dtype == (np.float32 if name.endswith("seconds") else np.float16)
            assert np.isfinite(value).all()


def test_clips_are_in_the_order_of_their_ids(extracted):
    source = FeatureSource(extracted[0])
    assert [source.id_of(i) for i in range(7)] == list("0123456")


def test_video_features_are_what_generation_reads(extracted, bundle, clips):
    source, model = FeatureSource(extracted[0]), VideoToAudio.open(bundle.path)
    frames = model.frames([next(windows(clip.path, model.spec)) for clip in clips[2:4]])
    streams = encode_windows(model.encoders, model.networks.encoders, frames)
    for row in range(2):
        for name, stream in streams.items():
            close(source[2 + row][name], stream.tokens[row])
            np.testing.assert_array_equal(source[2 + row][f"{name}_seconds"], stream.seconds[row])


def test_both_audio_networks_hear_one_normalised_wave(extracted, bundle, clips):
    source = FeatureSource(extracted[0])
    wave = prepare_for_audiomae(read_audio(clips[5].path), round(2.56 * RATE))
    assert np.abs(wave).max() == pytest.approx(0.5, abs=1e-6)
    fbank = jnp.asarray(kaldi_fbank(wave, 256))[None]
    tokens = jax.jit(lambda network, x: network(x))(bundle.load("audiomae"), fbank)
    close(source[5]["audiomae"], tokens[0])
    mel = jnp.asarray(log_mel(wave))[None, :, :, None]
    vae = bundle.load("vae")
    mean = jax.jit(lambda network, x: network.encode(x)[0])(vae, mel)
    close(source[5]["latents"], mean[0])


def test_clips_that_fail_are_listed(extracted):
    folder, failed = extracted
    assert [failure.id for failure in failed] == ["1-silent", "3-text"]
    assert "has no sound" in failed[0].reason
    lines = (folder / "failed.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["clip", "1-silent", "3-text"]


def test_tfds_reads_them(extracted):
    source = tfds.builder_from_directory(extracted[0] / "records").as_data_source("train")
    assert len(source) == 7
    assert source[0]["audiomae"].shape == (129, 128)


def test_neither_batch_size_nor_order_changes_anything(clips, tmp_path):
    parts = {"audiomae": untrained()["audiomae"]}
    bundle = write_bundle(tmp_path / "b", parts, settings=SETTINGS)
    one, other = tmp_path / "one", tmp_path / "other"
    extract(bundle, clips, one, batch=2)
    extract(bundle, clips[::-1], other, batch=3)
    ours, theirs = FeatureSource(one), FeatureSource(other)
    assert [ours.id_of(i) for i in range(7)] == [theirs.id_of(i) for i in range(7)]
    for i in range(7):
        assert set(ours[i]) == {"audiomae"}
        close(ours[i]["audiomae"], theirs[i]["audiomae"])


def test_a_clip_fails_alone_whatever_it_raises_and_whatever_it_is_called(
    clips, tmp_path, monkeypatch
):
    parts = {"audiomae": untrained()["audiomae"]}
    bundle = write_bundle(tmp_path / "b", parts, settings=SETTINGS)
    name = os.fsdecode(b"caf\xe9")
    shutil.copy(clips[0].path, tmp_path / f"{name}.mp4")
    (tmp_path / "._x.mp4").write_bytes(clips[0].path.read_bytes())
    odd = [Clip(n, tmp_path / f"{n}.mp4") for n in (name, "._x")]
    bad = extraction.Preparation.of(bundle, ["audiomae"], "video").clip(clips[4]).fbank
    read, encode = extraction.first_window, extraction.encode

    def reading(clip, spec):
        if clip.id == "2":
            raise ZeroDivisionError("odd clock")
        return read(clip, spec)

    def encoding(networks, inputs, **how):
        if any(np.array_equal(row, bad) for row in inputs["audiomae"]):
            raise IndexError("odd sound")
        return encode(networks, inputs, **how)

    monkeypatch.setattr(extraction, "first_window", reading)
    monkeypatch.setattr(extraction, "encode", encoding)
    told, folder = [], tmp_path / "features"
    failed = extract(bundle, [*clips[:7], *odd], folder, batch=4, say=told.append)
    source = FeatureSource(folder)
    assert [source.id_of(i) for i in range(len(source))] == ["0", "1", "3", "5", "6", name]
    assert told == [f"{clip} is left out: {reason}" for clip, reason in failed]
    reasons = dict(failed)
    assert reasons.keys() == {"._x", "2", "4"}
    assert "is a hidden file and no video" in reasons["._x"]
    assert "a fault of the program (ZeroDivisionError in test_extract.py, line" in reasons["2"]
    assert "(IndexError in test_extract.py, line" in reasons["4"]
    record = (folder / "failures.log").read_text()
    assert record.count("Traceback (most recent call last)") == 2


def test_an_interrupted_run_goes_on_where_it_stopped(
    extracted, bundle, clips, tmp_path, monkeypatch
):
    calls = []

    def interrupted(*args, **how):
        calls.append(args)
        if len(calls) > 3:  # in the second shard, once the first is written
            raise KeyboardInterrupt
        return original(*args, **how)

    original = extraction.encode
    folder = tmp_path / "stopped"
    monkeypatch.setattr(extraction, "element_fields", lambda *args: FIELDS)
    monkeypatch.setattr(extraction, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(bundle, clips, folder, batch=2)
    assert not (folder / "features.json").exists()
    with pytest.raises(DataError, match="no finished dataset"):
        check(folder, bundle)

    monkeypatch.setattr(extraction, "encode", original)
    steps = []
    failed = extract(bundle, clips, folder, batch=2, progress=steps.append)
    assert steps[0] == 4, "the first shard was there"
    assert failed == extracted[1]
    for file in extracted[0].rglob("*"):
        if file.is_file():
            ours = (folder / file.relative_to(extracted[0])).read_bytes()
            assert ours == file.read_bytes(), file


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_processes_share_the_work_and_leave_the_same_bytes(
    order, extracted, bundle, clips, tmp_path, monkeypatch
):
    monkeypatch.setattr(extraction, "element_fields", lambda *args: FIELDS)
    folder = tmp_path / "shared"
    first, second = (extract(bundle, clips, folder, batch=2, share=(index, 2)) for index in order)
    assert len(first) < len(second) or order == (0, 1)
    assert second == extracted[1]
    for file in extracted[0].rglob("*"):
        if file.is_file():
            ours = (folder / file.relative_to(extracted[0])).read_bytes()
            assert ours == file.read_bytes(), file


def test_silent_and_static_clips_can_be_dropped(clips, tmp_path):
    parts = {"audiomae": untrained()["audiomae"]}
    bundle = write_bundle(tmp_path / "b", parts, settings=SETTINGS)
    dumb, stuck = (Clip(name, tmp_path / f"{name}.mp4") for name in ("dumb", "stuck"))
    made = generate_clip(World(), 0)
    write_frames(made.frames, dumb.path, fps=25, wave=0 * made.audio)
    write_frames([made.frames[0]] * 64, stuck.path, fps=25, wave=made.audio)
    drop = extraction.DROPS
    failed = extract(bundle, [clips[0], dumb, stuck], tmp_path / "f", batch=2, drop=drop)
    assert [(f.id, f.reason.split(",")[0]) for f in failed] == [
        ("dumb", "dropped: silent"),
        ("stuck", "dropped: static"),
    ]
    assert extract(bundle, [clips[0], dumb, stuck], tmp_path / "all", batch=2) == []


FIELDS = {
    name: records.Field(shape, "float32" if name.endswith("seconds") else "float16")
    for name, shape in SHAPES.items()
}


def test_a_finished_folder_loads_no_network(extracted, bundle, clips, monkeypatch):
    monkeypatch.setattr(Bundle, "load", lambda *args: pytest.fail("loaded"))
    monkeypatch.setattr(extraction, "element_fields", lambda *args: FIELDS)
    assert extract(bundle, clips, extracted[0]) == extracted[1]


def test_the_description(extracted, bundle):
    about = json.loads((extracted[0] / "features.json").read_text())
    assert about["grid"] == [16, 8]
    assert about["timechat"] == "video"
    assert about["spec"]["seconds"] == 2.56
    assert list(about["encoders"]) == ["cavp", "timechat", "audiomae", "vae"]


def test_features_fit_the_same_weights_written_again(extracted, bundle, tmp_path):
    """What counts is what the encoders compute, not when or where they were written."""
    again = write_bundle(
        tmp_path / "again",
        {n: (e.config, bundle.load(n), e.source) for n, e in bundle.entries.items()},
        settings=bundle.settings,
    )
    assert again.entries["vae"].folder != bundle.entries["vae"].folder
    check(extracted[0], again)


def test_features_are_checked_against_a_bundle(extracted, bundle, tmp_path):
    folder = extracted[0]
    check(folder, bundle)
    # A bundle with another mapper has the same encoders.
    other = write_bundle(tmp_path / "a", {"mapper": untrained()["mapper"]}, base=bundle.path)
    assert other.entries["mapper"] != bundle.entries["mapper"]
    check(folder, other)
    vae = untrained_component("vae", CONFIGS["vae"], seed=77)
    retrained = write_bundle(tmp_path / "b", {"vae": vae}, base=bundle.path)
    with pytest.raises(DataError, match=r"other settings \(encoders\.vae is"):
        check(folder, retrained)
    few = {name: untrained()[name] for name in ("cavp", "timechat", "vae")}
    with pytest.raises(DataError, match="made with audiomae, which bundle"):
        check(folder, write_bundle(tmp_path / "c", few, settings=SETTINGS))


def test_a_bundle_with_one_encoder_gives_its_features(bundle, clips, tmp_path):
    one = write_bundle(tmp_path / "b", {"timechat": untrained()["timechat"]}, settings=SETTINGS)
    extract(one, clips[:2], tmp_path / "f", batch=2, timechat="frame")
    source = FeatureSource(tmp_path / "f")
    assert source.about["timechat"] == "frame"
    assert "grid" not in source.about
    element = source[1]
    assert set(element) == {"timechat", "timechat_seconds"}
    per_frame = element["timechat"].shape[0] // 8
    assert element["timechat"].shape == (8 * per_frame, 96)
    assert len(np.unique(element["timechat_seconds"])) == 8
    with pytest.raises(DataError, match='timechat is "frame", not "video"'):
        extract(one, clips[:2], tmp_path / "f", batch=2)


def test_bundles_that_cannot_extract(bundle, clips, tmp_path):
    with pytest.raises(BundleError, match=r"timechat in bundle .* it has no llama tokens"):
        extract(bundle, clips, tmp_path / "f", timechat="llama")
    none = write_bundle(tmp_path / "b", {"vocoder": untrained()["vocoder"]}, settings=SETTINGS)
    with pytest.raises(DataError, match="has none of cavp, timechat, synchformer, audiomae, vae"):
        extract(none, clips, tmp_path / "f")


def test_features_stay_valid_when_their_encoders_are_written_in_a_later_format(tmp_path):
    old = Bundle.open(TINY_BUNDLE)
    copies = {n: (e.config, old.load(n), e.source) for n, e in old.entries.items()}
    new = write_bundle(tmp_path / "bundle", copies, settings=old.settings)
    assert {e.format for e in old.entries.values()} != {e.format for e in new.entries.values()}
    assert describe(new, "video") == describe(old, "video")


def test_half_precision_is_near_and_said(clips, tmp_path):
    bundle = write_bundle(
        tmp_path / "bundle", {"audiomae": untrained()["audiomae"]}, settings=SETTINGS
    )
    for precision in ("float32", "bfloat16"):
        extract(bundle, clips[:2], tmp_path / precision, batch=2, precision=precision)
    whole, half = (
        FeatureSource(tmp_path / name)[0]["audiomae"] for name in ("float32", "bfloat16")
    )
    assert half.dtype == np.float16
    distance = np.linalg.norm((whole - half).astype(np.float32)) / np.linalg.norm(whole)
    assert 1e-4 < distance < 0.03
    with pytest.raises(DataError, match=r"precision is \"bfloat16\", not \"float16\""):
        extract(bundle, clips[:2], tmp_path / "bfloat16", batch=2, precision="float16")
    with pytest.raises(DataError, match=r"precision is \"bfloat16\", not absent"):
        extract(bundle, clips[:2], tmp_path / "bfloat16", batch=2)


def test_two_workers_divide_what_lies_in_a_store(extracted, bundle, clips, bucket, copies):
    """Videos, bundle and features lie there; the features have the bytes of those made here."""
    here, failed = extracted
    publish(bundle.path, bucket / "bundle", last="bundle.json")
    for clip in clips:
        (bucket / "clips" / clip.path.name).put(clip.path)
    there = [replace(clip, path=bucket / "clips" / clip.path.name) for clip in clips]
    folder, taken = bucket / "features", []

    def work(_):
        opened, done = Bundle.open(bucket / "bundle"), []
        told = extract(opened, there, folder, batch=2, progress=done.append)
        taken.append(done)
        return told

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(work, range(2))
    assert [sum(done) for done in taken] == [9, 9]  # its own clips, and those of the other
    ids = [failure.id for failure in failed]
    assert ids == [failure.id for failure in first] == [failure.id for failure in second]
    assert "copies" not in str(first)
    assert str(bucket / "clips") in str(first)
    names = {str(path.relative_to(folder)): path for path in folder.files()}
    assert names.keys() == {
        str(path.relative_to(here)) for path in here.rglob("*") if path.is_file()
    }
    for name, path in names.items():
        ours, theirs = path.read_bytes(), (here / name).read_bytes()
        named = theirs.replace(str(clips[0].path.parent).encode(), str(bucket / "clips").encode())
        assert ours == named
    check(folder, bundle)
    source, same = FeatureSource(folder), FeatureSource(here)
    assert len(source) == len(same) == 7
    for key, value in same[3].items():
        np.testing.assert_array_equal(source[3][key], value)
    assert main(["extract", str(bucket / "clips"), "-o", str(folder), "--batch", "2"]) == 2


def test_the_file_of_a_worker_that_died_goes_to_another(extracted, bundle, clips, tmp_path):
    here, _ = extracted
    folder = shutil.copytree(here, tmp_path / "features")
    (folder / "features.json").rename(folder / "unfinished.json")
    (folder / "shards" / "00001.json").unlink()
    dead = Leases(folder / "leases", seconds=1.0)  # nobody renews it
    assert dead.take("00001") is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leases, "SLACK", 0.2)
        patch.setattr(extraction, "POLL", 0.1)
        extract(bundle, clips, folder, batch=2)
    for path in here.rglob("*"):
        if path.is_file():
            assert (folder / path.relative_to(here)).read_bytes() == path.read_bytes()
    assert not (folder / "leases").exists()

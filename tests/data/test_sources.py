"""Clips of one's own as training and held-out clips."""

import json
from pathlib import Path

import numpy as np
import pytest

from mfm_jax.bundle import combined
from mfm_jax.data.clips import Clip, DataError
from mfm_jax.data.features import FeatureSource
from mfm_jax.data.loader import CachedDataset
from mfm_jax.data.sources import ClipFiles, ClipSource, hold_out
from mfm_jax.runtime.config import override
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import Recipe, TrainConfig
from tests.bundles import untrained_bundle
from tests.feature_folder import write_features


def videos(folder: Path, count: int, prefix: str = "clip") -> Path:
    """Files named like videos; listing opens none of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{prefix}{i:02d}.mp4").touch()
    return folder


def ids(clips: list[Clip]) -> list[str]:
    return [clip.id for clip in clips]


def test_a_folder_holds_some_clips_out_and_always_the_same(tmp_path):
    train, heldout = ClipFiles(str(videos(tmp_path / "a", 40))).clips(tmp_path)
    assert len(train) + len(heldout) == 40
    assert 1 <= len(heldout) <= 12
    assert not set(ids(train)) & set(ids(heldout))
    # More clips join, and none changes its side.
    more_train, more_heldout = ClipFiles(str(videos(tmp_path / "a", 60))).clips(tmp_path)
    assert set(ids(train)) <= set(ids(more_train))
    assert set(ids(heldout)) <= set(ids(more_heldout))


@pytest.mark.parametrize(("count", "share", "wanted"), [(2, 0.0, 1), (2, 1.0, 1), (5, 1.0, 4)])
def test_neither_side_is_empty(count, share, wanted):
    train, heldout = hold_out([Clip(str(i), Path(f"{i}.mp4")) for i in range(count)], share)
    assert (len(train), len(heldout)) == (count - wanted, wanted)


def test_one_clip_cannot_be_split(tmp_path):
    with pytest.raises(DataError, match="leaves no clip for heldout: add clips, or make the fold"):
        ClipFiles(str(videos(tmp_path / "a", 1))).clips(tmp_path)


def test_folders_named_train_and_heldout_are_the_splits(tmp_path):
    videos(tmp_path / "a" / "train", 3, "t")
    videos(tmp_path / "a" / "heldout", 2, "h")
    train, heldout = ClipFiles(str(tmp_path / "a")).clips(tmp_path)
    assert ids(train) == ["t00", "t01", "t02"]
    assert ids(heldout) == ["h00", "h01"]


def test_a_csv_may_say_which_are_held_out(tmp_path):
    folder, csv = videos(tmp_path / "v", 3), tmp_path / "list.csv"
    csv.write_text("file,split\nclip00.mp4,train\nclip01.mp4,test\nclip02.mp4,train\n")
    train, heldout = ClipFiles(str(csv), videos=str(folder)).clips(tmp_path)
    assert (ids(train), ids(heldout)) == (["clip00", "clip02"], ["clip01"])
    csv.write_text("file\nclip00.mp4\nclip01.mp4\nclip02.mp4\n")
    train, heldout = ClipFiles(str(csv), videos=str(folder)).clips(tmp_path)
    assert sorted(ids(train) + ids(heldout)) == ["clip00", "clip01", "clip02"]


def test_vggsounds_own_csv_has_splits(tmp_path):
    folder, csv = tmp_path / "v", tmp_path / "vggsound.csv"
    folder.mkdir()
    (folder / "a_000010.mp4").touch()
    csv.write_text("a,10,dog,train\nb,20,cat,test\n")
    train, heldout = ClipFiles(str(csv), videos=str(folder)).clips(tmp_path)
    assert (ids(train), ids(heldout)) == (["a_000010"], ["b_000020"])


def test_features_are_found_and_are_no_clips(tmp_path):
    for name in ("train", "heldout"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "features.json").write_text("{}")
    source = ClipFiles(str(tmp_path))
    assert source.features() == (tmp_path / "train", tmp_path / "heldout")
    with pytest.raises(DataError, match="holds features, and this network learns from pictures"):
        source.clips(tmp_path)
    (tmp_path / "heldout" / "features.json").unlink()
    with pytest.raises(DataError, match=r"no features in .*heldout: extract them with mfm extract"):
        source.features()


def test_further_features_of_the_same_clips_are_read_beside(tmp_path):
    bundle = untrained_bundle(tmp_path / "b")
    two = {"cavp": (3, 4), "audiomae": (2, 5)}, {"moving": (2, 32), "audiomae": (1, 1)}
    for name, shapes in zip(("one", "two"), two, strict=True):
        for part, clips in (("train", 5), ("heldout", 2)):
            write_features(bundle, tmp_path / name / part, clips, shapes)
    source = ClipFiles(str(tmp_path / "one"), beside=(str(tmp_path / "two"),))
    source.check()
    folders, further = source.features(), source.further_features()
    assert further == ([tmp_path / "two" / "train"], [tmp_path / "two" / "heldout"])
    joined = FeatureSource(folders.train, further.train)
    one, other = FeatureSource(folders.train), FeatureSource(*further.train)
    assert len(joined) == 5
    assert {n: x.shape for n, x in joined[3].items()} == {**two[1], **two[0]}
    np.testing.assert_array_equal(joined[3]["moving"], other[3]["moving"])
    np.testing.assert_array_equal(joined[3]["audiomae"], one[3]["audiomae"])
    with pytest.raises(DataError, match=r"two/heldout are of other clips .*\(2 and 5\): extract"):
        FeatureSource(folders.train, further.heldout)
    for path, beside in ((tmp_path / "one", "three"), (videos(tmp_path / "v", 3), "two")):
        with pytest.raises(DataError, match="there are no features in"):
            ClipFiles(str(path), beside=(str(tmp_path / beside),)).check()


def test_licences_of_features_beside_each_other_both_count(tmp_path):
    for name, licence in (("one", "MIT"), ("two", "CC-BY-NC-4.0")):
        for part in ("train", "heldout"):
            (tmp_path / name / part).mkdir(parents=True)
            told = {"licence": licence, "clips": 1, "ids": "", "fields": {}}
            (tmp_path / name / part / "features.json").write_text(json.dumps(told))
    source = ClipFiles(str(tmp_path / "one"), beside=(str(tmp_path / "two"),))
    assert source.data_licence == combined(["MIT", "CC-BY-NC-4.0"])


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "recipe.source is empty: set it to"), ("absent", "absent does not exist")],
)
def test_a_source_that_is_not_there_is_one_line(path, message, tmp_path):
    with pytest.raises(DataError, match=message):
        ClipFiles(path and str(tmp_path / path)).clips(tmp_path)


def test_a_path_stands_for_files_in_a_config():
    config = TrainConfig(Recipe(), OptimizerConfig(1e-3), steps=1, batch=1)
    changed = override(config, ["recipe.source=my/clips", "recipe.source.licence=CC0-1.0"])
    assert changed.recipe.source == ClipFiles("my/clips", licence="CC0-1.0")
    assert isinstance(changed.recipe.source, ClipSource)


def test_an_element_is_read_once():
    calls = []
    dataset = CachedDataset([{"x": 1}, {"x": 2}], lambda e: calls.append(e) or e, 1)
    assert [dataset[0], dataset[0]] == [{"x": 1}] * 2
    assert len(calls) == len(dataset) == 1


def test_once_there_is_no_more_room_elements_are_read_anew():
    calls = []
    elements = [{"x": np.zeros(100, np.uint8)} for _ in range(3)]
    dataset = CachedDataset(elements, lambda e: calls.append(1) or e, room=150)
    for _ in range(2):
        for i in range(3):
            dataset[i]
    assert len(calls) == 4, "two are kept"

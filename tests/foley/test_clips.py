"""The Foley world as a source of clips, in both grades."""

from pathlib import Path

import pytest

from mfm_jax.data.decoded import ClipSpec
from mfm_jax.data.sources import ClipFiles
from mfm_jax.errors import SettingError
from mfm_jax.foley.clips import FoleyClips
from mfm_jax.foley.recipes.labelled import LabelledRecipe
from mfm_jax.foley.world import World, read_events, stage
from mfm_jax.media.probe import probe


def made(folder: Path, **fields) -> tuple[list, list]:
    return FoleyClips(str(folder), train=2, heldout=1, **fields).clips(folder / "unused")


def test_base_videos_are_one_clip_each(tmp_path):
    train, heldout = made(tmp_path)
    assert [clip.id for clip in train] == ["0", "1"]
    assert [clip.id for clip in heldout] == ["10000000"]
    assert all(clip.start == 0 and clip.path.is_file() for clip in train + heldout)
    assert not (tmp_path / "unused").exists()


def test_without_a_folder_the_clips_lie_in_the_workdir(tmp_path):
    train, _ = FoleyClips(train=1, heldout=1).clips(tmp_path)
    assert train[0].path == tmp_path / "clips" / "0.mp4"


def test_training_videos_have_the_frame_rates_in_turn(tmp_path):
    train, heldout = made(tmp_path, rates=(25.0, 30.0))
    assert [clip.id for clip in train] == ["0", "1"]
    assert [probe(clip.path).fps for clip in train + heldout] == pytest.approx([25, 30, 25])
    same = [read_events(clip.path) for clip in made(tmp_path)[0]]
    assert [read_events(clip.path) for clip in train] == same


def test_hard_videos_are_clips_one_after_the_other(tmp_path):
    train, heldout = made(tmp_path, grade="hard")
    for seed in (0, 1):
        its = [clip for clip in train if clip.id.startswith(f"{seed}-")]
        seconds = stage(World.hard(), seed).seconds
        assert len(its) == int(seconds / 2.56) >= 1
        assert [clip.start for clip in its] == [i * 2.56 for i in range(len(its))]
        assert its[-1].start + ClipSpec.tiny().seconds <= seconds
        assert len({event.material for event in read_events(its[0].path)}) == 2
    assert len(heldout) >= 1


def test_an_unknown_grade_is_refused():
    with pytest.raises(SettingError, match="grade is base or hard, not 'easy'"):
        FoleyClips(grade="easy")


def test_all_clips_of_a_hard_folder_are_used():
    """The number of videos says nothing about the number of clips."""
    dataset = [{"x": i} for i in range(7)]
    for grade, lengths in (("base", (3, 2)), ("hard", (7, 7))):
        recipe = Echo(source=FoleyClips(grade=grade, train=3, heldout=2))
        assert tuple(map(len, recipe.cached(dataset, dataset))) == lengths


class Echo(LabelledRecipe):
    """Reads elements as they are."""

    def read(self, element):
        return element


def test_clips_beyond_what_the_source_asks_for_are_named(capsys):
    train, heldout = Echo(source=FoleyClips(train=2, heldout=9)).cached([{}] * 5, [{}] * 9)
    assert (len(train), len(heldout)) == (2, 9)
    assert capsys.readouterr().out == "train: 2 of 5 clips, as recipe.source says\n"


def test_clips_that_are_missing_are_named(capsys):
    Echo(source=FoleyClips(train=6, heldout=9)).cached([{}] * 5, [{}] * 9)
    assert capsys.readouterr().out == "train: 5 clips are there, of 6 in recipe.source\n"


def test_what_learns_from_labels_refuses_clips_without(tmp_path):
    with pytest.raises(SettingError, match="a Echo learns from the labels of Foley clips"):
        Echo(source=ClipFiles(str(tmp_path))).prepare(tmp_path)

"""The clips that recipes learn from, in both grades of the world."""

from pathlib import Path

import numpy as np
import pytest

from mfm_jax.data.clips import DataError
from mfm_jax.errors import SettingError
from mfm_jax.foley.clips import SPEC, FoleyRecipe, Remembered
from mfm_jax.foley.world import World, read_events, stage
from mfm_jax.media.probe import probe
from mfm_jax.train.recipes.cavp import CAVPRecipe
from mfm_jax.train.recipes.mapper import MapperRecipe


def made(folder: Path, **fields) -> tuple[list, list]:
    recipe = FoleyRecipe(clips=str(folder), train=2, heldout=1, **fields)
    return recipe.make_clips(folder)


def test_base_videos_are_one_clip_each(tmp_path):
    train, heldout = made(tmp_path)
    assert [clip.id for clip in train] == ["0", "1"]
    assert [clip.id for clip in heldout] == ["10000000"]
    assert all(clip.start == 0 and clip.path.is_file() for clip in train + heldout)


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
        assert its[-1].start + SPEC.seconds <= seconds
        assert len({event.material for event in read_events(its[0].path)}) == 2
    assert len(heldout) >= 1


@pytest.mark.parametrize("recipe", [FoleyRecipe, CAVPRecipe, MapperRecipe])
def test_a_grade_that_there_is_not(recipe):
    with pytest.raises(SettingError, match="grade is base, hard or own, not 'easy'"):
        recipe(grade="easy")


def test_all_clips_of_a_hard_folder_are_used():
    """The number of videos says nothing about the number of clips."""
    source = [{"x": i} for i in range(7)]
    for grade, lengths in (("base", (3, 2)), ("hard", (7, 7))):
        recipe = Echo(grade=grade, train=3, heldout=2)
        assert tuple(map(len, recipe.remembered(source, source))) == lengths


class Echo(FoleyRecipe):
    """Reads elements as they are."""

    def read(self, element):
        return element


def test_an_element_is_read_once():
    calls = []
    source = Remembered([{"x": 1}, {"x": 2}], lambda e: calls.append(e) or e, 1)
    assert [source[0], source[0]] == [{"x": 1}] * 2
    assert len(calls) == len(source) == 1


def test_once_there_is_no_more_room_elements_are_read_anew():
    calls = []
    elements = [{"x": np.zeros(100, np.uint8)} for _ in range(3)]
    source = Remembered(elements, lambda e: calls.append(1) or e, room=150)
    for _ in range(2):
        for i in range(3):
            source[i]
    assert len(calls) == 4, "two are kept"


def test_clips_of_ones_own_are_all_used_and_none_is_made(tmp_path):
    recipe = FoleyRecipe(grade="own")
    assert recipe.most == (None, None)
    with pytest.raises(DataError, match="nothing to train on: extract features of your clips"):
        recipe.make_clips(tmp_path)


def test_clips_that_are_not_used_are_not_passed_over_in_silence(capsys):
    class Recipe(FoleyRecipe):
        def read(self, element):
            return element

    train, heldout = Recipe(train=2, heldout=9).remembered([{}] * 5, [{}] * 9)
    assert (len(train), len(heldout)) == (2, 9)
    assert capsys.readouterr().out == "train: 2 of 5 clips, as recipe.train says\n"

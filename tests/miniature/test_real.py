"""Sound for real clips, tested with Foley clips in their place."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mfm_jax.errors import MediaError
from mfm_jax.foley.world import World, write_clip
from mfm_jax.media.video_info import VideoInfo
from miniature.__main__ import main
from miniature.real import Result, draw, find_videos, report
from miniature.still import measure_activity
from tests.bundles import untrained_bundle
from tests.silent import write_silent


def test_a_missing_or_empty_folder_is_one_clear_line(tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    for folder, said in ((tmp_path / "none", "is not a folder"), (tmp_path, "has no videos")):
        with pytest.raises(MediaError, match=said):
            find_videos(folder)
        assert main(["real", "--videos", str(folder), "-o", str(tmp_path / "out")]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert said in lines[0]
    assert not (tmp_path / "out").exists()


def test_videos_are_found_by_name_and_nothing_else_is(tmp_path):
    for name in ("b.mp4", "a.MOV", "c.mkv", "README.md", "d.wav"):
        (tmp_path / name).touch()
    assert [path.name for path in find_videos(tmp_path)] == ["a.MOV", "b.mp4", "c.mkv"]


def test_each_video_gets_a_row_and_a_place_in_the_figure(tmp_path, capsys):
    bundle, folder, out = (tmp_path / name for name in ("bundle", "videos", "out"))
    untrained_bundle(bundle, steps=1, guidance=1.0)
    loud = write_clip(replace(World(), seconds=4.0), 20_000_001, folder)
    write_silent(loud, folder / "silent.mp4")
    loud.with_suffix(".json").unlink()
    before = sorted(folder.iterdir())
    arguments = ["real", "--videos", str(folder), "--bundle", str(bundle), "-o", str(out)]
    assert main(arguments) == 0
    found = json.loads((out / "real.json").read_text())
    with_sound, without = found["rows"]
    assert (with_sound["video"], without["video"]) == ("20000001.mp4", "silent.mp4")
    assert with_sound["true_onsets_per_second"] > 0
    assert without["true_onsets_per_second"] is without["true_level"] is None
    assert with_sound["seconds"] == without["seconds"] == pytest.approx(4.0)
    # The same picture; the noise that the sound is made of is another.
    assert with_sound["level"] != without["level"]
    assert found["tables"][0]["rows"][1][4] == ""
    assert str(folder) not in json.dumps({**found, "command": ""})
    assert found["figure"] == "real.png"
    assert "20000001.mp4" in capsys.readouterr().out
    assert sorted(folder.iterdir()) == before
    with Image.open(out / "real.png") as picture:
        assert picture.width > 500


def test_the_figure_of_a_dozen_noises_is_small(tmp_path):
    rng = np.random.default_rng(0)
    results = []
    for i in range(12):
        wave = 0.2 * rng.standard_normal(160_000)
        if i % 3:
            wave *= np.sin(np.arange(160_000) / 3000) ** 20
        heard = measure_activity(wave.astype(np.float32))
        assert bool(len(heard.onsets)) == bool(i % 3)  # even noise has none
        info = VideoInfo(10.0, 25.0, 250, 64, 64, 0, True)
        results.append(
            Result(Path(f"{i}.mp4"), info, wave.astype(np.float32), heard, heard if i % 2 else None)
        )
    draw(tmp_path / "real.png", results)
    assert (tmp_path / "real.png").stat().st_size < 400_000
    rows = report(results)["tables"][0]["rows"]
    assert [row[0] for row in rows] == [f"{i}.mp4" for i in range(12)]

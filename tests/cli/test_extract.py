import pytest

from mfm_jax.bundle import write_bundle
from mfm_jax.cli import main
from mfm_jax.data import records
from mfm_jax.data.features import FeatureSource
from mfm_jax.foley.world import World, write_world
from tests.bundles import SETTINGS, untrained


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    parts = {"audiomae": untrained()["audiomae"]}
    return write_bundle(tmp_path_factory.mktemp("bundle"), parts, settings=SETTINGS).path


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """The CSV of three clips."""
    return write_world(World(), range(3), tmp_path_factory.mktemp("clips"))


def run(capsys, *arguments):
    code = main(["extract", *map(str, arguments)])
    return code, capsys.readouterr().err.splitlines()


def test_a_csv_of_clips(listed, bundle, tmp_path, capsys):
    folder = tmp_path / "new" / "features"
    code, lines = run(capsys, listed, "-o", folder, "--bundle", bundle, "--batch", 2)
    assert (code, lines) == (0, [f"{folder}: features of 3 of 3 clips"])
    assert len(FeatureSource(folder)) == 3
    # Again: all is there.
    assert run(capsys, listed, "-o", folder, "--bundle", bundle) == (code, lines)


def test_processes_on_any_machines_share_the_clips(listed, bundle, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(records, "SHARD", 2)
    folder = tmp_path / "features"
    options = [listed, "-o", folder, "--bundle", bundle, "--batch", 2, "--processes", 2]
    code, lines = run(capsys, *options, "--process", 1)
    assert (code, lines) == (
        0,
        [f"{folder}: this part is done, others are left to other processes"],
    )
    code, lines = run(capsys, *options, "--process", 0)
    assert (code, lines) == (0, [f"{folder}: features of 3 of 3 clips"])


def test_clips_that_fail_are_named_and_the_rest_done(listed, bundle, tmp_path, capsys):
    clips, folder = tmp_path / "clips", tmp_path / "features"
    clips.mkdir()
    (clips / "good.mp4").symlink_to(listed.parent / "0.mp4")
    (clips / "empty.mp4").touch()
    code, lines = run(capsys, clips, "-o", folder, "--bundle", bundle, "--batch", 2)
    assert code == 1
    assert lines == [
        f"empty is left out: {clips}/empty.mp4 is empty: copy or download it again",
        f"mfm extract: empty: {clips}/empty.mp4 is empty: copy or download it again",
        f"{folder}: features of 1 of 2 clips",
    ]


def test_vggsound_with_a_video_that_is_gone(listed, bundle, tmp_path, capsys):
    videos, folder = tmp_path / "videos", tmp_path / "features"
    videos.mkdir()
    (videos / "abcdefghijk_000030.mp4").symlink_to(listed.parent / "0.mp4")
    (tmp_path / "vggsound.csv").write_text(
        "abcdefghijk,30,dog barking,train\n-gone_-____,0,rain,train\nother______,5,sea,test\n"
    )
    options = ["--videos", videos, "--split", "train", "-o", folder, "--bundle", bundle]
    code, lines = run(capsys, tmp_path / "vggsound.csv", *options)
    assert code == 1
    assert lines[0].startswith(f"-gone_-_____000000 is left out: {videos}/-gone_-_____000000.mp4")
    assert lines[1].startswith(f"mfm extract: -gone_-_____000000: {videos}/-gone_-_____000000.mp4")
    assert lines[2:] == [f"{folder}: features of 1 of 2 clips"]
    assert len(FeatureSource(folder)) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.csv", "-o", "f"], "absent.csv does not exist: give a folder of videos or a CSV"),
        ([".", "-o", "f"], "no video in folder ."),
        (["CLIPS", "-o", "f", "--bundle", "absent"], "absent is not a bundle"),
        (["CLIPS", "-o", "f", "--process", "1"], "--processes N and --process I go together"),
        (["CLIPS", "-o", "f", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["CLIPS", "-o", "f", "--shard", "0"], "--shard must be at least 1, got 0"),
        (["CLIPS", "-o", "taken", "--bundle", "BUNDLE"], "taken is not empty and no dataset"),
    ],
)
def test_wrong_usage(listed, bundle, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").touch()
    stand_in = {"CLIPS": listed, "BUNDLE": bundle}
    code, lines = run(capsys, *(stand_in.get(a, a) for a in arguments))
    assert code == 2
    assert len(lines) == 1
    assert lines[0].startswith("mfm extract: ")
    assert message in lines[0]
    assert not (tmp_path / "f").exists()


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["extract", "-h"])
    assert stop.value.code == 0
    assert "CSV_OR_DIR" in capsys.readouterr().out

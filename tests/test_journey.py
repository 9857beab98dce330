"""The commands of docs/pod.md in a store, by several workers, some of which are killed."""

import os

import pytest

from tests.journey import Journey, differences, prepare, result, upload


@pytest.mark.slow
def test_a_store_gives_what_a_disk_gives(tmp_path, bucket, copies):
    folder, store = tmp_path / "here", bucket / "all"
    prepare(folder)
    upload(folder, store)
    Journey(folder, tmp_path / "programs").go()
    before, left = sorted(os.listdir(tmp_path)), ["train", "generate"]

    def kill(words):
        """Kill once, when something of a command is there and not all."""
        if words[0] not in left or "tiny_stage2" in words:
            return None
        left.remove(words[0])
        if words[0] == "train":
            return lambda: any((store / "stage1" / "checkpoints").glob("[2-6]"))
        return lambda: any((store / "out").glob("*.wav"))

    journey = Journey(store, tmp_path / "programs", kill)
    journey.go()
    assert (journey.kills, left) == (2, [])
    assert differences(result(store), result(folder)) == []
    assert sorted(os.listdir(tmp_path)) == before
    assert not os.path.lexists("gs:")

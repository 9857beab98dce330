"""A lease has one holder, whoever comes, goes or dies."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from mfm_jax.storage import leases as module
from mfm_jax.storage.leases import Leases


@pytest.fixture(params=["disk", "store"])
def folder(request, tmp_path):
    if request.param == "disk":
        return tmp_path / "leases"
    return request.getfixturevalue("bucket") / "leases"


def test_one_has_it_until_it_is_given_back(folder):
    with Leases(folder) as first, Leases(folder) as second:
        lease = first.take("0001")
        assert second.take("0001") is None
        assert second.take("0002") is not None
        assert second.holders() == {"0001": first.worker, "0002": second.worker}
        first.give_back(lease)
        assert second.take("0001") is not None
        assert first.take("0001") is None
        assert not first.holds(lease)
    assert Leases(folder).holders() == {}
    assert len([*folder.iterdir()]) == 2  # older ones are gone


def test_who_believes_that_there_was_none_does_not_get_what_another_has(folder):
    with Leases(folder) as first, Leases(folder) as late:
        first.give_back(first.take("0", is_new=True))
        assert late.take("0", is_new=True) is None  # the same number
        has = first.take("0")  # the second, and the file of the first is gone
        assert late.take("0", is_new=True) is None
        assert first.holds(has)
        assert [path.name for path in folder.iterdir()] == [has.file.name]


def test_the_lease_of_a_dead_worker_goes_to_another(folder, monkeypatch):
    monkeypatch.setattr(module, "SLACK", 0.1)
    dead = Leases(folder, seconds=0.2)  # nobody renews it
    lease = dead.take("0")
    with Leases(folder, seconds=0.4) as other:
        assert other.take("0") is None
        time.sleep(0.35)
        taken = other.take("0")
        assert taken is not None
        assert not dead.holds(lease)
        time.sleep(0.7)  # longer than it lasts unless it is renewed
        assert Leases(folder).take("0") is None
        dead.give_back(lease)  # it wakes up late
        assert other.holds(taken)


def test_never_two_at_once(folder):
    """Two workers race for one lease a thousand times."""
    rounds, both = 1000, Barrier(2)
    workers = [Leases(folder, worker=name) for name in "ab"]

    def race(worker):
        won = []
        for _ in range(rounds):
            both.wait()
            lease = worker.take("x")
            both.wait()
            won.append(lease is not None)
            if lease is not None:
                worker.give_back(lease)
            both.wait()
        return won

    with ThreadPoolExecutor(2) as pool:
        a, b = pool.map(race, workers)
    assert sum(a) + sum(b) == rounds
    assert not any(x and y for x, y in zip(a, b, strict=True))

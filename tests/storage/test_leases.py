"""A lease has one holder, whoever comes, goes or dies."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace

import pytest

from mfm_jax.storage import leases as module
from mfm_jax.storage.leases import SLACK, Leases


@pytest.fixture(params=["disk", "store"])
def folder(request, tmp_path):
    if request.param == "disk":
        return tmp_path / "leases"
    return request.getfixturevalue("bucket") / "leases"


@pytest.mark.parametrize("keeps", [False, True])
def test_one_has_it_until_it_is_given_back(folder, keeps):
    with Leases(folder, keeps=keeps) as first, Leases(folder, keeps=keeps) as second:
        lease = first.take("0001")
        assert second.take("0001") is None
        assert second.take("0002") is not None
        assert second.holders() == {"0001": first.worker, "0002": second.worker}
        first.give_back(lease)
        assert second.take("0001") is not None
        assert first.take("0001") is None
        assert not first.holds(lease)
    assert Leases(folder).holders() == {}
    assert len([*folder.iterdir()]) == (3 if keeps else 2)  # else older ones are gone


def test_who_believes_that_there_was_none_does_not_get_what_another_has(folder):
    with Leases(folder) as first, Leases(folder) as late:
        first.give_back(first.take("0", is_new=True))
        assert late.take("0", is_new=True) is None  # the same number
        has = first.take("0")  # the second, and the file of the first is gone
        assert late.take("0", is_new=True) is None
        assert first.holds(has)
        assert [path.name for path in folder.iterdir()] == [has.file.name]


def test_who_looked_long_ago_gets_nothing_that_others_had(folder):
    """Where leases stay, one that is made anew is the last one, however many came before."""
    with Leases(folder, keeps=True) as first, Leases(folder, keeps=True) as late:
        for number in range(1, 4):
            has = first.take("0")
            assert late.take("0", is_new=True) is None
            assert first.holds(has)
            assert has.file.name.endswith(f"{number}")
            first.give_back(has)
        assert first.holds(has)
        assert late.take("0") is not None
        assert not first.holds(has)


@pytest.fixture
def clock(monkeypatch):
    """Return the time that leases go by, which stands still until a test moves it."""
    clock = SimpleNamespace(now=time.time())
    monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: clock.now))
    return clock


@pytest.mark.parametrize("keeps", [False, True])
def test_the_lease_of_a_dead_worker_goes_to_another(folder, clock, keeps):
    dead = Leases(folder, seconds=10.0, keeps=keeps)  # nobody renews it
    lease = dead.take("0")
    other = Leases(folder, seconds=10.0, keeps=keeps)
    clock.now += 10 + 0.9 * SLACK
    assert other.take("0") is None
    clock.now += 0.2 * SLACK
    taken = other.take("0")
    assert taken is not None
    assert not dead.holds(lease)
    dead.give_back(lease)  # it wakes up late
    assert other.holds(taken)
    assert dead.take("0") is None


def test_the_lease_of_a_living_worker_does_not_end(folder, clock):
    with Leases(folder, seconds=0.4) as living:  # renewed ten times a second
        lease = living.take("0")
        for _ in range(3):
            clock.now += SLACK
            until = time.monotonic() + 60
            while lease.until < clock.now + 0.4 and time.monotonic() < until:
                time.sleep(0.02)
            assert Leases(folder).take("0") is None


@pytest.mark.parametrize(("keeps", "rounds"), [(False, 1000), (True, 200)])
def test_never_two_at_once(folder, keeps, rounds):
    """Two workers race for one lease a thousand times."""
    both = Barrier(2)
    workers = [Leases(folder, worker=name, keeps=keeps) for name in "ab"]

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

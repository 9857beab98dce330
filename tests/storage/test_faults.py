"""A store that is slow, fails, or is cut off for a while: nothing is lost, doubled or damaged."""

import asyncio
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mfm_jax.storage import addresses, files, retries
from mfm_jax.storage.copies import local_copy
from mfm_jax.storage.google import TRIES
from mfm_jax.storage.leases import Leases
from mfm_jax.storage.retries import AddressError
from tests.store_proxy import Proxy
from tests.store_server import use


@pytest.fixture
def proxy(store_server, bucket):
    """A proxy through which this process reads and writes the store."""
    addresses.objects_of.cache_clear()
    with Proxy(store_server) as between:
        use(between.url)
        yield between
        use(store_server)
    addresses.objects_of.cache_clear()


def work(bucket, number):
    """Write, read, list, lease and remove, as a worker does; return who got the lease."""
    folder, mine = bucket / "out", f"{number:03d}"
    with files.atomic_write(folder / mine) as part:
        part.write_bytes(mine.encode() * 1000)
    with local_copy(folder / mine) as here:
        assert here.read_bytes() == mine.encode() * 1000
    assert folder / mine in folder.iterdir()
    leases = Leases(bucket / "leases", worker=mine)
    lease = leases.take(str(number // 2))
    scratch = bucket / "scratch" / mine
    scratch.write_text("x")
    scratch.unlink(missing_ok=True)
    assert not scratch.exists()
    return lease is not None


def test_one_of_twenty_requests_fails(proxy, bucket):
    proxy.failing, proxy.delay = 0.05, 0.01
    with ThreadPoolExecutor(32) as pool:
        got = list(pool.map(lambda number: work(bucket, number), range(32)))
    assert proxy.failed > 5
    assert [sum(got[i : i + 2]) for i in range(0, 32, 2)] == [1] * 16
    proxy.failing = 0.0
    assert [path.name for path in sorted((bucket / "out").iterdir())] == [
        f"{number:03d}" for number in range(32)
    ]


def test_a_file_of_a_library_is_written_if_only_the_answer_is_lost(proxy, bucket, monkeypatch):
    """As Orbax writes the last file of a checkpoint, without which there is none."""
    asked = itertools.chain([1.0, 0.04], itertools.repeat(1.0))  # begin, done but not told, again
    monkeypatch.setattr(proxy, "_fate", lambda: next(asked))
    proxy.failing = 0.05
    with bucket.objects.library.open((bucket / "done.txt").key, "wb") as file:
        file.write(b"done")
    assert proxy.failed == 1
    assert (bucket / "done.txt").read_bytes() == b"done"


def test_a_library_waits_as_long_for_a_store_that_is_away(proxy, bucket, monkeypatch):
    """Orbax's requests for a save, of which gcsfs would try each for half a minute."""
    waited, sleep = [], asyncio.sleep

    async def at_once(seconds):
        waited.append(seconds)
        await sleep(0)

    fates = itertools.chain([0.0] * (TRIES - 1), itertools.repeat(1.0))
    monkeypatch.setattr(proxy, "_fate", lambda: next(fates))
    proxy.failing = 0.05
    library = bucket.objects.library
    monkeypatch.setattr("gcsfs.retry.asyncio.sleep", at_once)
    library.pipe_file((bucket / "done.txt").key, b"done")
    assert library.cat_file((bucket / "done.txt").key) == b"done"
    assert proxy.failed == TRIES - 1
    assert sum(waited) > 0.9 * retries.PATIENCE


@pytest.mark.parametrize("data", [b"", b"\r\n--\r\nbytes\r\n\xff\0"])
def test_a_small_object_takes_one_request_each_time(proxy, bucket, copies, data):
    file = bucket / "a b" / "é&?#%.wav"
    proxy.requests = 0
    file.create(data)
    file.write_bytes(data)
    assert (file.read_bytes(), file.stat().st_size, file.is_file()) == (data, len(data), True)
    with local_copy(file) as copy:
        assert copy.read_bytes() == data
    file.unlink()
    assert proxy.requests == 7
    assert not file.exists()


def test_a_cut_is_waited_for_and_then_told(proxy, bucket, monkeypatch):
    (bucket / "a").write_text("a")
    with proxy.cut_off():
        ending = threading.Timer(1.5, lambda: setattr(proxy, "cut", False))
        ending.start()
        began = time.monotonic()
        assert (bucket / "a").read_text() == "a"
        assert time.monotonic() - began > 1.0
    monkeypatch.setattr(retries, "PATIENCE", 0.0)
    file, told = bucket / "a", r"^gs://.*/a cannot be reached .*: see that the store"
    for call in (file.read_bytes, file.info, lambda: file.create(b"b"), file.unlink):
        with proxy.cut_off(), pytest.raises(AddressError, match=told):
            call()
    assert file.read_text() == "a"

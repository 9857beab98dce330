"""A store that is slow, fails, or is cut off for a while: nothing is lost, doubled or damaged."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mfm_jax.storage import addresses, files
from mfm_jax.storage.addresses import AddressError, StorePath
from mfm_jax.storage.copies import local_copy
from mfm_jax.storage.leases import Leases
from tests.store_proxy import Proxy
from tests.store_server import use


@pytest.fixture
def proxy(store_server, bucket):
    """A proxy through which this process reads and writes the store."""
    addresses.file_system.cache_clear()
    with Proxy(store_server) as between:
        use(between.url)
        yield between
        use(store_server)
    addresses.file_system.cache_clear()


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


def test_a_cut_is_waited_for_and_then_told(proxy, bucket, monkeypatch):
    (bucket / "a").write_text("a")
    with proxy.cut_off():
        ending = threading.Timer(1.5, lambda: setattr(proxy, "cut", False))
        ending.start()
        began = time.monotonic()
        assert (bucket / "a").read_text() == "a"
        assert time.monotonic() - began > 1.0
    # As when the library and this module have tried for long enough.
    monkeypatch.setattr(addresses, "PATIENCE", 0.0)

    def refused(key):
        raise ConnectionResetError("the connection was reset")

    monkeypatch.setattr(bucket.store, "cat_file", refused)
    with pytest.raises(AddressError, match=r"^gs://.*/a cannot be reached .*: see that the store"):
        StorePath(bucket / "a").read_bytes()

"""Reading ahead, and batches under way: order, bounded memory, and errors in their place."""

import threading
import time
from itertools import islice

import pytest

from mfm_jax.inference.stream import Device, batches, in_full, read_ahead


def test_items_come_in_order_however_long_a_source_takes():
    def read(source):
        for item in range(source % 3):
            time.sleep(0.002 * (7 * source % 5))
            yield 10 * source + item

    found = list(read_ahead(range(20), read, ahead=4))
    assert found == [(s, 10 * s + i) for s in range(20) for i in range(s % 3)]


def test_so_many_items_are_read_ahead_and_no_more():
    read, most = [], 6

    def numbers(source):
        for item in range(100):
            read.append((source, item))
            yield item

    items = read_ahead(range(3), numbers, ahead=most, threads=2)
    assert list(islice(items, 10)) == [(0, i) for i in range(10)]
    time.sleep(0.2)
    # Those that wait, one for the source whose turn it is, and one in the hand of each thread.
    assert len(read) <= 10 + most + 1 + 2
    items.close()
    assert len(read) <= 10 + most + 1 + 2
    assert not [t for t in threading.enumerate() if t.name.startswith("read")]


def test_an_error_is_raised_in_its_place():
    def read(source):
        yield source
        if source == 2:
            raise KeyError("odd")

    items = read_ahead(range(5), read, ahead=4)
    assert [source for source, _ in islice(items, 3)] == [0, 1, 2]
    with pytest.raises(KeyError, match="odd"):
        next(items)


def test_a_batch_has_one_key_and_the_rest_comes_last():
    items = [("a", 1), ("b", 2), ("a", 3), ("a", 4), ("b", 5)]
    found = list(batches(items, 2, key=lambda item: item[0]))
    assert found == [items[0:3:2], items[1:5:3], items[3:4]]
    assert in_full([1, 2], 4) == [1, 2, 2, 2]


def test_the_next_batch_is_started_before_the_last_is_fetched():
    told, may_fetch = [], threading.Event()

    def start(group):
        told.append(f"start {group[0]}")
        if len(told) == 2:
            may_fetch.set()
        return group

    def fetch(started):
        assert may_fetch.wait(10)
        return sum(started)

    device = Device(start, fetch)
    assert list(device.results([[1, 2], [3], [4]])) == [([1, 2], 3), ([3], 3), ([4], 4)]
    assert told == ["start 1", "start 3", "start 4"]


def test_a_batch_that_fails_is_given_its_error_and_the_others_their_results():
    def start(group):
        if group == [0]:
            raise ValueError("at once")
        return group

    device = Device(start, lambda group: 6 // (group[0] - 1))
    found = {group[0]: result for group, result in device.results([[0], [1], [2], [3]])}
    assert isinstance(found[0], ValueError)
    assert isinstance(found[1], ZeroDivisionError)
    assert (found[2], found[3]) == (6, 3)

"""Checks of conversion tables, for the test of every network.

`check_table(table, manifest, module)` needs no weights: the manifest gives keys and shapes of the
released checkpoint, the module is abstract and of the real size.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
import pytest

from convert.table import ConversionError, Table
from mfm_jax.storage.weights import WeightError, check_weights, named_weights


def _index_coded(manifest) -> dict[str, np.ndarray]:
    """Return index-coded arrays, but zero-stride ones for large sizes, which take no memory."""
    coded = {}
    for number, (key, (shape, _)) in enumerate(manifest.items()):
        size = int(np.prod(shape))
        if size <= 1 << 16:
            coded[key] = (np.arange(size, dtype=np.float64) + 1e7 * number).reshape(shape)
        else:
            coded[key] = np.broadcast_to(np.int8(0), shape)
    return coded


def _fits(table: Table, theirs: dict[str, np.ndarray], weights, *, there_and_back: bool) -> None:
    ours = list(table.to_ours(theirs))
    names = [name for name, _ in ours]
    assert len(set(names)) == len(names), "a weight of ours is written twice"
    check_weights(weights, {n: a.shape for n, a in ours}, where="our network")
    if there_and_back:
        computed = dict(table.computed(names))
        for key, array in table.to_theirs(dict(ours)):
            assert key in theirs, f"{key} is not a key of theirs"
            if key not in computed and theirs[key].size <= 1 << 16:
                np.testing.assert_array_equal(array, theirs[key], err_msg=key)


def _complete(table: Table, manifest, weights) -> None:
    """Check that the table gives the manifest, except for what the table ignores."""
    expected = table.shapes({name: leaf.shape for name, leaf in weights.items()})
    released = {k: tuple(shape) for k, (shape, _) in manifest.items() if not table.ignored(k)}
    assert expected.keys() == released.keys()
    computed = dict(table.computed(weights))
    for key, array in computed.items():
        assert str(array.dtype) == manifest[key][1], key
    assert {k: s for k, s in expected.items() if k not in computed} == {
        k: s for k, s in released.items() if k not in computed
    }


def check_table(
    table: Table, manifest, module, *, there_and_back: bool = True, others: Iterable[str] = ()
) -> None:
    """Check that keys are read once or ignored, leaves written once, no row dead, and the way back.

    `others` are keys of released files that belong to no part of the network.
    """
    weights = named_weights(module)
    coded = _index_coded(manifest)
    _fits(table, coded, weights, there_and_back=there_and_back)
    _complete(table, manifest, weights)
    expected = table.shapes({name: leaf.shape for name, leaf in weights.items()})
    unread = [key for key in (*manifest, *others) if key not in expected]
    assert all(map(table.ignored, unread))
    for ignore in table.ignore:
        assert ignore.reason
        fewer = dataclasses.replace(table, ignore=tuple(i for i in table.ignore if i is not ignore))
        assert not all(map(fewer.ignored, unread)), f"{ignore} is not needed"
    for row in table.rows:
        fewer = tuple(r for r in table.rows if r is not row)
        with pytest.raises((ConversionError, WeightError)):
            _fits(dataclasses.replace(table, rows=fewer), coded, weights, there_and_back=False)

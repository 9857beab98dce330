"""Weights that were saved as numpy's arrays: among torch's objects, in a pickle alone, in .npz."""

import io
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch

from convert.pickle_machine import Unknown
from convert.source import open_weights
from convert.tensors import SourceError
from convert.torch_file import read, saved

BASE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
ARRAYS = {
    "plain": BASE,
    "fortran": np.asfortranarray(BASE),
    "stepped": BASE[:, ::2, 1:],
    "scalar": np.array(3, np.float32),
    "empty": BASE[:0],
    "half": BASE.astype(np.float16),
    "brain": BASE.astype(ml_dtypes.bfloat16),
    "big": BASE.astype(">f4"),
    "integers": np.arange(3),
    "flags": np.array([True, False]),
}


def check(path, expected=None) -> None:
    found = {name: tensor.read() for name, tensor in open_weights(path).tensors.items()}
    expected = ARRAYS if expected is None else expected
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype.newbyteorder("="), name
        assert found[name].flags.c_contiguous
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("nested", [False, True])
def test_arrays_in_any_pickle(tmp_path, protocol, nested):
    content = {"state_dict": ARRAYS, "epoch": 3} if nested else ARRAYS
    torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol)
    check(tmp_path / "x.pt")
    old = {"pickle_protocol": protocol, "_use_new_zipfile_serialization": False}
    torch.save(content, tmp_path / "x.pth", **old)
    check(tmp_path / "x.pth")
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
    check(tmp_path / "x.pkl")


def test_names_of_older_numpys(tmp_path):
    content = pickle.dumps({"a": BASE}, 2).replace(b"numpy._core", b"numpy.core")
    (tmp_path / "x.pkl").write_bytes(content)
    check(tmp_path / "x.pkl", {"a": BASE})


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_in_npz(tmp_path, compressed):
    wanted = {k: a for k, a in ARRAYS.items() if k not in ("brain", "big")}
    (np.savez_compressed if compressed else np.savez)(tmp_path / "x.npz", **wanted)
    check(tmp_path / "x.npz", wanted)
    check(tmp_path, wanted)


def test_arrays_are_no_weights_beside_tensors(tmp_path):
    torch.save({"w": torch.ones(2), "history": BASE}, tmp_path / "x.pt")
    assert [*saved(tmp_path / "x.pt").tensors] == ["w"]
    words = {"names": np.array(["a", "b"]), "objects": np.array([{}, None]), "w": BASE}
    torch.save(words, tmp_path / "y.pt")
    check(tmp_path / "y.pt", {"w": BASE})


def changed(name: bytes, by: bytes) -> bytes:
    content = pickle.dumps({"a": BASE.astype(np.uint8)}, 4)
    assert name in content
    return content.replace(name, by, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            changed(b"K\x02K\x03K\x04\x87", b"K\x02K\x03K\x05\x87"),
            "more or fewer bytes than its shape",
        ),
        (changed(b"K\x02K\x03K\x04\x87", b"K\x02K\x03N\x87"), "impossible shape"),
        (changed(b"K\x02K\x03K\x04\x87", b"K\x02K\x03(l\x87"), "impossible shape|damaged"),
        (changed(b"\x8c\x02u1", b"\x8c\x02u8"), "more or fewer bytes than its shape"),
        (changed(b"\x8c\x02u1", b"\x8c\x02zz"), "is a pickle, but none of torch.save|damaged"),
        (changed(b"_reconstruct", b"_reconstrucT"), "is a pickle, but none of torch.save"),
    ],
)
def test_damaged_arrays_are_one_line(tmp_path, content, message):
    (tmp_path / "x.pkl").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        open_weights(tmp_path / "x.pkl")


def test_arrays_of_objects_name_nothing(tmp_path):
    """numpy would unpickle them."""

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.savez(tmp_path / "x.npz", evil=np.array([Evil()], object), w=BASE)
    (tmp_path / "ran").unlink(missing_ok=True)
    assert read(tmp_path / "x.npz")["evil"] == Unknown("numpy.ndarray")
    check(tmp_path / "x.npz", {"w": BASE})
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry[:-1], "is cut short or damaged"),
        (lambda entry: entry + b"x", "is cut short or damaged"),
        (lambda entry: entry[:40], "is cut short or damaged"),
        (lambda entry: entry.replace(b"'<f4'", b"'>f4'"), "big-endian numbers"),
        (lambda entry: entry.replace(b"(2, 3, 4)", b"(2, -3,4)"), "impossible shape|damaged"),
        (lambda entry: entry.replace(b"(2, 3, 4)", b"(2, 3, 9)"), "is cut short or damaged"),
        (lambda entry: entry.replace(b"'<f4'", b"1/0  "), "is cut short or damaged"),
    ],
)
def test_damaged_npz_is_one_line(tmp_path, change, message):
    buffer = io.BytesIO()
    np.save(buffer, BASE)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", change(buffer.getvalue()))
    with pytest.raises(SourceError, match=message):
        open_weights(tmp_path / "x.npz")


def test_a_flipped_bit_in_npz_is_found(tmp_path):
    np.savez(tmp_path / "x.npz", a=BASE)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[content.index(BASE.tobytes()) + 7] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    tensor = open_weights(tmp_path / "x.npz").tensors["a"]
    with pytest.raises(SourceError, match=r"other bytes than it says in its entry a\.npy"):
        tensor.read()

import json
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from convert.safetensors_file import DTYPES, is_safetensors, read_header, read_metadata, write
from convert.tensors import SourceError

NAMES = (
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz "
    "float8_e8m0fnu complex64 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool"
)
TORCH = [getattr(torch, name) for name in NAMES.split()]


def bits(array):
    """Return the bytes of a numpy array or a torch tensor."""
    if isinstance(array, torch.Tensor):
        return array.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return np.ascontiguousarray(array).tobytes()


def values(rng, dtype, shape):
    """Return random bytes as an array; bools are only 0 and 1."""
    array = np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape)
    return array.astype(np.uint8) % 2 == 1 if dtype.kind == "b" else array


def specs_of(arrays):
    return {name: (array.dtype, array.shape) for name, array in arrays.items()}


@pytest.mark.parametrize("dtype", TORCH, ids=str)
def test_reads_what_the_package_writes(tmp_path, dtype):
    theirs = {
        "matrix": torch.arange(12).remainder(2).to(dtype).reshape(3, 4),
        "scalar": torch.ones(()).to(dtype),
        "empty": torch.zeros(0, 3).to(dtype),
    }
    save_file(theirs, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert is_safetensors(tmp_path / "x.safetensors")
    ours = read_header(tmp_path / "x.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        array = tensor.read()
        assert array.shape == tensor.shape == tuple(theirs[name].shape)
        assert array.nbytes == tensor.nbytes
        assert str(dtype).removeprefix("torch.") == str(array.dtype)
        assert bits(array) == bits(theirs[name])
    assert read_metadata(tmp_path / "x.safetensors") == {"format": "pt"}


@pytest.mark.parametrize("dtype", TORCH, ids=str)
def test_writes_what_the_package_reads(tmp_path, dtype):
    name = str(dtype).removeprefix("torch.")
    ours = np.arange(12).reshape(3, 4) % 2
    arrays = {"a": ours.astype(np.dtype(getattr(ml_dtypes, name, name))), "b.ü": np.float32([1, 2])}
    write(tmp_path / "x.safetensors", specs_of(arrays), arrays.items(), {"format": "pt"})
    theirs = load_file(tmp_path / "x.safetensors")
    assert theirs.keys() == arrays.keys()
    assert theirs["a"].dtype == dtype
    for key, array in arrays.items():
        assert tuple(theirs[key].shape) == array.shape
        assert bits(theirs[key]) == bits(array)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=5),
        st.tuples(st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 3), max_size=4)),
        max_size=6,
    ),
    st.randoms(use_true_random=False),
)
def test_any_order_of_writing_gives_the_same_file(tmp_path_factory, specs, random):
    folder = tmp_path_factory.mktemp("order")
    rng = np.random.default_rng(0)
    arrays = {name: values(rng, dtype, shape) for name, (dtype, shape) in specs.items()}
    shuffled = random.sample(list(arrays.items()), len(arrays))
    write(folder / "a", specs_of(arrays), arrays.items())
    write(folder / "b", specs_of(dict(shuffled)), reversed(shuffled))
    assert (folder / "a").read_bytes() == (folder / "b").read_bytes()
    tensors = read_header(folder / "a")
    assert tensors.keys() == arrays.keys()
    for name, tensor in tensors.items():
        assert tensor.offset % tensor.dtype.itemsize == 0
        assert bits(tensor.read()) == bits(arrays[name])
    with safe_open(folder / "a", "np") as file:
        assert set(file.keys()) == arrays.keys()


def test_arrays_in_any_memory_order_are_written_in_c_order(tmp_path):
    array = np.arange(600_000, dtype=np.float32).reshape(30, 100, 200)
    arrays = {"f": array.transpose(2, 0, 1), "step": array[:, ::3, ::-2], "bf": np.float32(3)}
    arrays["bf"] = array.astype(ml_dtypes.bfloat16).T
    write(tmp_path / "x", specs_of(arrays), arrays.items())
    for name, tensor in read_header(tmp_path / "x").items():
        np.testing.assert_array_equal(tensor.read(), arrays[name])


def test_neither_way_holds_more_than_one_array(tmp_path):
    shape, count = (1000, 1000), 12
    size = 4 * 1000 * 1000
    specs = {str(i): (np.dtype(np.float32), shape) for i in range(count)}
    tracemalloc.start()
    try:
        # Transposed, so that writing it in one piece would take a copy.
        arrays = ((str(i), np.full(shape, i, np.float32).T) for i in range(count))
        write(tmp_path / "x", specs, arrays)
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        tensors = read_header(tmp_path / "x")
        header = tracemalloc.get_traced_memory()[1]
        assert [tensors[str(i)].read().max() for i in range(count)] == list(range(count))
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # The next array is made before the last one is dropped.
    assert written < 2.5 * size
    assert header < 0.1 * size
    assert read < 1.5 * size


FLOATS = {"a": (np.dtype(np.float32), (2,)), "b": (np.dtype(np.float32), (3,))}
A, B = ("a", np.zeros(2, np.float32)), ("b", np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ([A], "did not come: b"),
        ([A, B, A], "a comes twice"),
        ([A, B, ("c", A[1])], "c is not expected"),
        ([A, ("b", A[1])], r"b is float32 \(2,\), should be float32 \(3,\)"),
        ([A, ("b", np.zeros(3))], "b is float64"),
    ],
)
def test_refuses_arrays_other_than_announced(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "x", FLOATS, arrays)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ({"a": (np.dtype("<U3"), ())}, "cannot hold <U3"),
        ({"a": (np.dtype(np.complex128), ())}, "cannot hold complex128"),
        ({"__metadata__": A}, "cannot be called"),
    ],
)
def test_refuses_to_write_what_the_format_lacks(tmp_path, specs, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "x", specs, [])


def crafted(path, header, data=b"", size=None):
    """Write a file with this header (text, or a value for JSON) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)
    return path


def entry(begin=0, end=4, dtype="F32", shape=(1,)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


FOUR = b"\0" * 4


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"[]", b"", "not a JSON object"),
        (b' {"a": {}}', b"", "not a JSON object"),
        (b"{", b"", "not JSON"),
        (b'{"\xff": {}}', b"", "not JSON"),
        (b'{"a":' + b"[" * 100_000, b"", "not JSON"),
        ('{"a": {}}'.encode("utf-16"), b"", "not JSON"),
        (b'{"a": %d, "a": 1}' % 1, b"", "says twice what these are: a"),
        (b'{"a": {"dtype": "F32", "dtype": "F16"}}', b"", "says twice what these are: dtype"),
        (b'{"\\ud800": 1}', b"", "name is not text"),
        ({"a": 1}, b"", "does not say what a is"),
        ({"a\nb": 1}, b"", r"does not say what a\\nb is"),
        ({"a": {"dtype": "F32", "shape": [1]}}, FOUR, "does not say what a is"),
        ({"a": entry(shape=["1"])}, FOUR, "impossible shape"),
        ({"a": entry(shape=[True])}, FOUR, "impossible shape"),
        ({"a": entry(shape=[-1, -1])}, FOUR, "impossible shape"),
        ({"a": entry(shape=[1] * 65)}, FOUR, "impossible shape"),
        ({"a": entry(shape=[0, 1 << 40, 1 << 40], end=0)}, b"", "impossible shape"),
        ({"a": entry(shape=[1.0])}, FOUR, "impossible shape"),
        ({"a": entry(dtype="F4")}, FOUR, "type F4, which cannot be read"),
        ({"a": entry(end=8)}, FOUR * 2, "a, F32 .* at bytes 0 to 8"),
        ({"a": entry(begin=4, end=0)}, FOUR, "a, F32 .* at bytes 4 to 0"),
        ({"a": entry(begin=-4, end=0)}, FOUR, "a, F32 .* at bytes -4 to 0"),
        ({"a": entry(begin=False)}, FOUR, "does not say what a is"),
        ({"a": entry(), "b": entry(8, 12)}, FOUR * 3, "a hole before b"),
        ({"a": entry(4, 8)}, FOUR * 2, "a hole before a"),
        ({"a": entry(), "b": entry()}, FOUR, "an overlap before b"),
        ({"a": entry(0, 8, shape=[2]), "b": entry(4, 8)}, FOUR * 2, "an overlap before b"),
        ({"a": entry(), "b": entry(4, 8)}, FOUR, "cut short by 4 bytes"),
        ({"a": entry()}, FOUR + b"\0", "1 bytes after its last tensor"),
    ],
)
def test_refuses_a_header_that_breaks_the_specification(tmp_path, header, data, message):
    path = crafted(tmp_path / "x.safetensors", header, data)
    with pytest.raises(SourceError, match=message) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path} ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "too short"),
        (b"\0" * 7, "too short"),
        (struct.pack("<Q", 100_000_001) + b"{", "header of 100000001 bytes"),
        (struct.pack("<Q", 99) + b"{}", "cut short in its header"),
    ],
)
def test_refuses_a_file_without_a_whole_header(tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        read_header(tmp_path / "x")


def test_metadata_is_a_table_of_texts(tmp_path):
    assert read_metadata(crafted(tmp_path / "x", {})) == {}
    with pytest.raises(SourceError, match="not a table of texts"):
        read_metadata(crafted(tmp_path / "x", {"__metadata__": {"a": 1}}))


def test_a_file_that_shrank_is_cut_short(tmp_path):
    write(tmp_path / "x", FLOATS, [A, B])
    tensors = read_header(tmp_path / "x")
    (tmp_path / "x").write_bytes((tmp_path / "x").read_bytes()[:-1])
    with pytest.raises(SourceError, match="is cut short"):
        [tensor.read() for tensor in tensors.values()]


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(SourceError, match=r"cannot be read \(no such file or directory\)"):
        read_header(tmp_path / "absent")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_accepts_nothing_that_the_package_refuses(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("flips")
    write(folder / "x", {**FLOATS, "c": (np.dtype(np.int8), (1, 3))}, [
        A, B, ("c", np.zeros((1, 3), np.int8)),
    ])  # fmt: skip
    content = bytearray((folder / "x").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)) | st.none())
    (folder / "x").write_bytes(bytes(content[:cut]))
    try:
        ours = {name: tensor.read() for name, tensor in read_header(folder / "x").items()}
    except SourceError:
        return
    theirs = load_file(folder / "x")
    assert ours.keys() == theirs.keys()
    assert all(bits(theirs[name]) == bits(array) for name, array in ours.items())

import argparse
import collections
import contextlib
import functools
import gzip
import io
import pathlib
import pickle
import pickletools
import re
import struct
import tarfile
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from convert import pickle_machine, torch_file
from convert.pickle_machine import Global, Unknown
from convert.tensors import CHUNK, Problem, SourceError, Tensor
from convert.torch_file import FUNCTIONS, Storage, read, saved

NAMES = (
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz "
    "float8_e8m0fnu complex128 complex64 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool"
)
TORCH = [getattr(torch, name) for name in NAMES.split()]
LAYOUTS = {"zip": True, "plain": False}
unpickled = functools.partial(pickle_machine.unpickled, functions=FUNCTIONS)


def state_dict(path):
    """Return the weights in a file."""
    return saved(path).tensors


class Custom:
    """A class that the reader does not know."""

    def __init__(self, tensor):
        self.tensor = tensor
        self.table = {"a": tensor}


class CustomDict(dict):
    """A subclass of dict."""


@pytest.fixture(params=LAYOUTS)
def save(request, tmp_path):
    """`save(content)` writes a file of torch.save in either layout and returns its path."""

    def saved(content, **options):
        path = tmp_path / f"{request.param}.pth"
        torch.save(content, path, _use_new_zipfile_serialization=LAYOUTS[request.param], **options)
        return path

    return saved


def rezipped(path, change=lambda entries: entries, compression=zipfile.ZIP_STORED):
    """Change the entries, `{name: content}`, of a zip file."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in change(entries).items():
            archive.writestr(name, content)
    return path


def same(ours, theirs):
    """Return whether our array has the type, shape and bits of their tensor."""
    theirs = theirs.detach().clone(memory_format=torch.contiguous_format)
    flat = theirs.reshape(-1).view(torch.uint8) if theirs.numel() else torch.zeros(0)
    return (
        str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
        and ours.shape == tuple(theirs.shape)
        and ours.flags.c_contiguous
        and ours.tobytes() == flat.numpy().tobytes()
    )


def all_same(path, theirs):
    ours = state_dict(path)
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert tensor.nbytes == theirs[name].numel() * theirs[name].element_size()
        assert same(tensor.read(), theirs[name]), name


# Tensors


@pytest.mark.parametrize("dtype", TORCH, ids=str)
def test_reads_every_type(save, dtype):
    matrix = torch.arange(12).remainder(7).to(dtype).reshape(3, 4)
    theirs = {"matrix": matrix, "scalar": matrix[0, 1].clone(), "empty": matrix[:0].clone()}
    all_same(save(theirs), theirs)


def test_reads_views_of_one_storage(save):
    base = torch.arange(120.0).reshape(4, 5, 6)
    theirs = {
        "base": base,
        "again": base,
        "transposed": base.permute(2, 0, 1),
        "stepped": base[1:3, ::2, 1::3],
        "row": base[2],
        "scalar": base[3, 4, 5],
        "expanded": base[0, 0].expand(3, 2, 6),
        "one": base[2:3, :, 1:2],
        "empty": base[4:],
    }
    all_same(save(theirs), theirs)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=4),
    st.integers(0, 20),
    st.booleans(),
)
def test_reads_any_view(tmp_path_factory, axes, offset, zipped):
    shape, strides = [n for n, _ in axes], [stride for _, stride in axes]
    view = torch.as_strided(torch.arange(150, dtype=torch.int16), shape, strides, offset)
    path = tmp_path_factory.mktemp("view") / "x.pt"
    torch.save({"view": view}, path, _use_new_zipfile_serialization=zipped)
    all_same(path, {"view": view})


def test_reads_parameters_and_buffers(save):
    weight = torch.arange(6.0).reshape(2, 3)
    noted = torch.nn.Parameter(weight + 1)
    noted.note = "an attribute makes torch save it in another way"
    module = torch.nn.BatchNorm1d(3)
    theirs = {
        "parameter": torch.nn.Parameter(weight),
        "noted": noted,
        "buffer": torch.nn.Buffer(weight + 2),
        **module.state_dict(),
    }
    all_same(save(theirs), theirs)


def test_reads_a_state_dict_with_its_metadata(save):
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
    assert module.state_dict()._metadata
    all_same(save(module.state_dict()), module.state_dict())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_every_binary_protocol(save, protocol):
    theirs = {"a": torch.arange(3.0), "é": torch.arange(4)}
    all_same(save(theirs, pickle_protocol=protocol), theirs)


def test_reads_untyped_storages(save):
    tree = read(save({"storage": torch.arange(3.0).untyped_storage(), "x": torch.arange(3.0)}))
    assert tree["storage"].contents.nbytes == 12
    assert same(tree["x"].read(), torch.arange(3.0))


def test_reads_a_zip_that_was_compressed_since(tmp_path):
    large = torch.arange(1_500_000) % 1000  # more than is inflated at a time
    theirs = {
        "large": large,
        "late": large[1_400_000:],
        # The last bytes of the stream inflate to more than fits beside what came before.
        "zeros": torch.zeros(CHUNK + 100, dtype=torch.uint8),
        "view": torch.arange(5000.0)[1234:].reshape(-1, 2).t(),
        "noise": torch.randn(300_000, generator=torch.Generator().manual_seed(0)),
    }
    torch.save(theirs, tmp_path / "x.pth")
    path = rezipped(tmp_path / "x.pth", compression=zipfile.ZIP_DEFLATED)
    assert state_dict(path)["large"].deflated
    all_same(path, theirs)


def test_names_in_a_zip_do_not_matter(tmp_path):
    """Nothing is extracted: neither the top folder's name nor other entries lead anywhere."""
    theirs = {"a": torch.arange(3.0)}
    torch.save(theirs, tmp_path / "x.pth")
    rezipped(
        tmp_path / "x.pth",
        lambda entries: (
            {"../../evil": b"", "/abs": b"", "../x/data.pkl": b"no"}
            | {name.replace("x/", "../", 1): content for name, content in entries.items()}
        ),
    )
    all_same(tmp_path / "x.pth", theirs)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"]


def test_nothing_is_read_before_it_is_asked_for(save):
    size = 8 << 20
    path = save({str(i): torch.zeros(size, dtype=torch.uint8) for i in range(4)})
    tracemalloc.start()
    try:
        tensors = state_dict(path)
        assert tracemalloc.get_traced_memory()[1] < 0.1 * size
        for tensor in tensors.values():
            tensor.read()
        assert tracemalloc.get_traced_memory()[1] < 1.1 * size
    finally:
        tracemalloc.stop()


# Where the tensors are in what was saved


def test_finds_the_tensors(save):
    weights = {"w": torch.arange(3.0), "epoch": 3, "name": "x", "none": None}
    other = {"w": torch.zeros(1)}
    for content in (
        weights,
        {"state_dict": weights, "model": other, "step": torch.tensor(3)},
        {"model": weights, "optimizer": {"state": {0: {"step": torch.tensor(1)}}}},
        {"model": {"depth": 2}, "state_dict": 7, **weights},
        {"state_dict": collections.OrderedDict(weights)},
        {"state_dict": collections.defaultdict(list, weights)},
    ):
        all_same(save(content), {"w": weights["w"]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 1, "net": {"w": torch.zeros(1)}, 5: 6}, "in state_dict, model, .*: epoch, net$"),
        ({}, "its keys: none"),
        ([torch.zeros(1)], "but a list: save its state_dict"),
        (torch.zeros(1), "but a Tensor: save its state_dict"),
        (torch.nn.Linear(2, 2), r"but a torch\.nn\.modules\.linear\.Linear: save its state_dict"),
        ({"a": torch.zeros(1), "s": torch.eye(2).to_sparse()}, r"s \(torch\._utils\._rebuild_spa"),
        ({"a": torch.zeros(1), 7: torch.zeros(1)}, "name is not text"),
        ({"a": torch.zeros(1, dtype=torch.complex64).conj()}, "conjugated"),
        ({"a": torch.zeros(1).expand(1 << 27)}, "repeats a storage in a tensor of 536870912"),
    ],
)
def test_says_why_there_are_none(save, content, message):
    with pytest.raises(SourceError, match=message):
        state_dict(save(content))


# Everything else that checkpoints are full of


def lightning():
    weights = {"w": torch.arange(4.0), "b": torch.nn.Parameter(torch.ones(2))}
    optimizer = torch.optim.Adam([weights["b"]])
    weights["b"].sum().backward()
    optimizer.step()
    return weights, {
        "state_dict": collections.OrderedDict(weights),
        "optimizer_states": [optimizer.state_dict()],
        "hyper_parameters": argparse.Namespace(lr=1e-3, out=pathlib.PurePosixPath("/x")),
        "callbacks": {
            Custom: {"best": pathlib.PosixPath("a")},
            ("a", 1): 2,
            1 << 60: 3,
            "k": 4,
            5: 6,
        },
        "scalar": np.float64(3),
        "array": np.arange(12).reshape(3, 4),
        "custom": Custom(torch.zeros(3)),
        "table": CustomDict(a=1),
        "act": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
        "counts": collections.Counter("abca"),
        "groups": collections.defaultdict(list, {"a": [1]}),
        "sets": ({1, 2}, frozenset("ab"), {("a", 1)}),
        "shape": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "dtype": torch.float16,
        "kind": type(None),
        "number": (1 << 100, -5, 1.5, 2j, True, None, b"bytes", bytearray(b"b"), range(3)),
        "error": ValueError("x"),
        "function": torch.nn.functional.gelu,
    }


@pytest.mark.parametrize("protocol", [2, 4])
def test_reads_the_tensors_among_other_objects(save, protocol):
    weights, content = lightning()
    path = save(content, pickle_protocol=protocol)
    all_same(path, weights)
    tree = read(path)
    assert tree.keys() == content.keys()
    assert tree["hyper_parameters"] == Unknown("argparse.Namespace")
    assert tree["custom"] == Unknown(f"{__name__}.Custom")
    assert tree["table"] == Unknown(f"{__name__}.CustomDict")
    assert tree["act"] == Unknown("functools.partial")
    assert tree["function"] == Global("torch._C._nn.gelu")
    assert tree["dtype"] == Global("torch.float16")
    assert tree["callbacks"] == {"k": 4, 5: 6}
    assert tree["counts"] == {"a": 2, "b": 1, "c": 1}
    assert tree["groups"] == {"a": [1]}
    assert tree["shape"] == (2, 3)
    assert tree["number"][:3] == (1 << 100, -5, 1.5)
    moments = tree["optimizer_states"][0]["state"][0]["exp_avg"]
    np.testing.assert_allclose(moments.read(), 0.1, rtol=1e-6)


class Scheduler:
    """A class that the reader does not know, with methods."""

    def __init__(self):
        self.phases = [1, 2]

    def anneal(self, start):
        return start

    @staticmethod
    def cosine(start):
        return start


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_the_tensors_beside_bound_methods(save, protocol):
    """As schedulers of several versions of PyTorch have them in their state."""
    weights = {"w": torch.arange(3.0)}
    methods = {
        "bound": Scheduler().anneal,
        "static": Scheduler.cosine,
        "of a list": [].append,
        "of a table": collections.OrderedDict().get,
        "of a text": "a".join,
        "of a class": collections.OrderedDict.fromkeys,
        "unbound": str.upper,
        "called": functools.partial(Scheduler().anneal, 1),
    }
    path = save({"state_dict": weights, "lr_schedulers": [methods]}, pickle_protocol=protocol)
    all_same(path, weights)
    (tree,) = read(path)["lr_schedulers"]
    assert tree["bound"] == Unknown(f"{__name__}.Scheduler.anneal")
    assert all(isinstance(value, Global | Unknown) for value in tree.values())


def plain(leaves):
    return st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | leaves,
        lambda inner: (
            st.lists(inner)
            | st.lists(inner).map(tuple)
            | st.dictionaries(st.text() | st.integers(-(1 << 59), 1 << 59), inner)
            | st.dictionaries(st.text(), inner).map(collections.OrderedDict)
        ),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    # Before protocol 3 there were no bytes.
    st.tuples(plain(st.nothing()), st.integers(0, 2))
    | st.tuples(plain(st.binary()), st.integers(3, 5))
)
def test_plain_data_comes_out_as_it_went_in(drawn):
    content, protocol = drawn
    assert unpickled(io.BytesIO(pickle.dumps(content, protocol))) == content


@pytest.mark.parametrize(
    "content",
    [
        b"K\x01(0.",
        b"K\x01(K\x02K\x031.",
        b"(K\x01K\x020t.",
        b"K\x012\x86.",
        b"(K\x01K\x02l.",
        b"(K\x01K\x02d.",
        b"](K\x01K\x02eK\x03a.",
        b"}(K\x01K\x02K\x03K\x04uK\x05K\x06s.",
        b"NK\x01K\x02K\x03\x87\x86.",
        b"K\x01K\x02K\x03p7\nq\x01g7\n\x87.",
        b"K\x01\x94K\x02\x94h\x00j\x01\x00\x00\x00\x87.",
        b"I01\nI-7\nF1.5\n\x87.",
        b"S'a\\n'\nV\\u00e9\nU\x01b\x87.",
    ],
)
def test_the_stack_works_as_pickles_does(content):
    assert unpickled(io.BytesIO(content)) == pickle.loads(content)


def test_reads_lists_and_tables_that_hold_themselves():
    content = [{}]
    content[0]["me"] = content
    ours = unpickled(io.BytesIO(pickle.dumps(content)))
    assert ours[0]["me"] is ours


# Files that were made to attack, written in pickle's instructions


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def raw(value):
    return b"B" + struct.pack("<I", len(value)) + value


def name(path):
    module, _, last = path.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def call(function, *arguments):
    made = name(function) if isinstance(function, str) else function
    return made + b"(" + b"".join(arguments) + b"tR"


def program(*parts):
    return b"\x80\x02" + b"".join(parts) + b"."


def plain_file(content, storages=b"", keys=(), little_endian=True):
    """Write a file of torch.save before 1.6 with this pickle."""
    before = (torch_file.MAGIC, torch_file.PROTOCOL, {"little_endian": little_endian})
    parts = [pickle.dumps(part, 2) for part in before]
    return b"".join(parts) + content + pickle.dumps(list(keys), 2) + storages


def put(content, path):
    """Write a file of torch.save with this pickle, in the layout of the file's suffix."""
    if path.name == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    else:
        path.write_bytes(plain_file(content))
    return path


def attacks(sentinel):
    """Return pickles that create the file `sentinel` if they are unpickled."""
    shell, python = text(f"touch {sentinel}"), text(f"open({str(sentinel)!r}, 'w').close()")
    system = call("posix.system", shell)
    imported = call("builtins.__import__", text("os"))
    found = call("importlib.import_module", text("os"))
    code = call("builtins.compile", python, text("x"), text("exec"))
    return {
        "reduce": program(system),
        "inst": b"(" + shell + b"iposix\nsystem\n.",
        "obj": b"(" + name("posix.system") + shell + b"o.",
        "protocol 0": f"cposix\nsystem\n(S'touch {sentinel}'\ntR.".encode(),
        "protocol 4": b"\x80\x04" + text("posix") + text("system") + b"\x93" + shell + b"\x85R.",
        "python 2": program(call("__builtin__.eval", python)),
        "memo": program(name("posix.system"), b"q\x000h\x00", shell, b"\x85R"),
        "dotted": b"\x80\x04" + text("shutil") + text("os.system") + b"\x93" + shell + b"\x85R.",
        "eval": program(call("builtins.eval", python)),
        "exec": program(call("builtins.exec", python)),
        "getattr": program(call(call("builtins.getattr", imported, text("system")), shell)),
        "import": program(call(call("builtins.getattr", found, text("system")), shell)),
        "map": program(
            call("builtins.list", call("builtins.map", name("posix.system"), b"]" + shell + b"a"))
        ),
        "attrgetter": program(
            call(call(call("operator.attrgetter", text("system")), imported), shell)
        ),
        "subprocess": program(call("subprocess.getoutput", shell)),
        "runpy": program(call("runpy._run_code", code, b"}")),
        "nested": program(call("_pickle.loads", raw(program(system)))),
        "nested file": program(
            call("torch.storage._load_from_bytes", raw(plain_file(program(system))))
        ),
        "timeit": program(call("timeit.timeit", text("pass"), python, name("time.time"), b"K\x01")),
        # An object whose __setstate__ is a function, which is called with the state.
        "setstate": program(
            call("types.SimpleNamespace"),
            b"}" + text("__setstate__") + name("posix.system") + b"sb" + shell + b"b",
        ),
        "in a key": program(b"}", system, b"K\x01s"),
        "in a persistent id": program(system, b"Q"),
        "in a tensor": program(call("torch._utils._rebuild_parameter", system, b"\x89N")),
    }


@pytest.mark.parametrize("attack", attacks(""))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_runs_nothing(tmp_path, attack, layout):
    sentinel = tmp_path / "sentinel"
    content = attacks(sentinel)[attack]
    with contextlib.suppress(pickle.UnpicklingError, TypeError, AttributeError):
        pickle.loads(content)
    assert sentinel.exists(), "this attack would do nothing anyway"
    sentinel.unlink()
    with pytest.raises(SourceError, match=r"names [\w.]+, which .*: refused; get it from a source"):
        state_dict(put(content, tmp_path / layout))
    assert not sentinel.exists()


HOSTILE = (
    "posix.system nt.system os.popen os.path.join subprocess.Popen sys.modules sys.exit pty.spawn "
    "builtins.eval builtins.exec builtins.open builtins.__import__ builtins.print "
    "builtins.map builtins.memoryview builtins.super __builtin__.execfile __builtin__.apply "
    "builtins.object.__reduce__ builtins.int.from_bytes commands.getoutput runpy.run_path "
    "importlib.import_module importlib.util.find_spec code.interact socket.socket shutil.rmtree "
    "ctypes.CDLL pickle.loads _pickle.Unpickler marshal.loads torch.load torch.hub.load "
    "torch.serialization.load torch.storage._load_from_bytes torch.jit.load torch.os.system "
    "operator.attrgetter _operator.methodcaller functools.reduce copyreg.add_extension io.open "
    "numpy.load torch.serialization.os.system numpy.f2py.compile webbrowser.open "
    "collections.OrderedDict.__init__.__globals__ torch.Tensor.__class__ a.__dict__.b"
)
HARMLESS = (
    "functools.partial builtins.set builtins.complex builtins.ValueError builtins.type "
    "__builtin__.unicode types.SimpleNamespace copyreg._reconstructor copy_reg.__newobj__ "
    "pathlib.PosixPath datetime.datetime code.model.Net http_model.Net trace.Recorder "
    "__main__.Config numpy.core.multiarray.scalar numpy._core.multiarray._reconstruct "
    "torch.nn.functional.gelu omegaconf.dictconfig.DictConfig _codecs.encode os_model.os "
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint builtins.slice operator.add"
)


@pytest.mark.parametrize("path", HOSTILE.split())
def test_refuses_names_that_no_checkpoint_needs(path):
    with pytest.raises(Problem, match=f"names {re.escape(path)}, which"):
        unpickled(io.BytesIO(program(name(path))))
    module, _, last = path.partition(".")
    with pytest.raises(Problem, match=f"names {re.escape(path)}, which"):
        unpickled(io.BytesIO(program(text(module), text(last), b"\x93")))


@pytest.mark.parametrize(
    "made",
    [
        call(
            "builtins.getattr", call("builtins.getattr", name("torch"), text("os")), text("system")
        ),
        call("__builtin__.getattr", name("os_model.os"), text("system")),
        call("builtins.getattr", name("a.b"), text("__globals__")),
        call("builtins.getattr", call("a.B"), text("__class__")),
        call("builtins.getattr", b"]", text("__reduce__")),
    ],
)
def test_attributes_lead_no_further_than_names(made):
    with pytest.raises(Problem, match="which reaches into the interpreter"):
        unpickled(io.BytesIO(program(made)))


@pytest.mark.parametrize("path", HARMLESS.split())
def test_other_names_mean_nothing(path):
    assert unpickled(io.BytesIO(program(name(path)))) == Global(path)
    made = unpickled(io.BytesIO(program(call(path, text("x"), b"}"))))
    assert made == Unknown(path)


@pytest.mark.parametrize(
    "made",
    [
        name("my.Thing"),
        call("my.Thing"),
        call("my.Thing", text("x")),
        call(call("my.Thing"), text("x")),
        name("my.Thing") + b")\x81",
        name("my.Thing") + b")}\x92",
        b"(imy\nThing\n",
        b"(" + name("my.Thing") + b"o",
        b"\x8f",
        b"(\x91",
    ],
)
@pytest.mark.parametrize(
    "change",
    [
        b"}" + text("__class__") + text("x") + b"sb",
        b"N}" + text("__dict__") + text("x") + b"s\x86b",
        text("state") + b"b",
        b"K\x01K\x02s",
        b"(K\x01K\x02u",
        b"K\x01a",
        b"(K\x01e",
        b"(K\x01\x90",
    ],
)
def test_unknown_objects_swallow_everything(made, change):
    before = unpickled(io.BytesIO(program(made)))
    assert isinstance(before, Global | Unknown)
    if isinstance(before, Global) and not change.endswith(b"b"):
        with pytest.raises(Problem, match="damaged"):
            unpickled(io.BytesIO(program(made, change)))
    else:
        assert unpickled(io.BytesIO(program(made, change))) == before


def numbers(*values):
    return b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"


def storage(kind="torch.FloatStorage", key="0", count=b"K\x0a", more=b""):
    return b"(" + text("storage") + name(kind) + text(key) + text("cpu") + count + more + b"tQ"


def crafted(path, *tensors):
    """Write a zip file of tensors, given as instructions, and a storage of ten numbers."""
    with zipfile.ZipFile(path, "w") as archive:
        items = (text(str(i)) + tensor + b"s" for i, tensor in enumerate(tensors))
        archive.writestr("x/data.pkl", program(b"}", *items))
        archive.writestr("x/data/0", np.arange(10, dtype=np.float32).tobytes())
        archive.writestr("x/secret", b"\xff" * 1000)
    return path


def tensor(offset=0, shape=(2, 3), strides=(3, 1), where=None, more=b""):
    place = b"I%d\n" % offset + numbers(*shape) + numbers(*strides)
    return call("torch._utils._rebuild_tensor_v2", where or storage(), place, b"\x89}", more)


@pytest.mark.parametrize(
    ("made", "values"),
    [
        (tensor(), [[0, 1, 2], [3, 4, 5]]),
        (tensor(offset=4), [[4, 5, 6], [7, 8, 9]]),
        (tensor(offset=1, shape=(2, 2), strides=(7, 1)), [[1, 2], [8, 9]]),
        (tensor(offset=9, shape=(), strides=()), 9),
        (tensor(offset=9, shape=(1, 1), strides=(1 << 70, 5)), [[9]]),
        (tensor(offset=1 << 70, shape=(0, 3)), np.zeros((0, 3))),
        (tensor(shape=(1, 3), strides=(0, 0)), [[0, 0, 0]]),
    ],
)
def test_reads_crafted_tensors(tmp_path, made, values):
    read_back = state_dict(crafted(tmp_path / "x.pt", made))["0"].read()
    assert read_back.dtype == np.float32
    np.testing.assert_array_equal(read_back, np.float32(values))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (tensor(offset=5), "reaches beyond its storage"),
        (tensor(offset=-1), "impossible strides"),
        (tensor(offset=1 << 70), "reaches beyond its storage"),
        (tensor(shape=(4, 3)), "reaches beyond its storage"),
        (tensor(strides=(8, 1)), "reaches beyond its storage"),
        (tensor(strides=(-3, 1)), "impossible strides"),
        (tensor(strides=(3,)), "impossible strides"),
        (tensor(shape=(2, -3)), "impossible shape"),
        (tensor(shape=(1,) * 65, strides=(1,) * 65), "impossible shape"),
        (tensor(shape=(1 << 31, 1 << 31), strides=(0, 0)), "impossible shape"),
        (tensor(shape=(1 << 30, 1 << 28), strides=(0, 0)), "repeats a storage"),
        (tensor(where=storage(count=b"K\x0b")), "less than it says in its entry data/0"),
        (tensor(where=storage("torch.DoubleStorage")), "less than it says in its entry data/0"),
        (tensor(where=storage(count=b"K\xff\x8a\x01\xff0")), "less than it says|damaged"),
        (tensor(where=storage(count=b"J\xff\xff\xff\xff")), "storage of an unknown form"),
        (tensor(where=storage(key="1")), r"lacks its entry data/1"),
        (tensor(where=storage(key="../secret")), r"lacks its entry data/\.\./secret"),
        (tensor(where=storage("torch.QUInt8Storage")), r"cannot be read: torch\.QUInt8Storage"),
        (tensor(where=storage("my.FloatStorage")), r"cannot be read: my\.FloatStorage"),
        (tensor(where=storage(more=b"(" + text("v") + b"K\x00K\x01t")), "views of storages"),
        (tensor(where=b"K\x01Q"), "storage of an unknown form"),
        (tensor(where=b"Px\n"), "has a pickle with PERSID"),
        (tensor(where=b"K\x01"), "damaged pickle"),
        (tensor(where=tensor()), "damaged pickle"),
        (tensor(more=b"}" + text("neg") + b"\x88s"), "conjugated or negated"),
        (tensor(more=b"K\x01"), "damaged pickle"),
        (call("torch._utils._rebuild_tensor_v2"), "damaged pickle"),
        (call("torch._utils._rebuild_tensor_v3", storage(), b"K\x00))\x89NN"), "damaged pickle"),
        (
            call("torch._utils._rebuild_tensor_v3", storage(), b"K\x00))\x89N", name("torch.int4")),
            r"type that cannot be read: torch\.int4",
        ),
        (b"\x82\x01", "has a pickle with EXT1"),
        (b"\x83\x01\x00", "has a pickle with EXT2"),
        (b"\x97", "has a pickle with NEXT_BUFFER"),
        (b"]K\x01K\x02s", "damaged"),
        (b"}K\x01a", "damaged"),
        (b"}(K\x01u", "damaged pickle"),
        (b"000000", "damaged pickle"),
        (b"h\x07", "damaged pickle"),
        (b"Np%d\n" % (1 << 61), "has a pickle with PUT"),
        (text("a" * 2000) + text("b") + b"\x93", "damaged"),
        (text("a\x1b[2J\n") + text("os.b") + b"\x93", r"names a\\x1b\[2J\\n\.os\.b, which"),
    ],
)
def test_refuses_crafted_tensors(tmp_path, made, message):
    path = crafted(tmp_path / "x.pt", made, tensor())
    with pytest.raises(SourceError, match=message) as caught:
        state_dict(path)
    assert str(caught.value).startswith(f"{path} ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "target",
    [
        name("torch._utils._rebuild_tensor_v2"),
        name("collections.OrderedDict"),
        call("collections.OrderedDict"),
        name("torch.FloatStorage"),
        storage(),
        tensor(),
        b"]",
        b"K\x01",
    ],
)
def test_state_changes_nothing_that_means_something(tmp_path, target):
    """Attributes, slots, class, and the functions that rebuild tensors are unchanged."""
    changes = b"".join(
        text(word) + name("my.evil") + b"s"
        for word in ("__class__", "__code__", "__setstate__", "read", "items", "file", "offset")
    )
    contents = Storage(Tensor(tmp_path, 0, np.dtype(np.uint8), (40,)), np.dtype(np.float32))
    plain = unpickled(io.BytesIO(program(target)), lambda saved: contents)
    for state in (b"}" + changes + b"b", b"N}" + changes + b"\x86b", b"}" + changes + b"}\x86b"):
        changed = unpickled(io.BytesIO(program(target, state)), lambda saved: contents)
        assert changed == plain
        assert vars(type(changed)) == vars(type(plain))
        path = crafted(tmp_path / "x.pt", tensor(), target + state, tensor())
        for key in ("0", "2"):
            np.testing.assert_array_equal(
                state_dict(path)[key].read(), np.float32([[0, 1, 2], [3, 4, 5]])
            )


def test_depth_is_no_danger():
    """Hashing such keys would exhaust the interpreter's stack."""
    deep = b")" + b"\x85" * 300_000 + b"q\x000"
    uses = {
        "key": b"}(h\x00K\x01K\x02K\x03u",
        "table": b"(h\x00K\x01K\x02K\x03d",
        "set": b"(h\x00\x91",
    }
    items = (text(use) + made + b"s" for use, made in uses.items())
    assert unpickled(io.BytesIO(program(deep, b"}", *items))) == {
        "key": {2: 3},
        "table": {2: 3},
        "set": Unknown("builtins.frozenset"),
    }


def test_recursion_is_no_danger():
    again = name("torch._tensor._rebuild_from_type_v2")
    deep = again + (b"(" + again + b"N") * 5000 + b"(" + b"tN" * 5000 + b"tR"
    with pytest.raises(Problem, match="damaged pickle"):
        unpickled(io.BytesIO(program(deep)))


def test_a_program_that_goes_on_and_on_is_stopped(monkeypatch):
    monkeypatch.setattr(pickle_machine, "INSTRUCTIONS", 1000)
    table = b"}(" + b"".join(b"K" + bytes([i]) + b"N" for i in range(200)) + b"uq\x00"
    copy = call("collections.OrderedDict", b"h\x00") + b"0"
    assert len(unpickled(io.BytesIO(program(table, copy)))) == 200
    with pytest.raises(Problem, match="too many instructions"):
        unpickled(io.BytesIO(program(table, copy * 6)))
    with pytest.raises(Problem, match="too many instructions"):
        unpickled(io.BytesIO(program(b"N0" * 1000)))


def test_tables_in_many_places_are_looked_at_once(tmp_path):
    """Three levels of 3,000 names for one table would take hours."""
    table = dict.fromkeys((f"t{i}" for i in range(3000)), torch.ones(1))
    for _ in range(2):
        table = dict.fromkeys((f"{'ema' if i % 2 else 'x'}_{i}" for i in range(3000)), table)
    torch.save({"model": {"w": torch.ones(1)}, **table}, tmp_path / "x.pt")
    assert [*saved(tmp_path / "x.pt").tensors] == ["w"]


def test_texts_that_are_named_again_and_again_are_not_copied_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_machine, "COPIED", 1 << 20)
    encode = b"c_codecs\nencode\nq\x00" + b"X" + struct.pack("<I", 1 << 10) + b"x" * 1024
    encode += b"q\x01X\x06\x00\x00\x00latin1q\x02" + b"h\x00h\x01h\x02\x86R" * 1025 + b"."
    with pytest.raises(Problem, match="more than 1048576 bytes as text"):
        unpickled(io.BytesIO(b"\x80\x02" + encode))


def test_a_large_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_file, "PICKLE", 1000)
    for layout in LAYOUTS:
        path = put(program(text("a" * 2000)), tmp_path / layout)
        with pytest.raises(SourceError, match="has a pickle of"):
            read(path)
        assert read(put(program(text("a" * 900)), tmp_path / layout)) == "a" * 900


# Files that are damaged, or something else


def tar(*names):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in names:
            archive.addfile(tarfile.TarInfo(member))
    return buffer.getvalue()


def zipped(**entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for entry, content in entries.items():
            archive.writestr(f"x/{entry.replace('_', '.')}", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page, not a checkpoint: download it again"),
        (b"\xef\xbb\xbf\r\n <HTML lang=en>", "is a web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "is a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "is a git-lfs pointer, not the file itself: run git lfs pull",
        ),
        (gzip.compress(b"x", mtime=0), "is compressed with gzip: unpack it"),
        (b"BZh91AY", "is compressed with bzip2"),
        (tar("readme", "model.pth"), "is a tar archive: unpack it"),
        (
            tar("sys_info", "pickle", "tensors", "storages"),
            r"before 0\.2: load it with torch\.load",
        ),
        (zipped(), "cut short|none of torch.save"),
        (zipped(model_pth=b""), "a zip archive, but none of torch.save: unpack it"),
        (zipped(data_pkl=program(b"}"), constants_pkl=b""), "is a TorchScript program"),
        (zipped(data_pkl=program(b"}"), byteorder=b"big"), "big-endian"),
        (zipped(data_pkl=b""), "damaged pickle"),
        (plain_file(program(b"}"), little_endian=False), "big-endian"),
        (pickle.dumps({"a": 1}), "is a pickle, but none of torch.save"),
        (pickle.dumps(torch_file.MAGIC) + pickle.dumps(1000), "unknown version"),
        (b"\x80", "is cut short or damaged"),
        (b"GGUF\x03\0\0\0", "is no checkpoint"),
        (b"\0" * 600, "is no checkpoint"),
        (bytes(range(48, 120)), "is no checkpoint"),
    ],
)
def test_says_what_a_file_is_instead(tmp_path, content, message):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        state_dict(path)
    assert str(caught.value).startswith(f"{path} ")


def test_says_that_a_file_is_missing_or_a_folder(tmp_path):
    with pytest.raises(SourceError, match="no such file"):
        state_dict(tmp_path / "x.pth")
    with pytest.raises(SourceError, match="is a directory"):
        state_dict(tmp_path)


@pytest.mark.parametrize(
    ("signature", "place", "value", "message"),
    [
        (b"PK\x01\x02", 8, 1, "is an encrypted zip archive"),
        (b"PK\x01\x02", 10, 12, "compressed in an unusual way"),
        (b"PK\x01\x02", 21, 1, "is cut short or damaged"),  # compressed size
        (b"PK\x01\x02", 25, 1, "is cut short or damaged"),  # size
        (b"PK\x01\x02", 42, 1, "is cut short or damaged"),  # place of the entry
        (b"PK\x05\x06", 16, 1, "is cut short or damaged"),  # place of the table of contents
        (b"PK\x03\x04", 26, 255, "is cut short or damaged"),  # length of the name
    ],
)
def test_refuses_what_is_wrong_with_a_zip(tmp_path, signature, place, value, message):
    content = bytearray(zipped(data_pkl=program(b"}")))
    (tmp_path / "x").write_bytes(content)
    assert read(tmp_path / "x") == {}
    content[content.index(signature) + place] = value
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(SourceError, match=message):
        read(tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"storages": struct.pack("<q", 9) + b"\0" * 40}, "another size than it says"),
        ({"storages": struct.pack("<q", -1) + b"\0" * 40}, "another size than it says"),
        ({"storages": struct.pack("<q", 10) + b"\0" * 39}, "is cut short"),
        ({"storages": b"\0" * 7}, "is cut short"),
        ({"keys": []}, "lists other storages"),
        ({"keys": ["1"]}, "lists other storages"),
        ({"keys": ["0", "0"]}, "lists other storages"),
        ({"keys": [1]}, "does not list its storages"),
        ({"second": storage(count=b"K\x0b")}, "says two things of its storage 0"),
        ({"second": storage("torch.IntStorage")}, "says two things of its storage 0"),
    ],
)
def test_refuses_storages_that_do_not_fit(tmp_path, change, message):
    good = {"storages": struct.pack("<q", 10) + b"\0" * 40, "keys": ["0"], "second": storage()}

    def written(storages, keys, second):
        tensors = tensor(), tensor(where=second)
        content = program(b"}", *(text(str(i)) + made + b"s" for i, made in enumerate(tensors)))
        (tmp_path / "x").write_bytes(plain_file(content, storages, keys))
        return state_dict(tmp_path / "x")

    assert [t.read().sum() for t in written(**good).values()] == [0, 0]
    with pytest.raises(SourceError, match=message):
        written(**good | change)


BASE = torch.arange(12.0).reshape(3, 4)
CONTENT = {"state_dict": {"a": BASE, "b": BASE.t(), "c": torch.nn.Parameter(BASE + 1)}, "n": 1}


def valid_files():
    """Small checkpoints of every layout, by name."""
    files = {}
    for layout, new in LAYOUTS.items():
        buffer = io.BytesIO()
        torch.save(CONTENT, buffer, _use_new_zipfile_serialization=new)
        files[layout] = buffer.getvalue()
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(files["zip"])) as source,
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.namelist():
            target.writestr(entry, source.read(entry))
    return files | {"deflated": buffer.getvalue()}


VALID = valid_files()


@pytest.mark.parametrize("layout", VALID)
@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_damage_is_one_line_or_harmless(tmp_path_factory, layout, data):
    path = tmp_path_factory.mktemp("damage") / "x"
    content = bytearray(VALID[layout])
    for _ in range(data.draw(st.integers(0, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(content[: data.draw(st.none() | st.integers(0, len(content)))]))
    with contextlib.suppress(SourceError):
        found = {name: tensor.read() for name, tensor in state_dict(path).items()}
        if layout != "plain":  # which has no checksums
            assert found.keys() == CONTENT["state_dict"].keys()
            assert all(same(found[k], tensor) for k, tensor in CONTENT["state_dict"].items())


@pytest.mark.parametrize("layout", ["zip", "deflated"])
def test_a_flipped_bit_in_a_tensor_is_found(tmp_path, layout):
    """Also where other tensors share the storage; torch.load says nothing of it."""
    for number in range(3):
        content = bytearray(VALID[layout])
        entry = next(
            e for e in zipfile.ZipFile(io.BytesIO(content)).infolist() if "data/" in e.filename
        )
        start = entry.header_offset + 30 + len(entry.filename)
        start += struct.unpack("<H", content[entry.header_offset + 28 :][:2])[0]
        content[start + entry.compress_size * (number + 1) // 4] ^= 1
        (tmp_path / "x").write_bytes(content)
        for name in ("a", "b"):
            tensor = state_dict(tmp_path / "x")[name]
            with pytest.raises(SourceError, match=r"other bytes than it says|damaged"):
                tensor.read()


def test_files_that_torch_wrote_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(CONTENT, tmp_path / "x")
    finally:
        torch.serialization.set_crc32_options(True)
    all_same(tmp_path / "x", CONTENT["state_dict"])


@pytest.mark.parametrize("layout", VALID)
def test_a_file_cut_anywhere_is_refused(tmp_path, layout):
    content = VALID[layout]
    for size in range(0, len(content), 7):
        (tmp_path / "x").write_bytes(content[:size])
        with pytest.raises(SourceError):
            state_dict(tmp_path / "x")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from([b"", b"\x80\x02", b"PK\x03\x04"]), st.binary(max_size=200))
def test_random_bytes_are_one_line(tmp_path_factory, start, rest):
    path = tmp_path_factory.mktemp("random") / "x"
    path.write_bytes(start + rest)
    with pytest.raises(SourceError):
        state_dict(path)


OPCODES = [op.code.encode("latin-1") for op in pickletools.opcodes if op.name != "STOP"]


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(OPCODES) | st.binary(max_size=3), max_size=40))
def test_random_programs_are_one_line_or_harmless(parts):
    with contextlib.suppress(Problem):
        unpickled(io.BytesIO(b"".join(parts) + b"."))

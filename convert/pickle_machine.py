"""Read pickles as data, with a small stack machine that never runs what a file names.

A pickle is a program, which may name any function of any module and call it. Here it is read
instruction by instruction, and no name is ever looked up: the caller gives a few names a meaning,
and every other name makes an inert `Unknown`.
"""

import builtins
import pickletools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from convert.tensors import Problem

INSTRUCTIONS = 10_000_000  # at most in a pickle; a tensor takes about fifty
COPIED = 512 << 20  # bytes at most that are made of texts, which a pickle may name again and again
CUT = "is cut short or damaged: get it again"
TOO_LONG = "has a pickle of too many instructions to be one of weights"

# Names are never looked up, so these could do no harm here. They are refused because no checkpoint
# needs them: a file with one was made to run code where it is unpickled.
REFUSED = {
    "runs programs": "os posix nt subprocess pty popen2 commands.getoutput "
    "commands.getstatusoutput multiprocessing asyncio pip.main pip._internal",
    "reaches into the interpreter": "sys gc ctypes _ctypes cffi",
    "runs code": "runpy importlib imp pkgutil zipimport codeop code.interact "
    "code.compile_command code.InteractiveInterpreter code.InteractiveConsole timeit trace.Trace "
    "pdb bdb profile.run profile.runctx profile.Profile cProfile doctest pydoc types.FunctionType "
    "types.LambdaType types.CodeType operator.attrgetter operator.methodcaller "
    "_operator.attrgetter _operator.methodcaller functools.reduce _functools.reduce "
    "copyreg.add_extension copyreg.pickle copy_reg.add_extension copy_reg.pickle numpy.testing "
    "numpy.f2py torch.hub torch.jit torch.package torch.utils.cpp_extension",
    "unpickles": "pickle _pickle cPickle marshal shelve joblib.load dill.load dill.loads "
    "cloudpickle.load cloudpickle.loads numpy.load torch.load torch.serialization.load "
    "torch.storage._load_from_bytes",
    "reaches files or the network": "shutil tempfile socket _socket ssl urllib urllib2 http "
    "httplib ftplib smtplib telnetlib xmlrpc requests httpx aiohttp webbrowser io.open _io.open "
    "io.FileIO _io.FileIO codecs.open tarfile zipfile",
}
REASONS = {name: reason for reason, names in REFUSED.items() for name in names.split()}
ANYWHERE = {"os", "posix", "nt", "subprocess", "sys", "builtins", "__builtin__", "__builtins__"}
# The built-in names that are only data: these types, and the exceptions.
TYPES = (
    "object type bool int long float complex str unicode basestring bytes bytearray tuple list "
    "dict set frozenset slice range xrange Ellipsis NotImplemented NoneType"
)
DATA = set(TYPES.split()) | {
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}
METHODS = {"builtins.getattr", "__builtin__.getattr"}  # how a bound method is written
PYTHON_NAMES = {"__main__", "__new__", "__newobj__", "__newobj_ex__", "__future__", "__builtin__"}


@dataclass(frozen=True)
class Global:
    """A name in the file, which is never looked up."""

    path: str  # such as "collections.OrderedDict"


@dataclass(frozen=True)
class Unknown:
    """The inert result of calling `path` in the file."""

    path: str


class Built:
    """A base of objects that a file makes in two steps; they alone have a state."""

    copied = 0  # bytes that were made of a text in the state

    def build(self, state: Any) -> None:
        """Take the state, as the file gives it.

        Raises:
            Problem: it is not the state of such an object.
        """
        raise NotImplementedError


def _named(module: Any, name: Any) -> Global:
    """Return the name, unless no checkpoint needs it.

    Raises:
        Problem: it is refused, or not a name.
    """
    if not isinstance(module, str) or not isinstance(name, str) or len(module + name) > 1000:
        raise Problem(CUT)
    path = f"{module}.{name}"
    reason = _reason(path.split("."))
    if reason is not None:
        raise Problem(f"names {path}, which {reason}: refused; get it from a source you trust")
    return Global(path)


def _reason(parts: list[str]) -> str | None:
    """Return why the function with this dotted name is refused, or None."""
    if parts[0] in ("builtins", "__builtin__") and len(parts) == 2:
        return None if parts[1] in DATA or ".".join(parts) in METHODS else "runs code"
    for length in range(1, len(parts) + 1):
        if ".".join(parts[:length]) in REASONS:
            return REASONS[".".join(parts[:length])]
    # Modules are also reached through those that import them.
    if ANYWHERE & set(parts[:-1]):
        return "reaches into the interpreter"
    hidden = [p for p in parts if p.startswith("__") and p.endswith("__")]
    return None if set(hidden) <= PYTHON_NAMES else "reaches into the interpreter"


# Instructions whose argument is the value that they push.
PUSHING = (
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8"
)
VALUES = set(PUSHING.split())
TABLES = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Machine:
    """Pickle's stack machine, without anything that could run code.

    A set becomes an `Unknown`, and only dict entries with plain keys are kept: hashing deeply
    nested keys can exhaust the interpreter's stack.
    """

    def __init__(
        self, load: Callable[[Any], Any] | None, functions: Mapping[str, Callable[..., Any]]
    ) -> None:
        self.load, self.functions = load, functions
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under the marks
        self.memo: dict[int, Any] = {}
        self.copied = 0  # entries of tables that were copied from others
        self.encoded = 0  # bytes that were made of texts

    def run(self, name: str, argument: Any) -> None:
        """Run one instruction, given as pickletools names it and reads its argument."""
        match name:
            case _ if name in VALUES:
                self._push(argument)
            case _ if name in CONSTANTS:
                self._push(CONSTANTS[name])
            case "BINPUT" | "LONG_BINPUT" | "PUT" if argument < 1 << 32:
                self.memo[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                self._push(self.memo[argument])
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "MARK":
                self.below.append(self.stack)
                self.stack = []
            case "POP" if self.stack:
                self.stack.pop()
            case "POP" | "POP_MARK":
                self._marked()
            case "DUP":
                self._push(self.stack[-1])
            case "PROTO" | "FRAME":
                pass
            case _ if not self._contain(name):
                self._make(name, argument)

    def _contain(self, name: str) -> bool:
        """Run an instruction about containers; return False if it is not one."""
        match name:
            case "EMPTY_LIST":
                self._push([])
            case "EMPTY_DICT":
                self._push({})
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._replace(int(name[-1]), lambda *items: items)
            case "TUPLE":
                self._push(tuple(self._marked()))
            case "LIST":
                self._push(self._marked())
            case "DICT":
                items = self._marked()
                self._push({})
                self._set(items)
            case "EMPTY_SET":
                self._push(Unknown("builtins.set"))
            case "FROZENSET":
                self._marked()
                self._push(Unknown("builtins.frozenset"))
            case "APPEND":
                self._extend([self.stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self._extend(self._marked())
            case "SETITEM":
                items = self._top(2)
                del self.stack[-2:]
                self._set(items)
            case "SETITEMS":
                self._set(self._marked())
            case _:
                return False
        return True

    def _make(self, name: str, argument: Any) -> None:
        """Run an instruction about anything else."""
        match name:
            case "GLOBAL":
                self._push(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                self._replace(2, _named)
            case "REDUCE" | "NEWOBJ":
                self._replace(2, self._called)
            case "NEWOBJ_EX":
                self._replace(3, self._called)
            case "BUILD":
                self._replace(2, self._built)
            case "INST":
                made = _named(*argument.split(" ", 1))
                self._push(self._called(made, tuple(self._marked())))
            case "OBJ":
                made, *arguments = self._marked()
                self._push(self._called(made, tuple(arguments)))
            case "BINPERSID":
                self._replace(1, self._loaded)
            case _:
                raise Problem(f"has a pickle with {name}, which torch.save does not write")

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _marked(self) -> list[Any]:
        """Pop the last mark and everything above it."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def _top(self, size: int) -> list[Any]:
        if len(self.stack) < size:
            raise Problem(CUT)
        return self.stack[-size:]

    def _replace(self, size: int, function: Callable[..., Any]) -> None:
        """Replace the top values by the function's result for them."""
        self.stack[-size:] = [function(*self._top(size))]

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Unknown):
            raise Problem(CUT)

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            _fill(target, zip(items[::2], items[1::2], strict=True))
        elif not isinstance(target, Unknown):
            raise Problem(CUT)

    def _called(self, function: Any, arguments: Any, keywords: Any = None) -> Any:
        """Return the result of calling the function in the file."""
        if not isinstance(function, Global | Unknown) or not isinstance(arguments, tuple):
            raise Problem(CUT)
        if isinstance(function, Global) and function.path in TABLES:
            return self._table(*arguments[:1])
        if isinstance(function, Global) and function.path in METHODS:
            return _method(arguments)
        if isinstance(function, Global) and function.path in self.functions:
            made = self.functions[function.path](*arguments)
            self._count(len(made) if isinstance(made, bytes) else 0)
            return made
        return Unknown(function.path)

    def _built(self, made: Any, state: Any) -> Any:
        """Return what was made; of most objects the state is dropped."""
        if isinstance(made, Built):
            made.build(state)
            self._count(made.copied)
        return made

    def _count(self, size: int) -> None:
        self.encoded += size
        if self.encoded > COPIED:
            raise Problem(f"has more than {COPIED} bytes as text: save it again with torch.save")

    def _table(self, entries: Any = ()) -> dict[Any, Any]:
        """Return a table of the entries, if any; Python 2 wrote them as a list of pairs."""
        table: dict[Any, Any] = {}
        if isinstance(entries, dict | list):
            # A file may name one list again and again.
            self.copied += len(entries)
            if self.copied > INSTRUCTIONS:
                raise Problem(TOO_LONG)
            _fill(table, entries.items() if isinstance(entries, dict) else entries)
        return table

    def _loaded(self, saved: Any) -> Any:
        match saved:
            case ("module", Global() as made, *_):
                return made
            case _ if self.load is not None:
                return self.load(saved)
        raise Problem(CUT)


def _method(arguments: tuple[Any, ...]) -> Unknown:
    """Return what stands for an attribute of an object, such as a method bound to a scheduler.

    Raises:
        Problem: the same name, spelled out, would be refused.
    """
    match arguments:
        case (Global(path) | Unknown(path), str(name)):
            of_python = path.startswith(("builtins.", "__builtin__."))
            return Unknown(_named("object" if of_python else path, name).path)
        case (_, str(name)):
            return Unknown(_named("object", name).path)
    raise Problem(CUT)


def _fill(table: dict[Any, Any], entries: Iterable[Any]) -> None:
    for key, value in entries:
        # Larger numbers can be chosen to collide, and a table of them would take forever.
        small = isinstance(key, int) and abs(key) < 1 << 60
        if key is None or small or isinstance(key, str | bytes):
            table[key] = value


def unpickled(
    file: Any,
    load: Callable[[Any], Any] | None = None,
    functions: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
) -> Any:
    """Return the object that the pickle at the position of `file` describes; nothing in it is run.

    Args:
        file: has `read`, `readline` and `tell`; afterwards its position is behind the pickle.
        load: returns the object of a persistent id; None if the pickle must have none.
        functions: our replacements for the functions of these names.

    Raises:
        Problem: the pickle is damaged, too long, or has a name that is refused.
    """
    machine = Machine(load, functions)
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(file)):
            if count > INSTRUCTIONS:
                raise Problem(TOO_LONG)
            if instruction.name == "STOP":
                return machine.stack.pop()
            machine.run(instruction.name, argument)
    except (Problem, OSError):
        raise
    except Exception:
        # A damaged pickle fails in many ways: an empty stack, arguments of wrong types, ...
        raise Problem("has a damaged pickle: get it again") from None
    raise AssertionError("a pickle without an end is an error of genops")

"""A pickle of plain values and of numpy's arrays, read without unpickling: nothing in it is called or built.

Pickle is a program for a small machine. The machine here knows the instructions that numbers, text, lists, dictionaries
and arrays need; what stands for numpy's functions are names, and an array is made from its bytes at the end, of a type
that is looked at. Whatever else a file asks for is an error: objects of a class, functions, types with fields.
"""

import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

# Bytes that texts may be turned into, in all: a text can be pointed to many times.
_MOST_BYTES = 1 << 28

_DTYPES = {"u1", "i1", "i2", "i4", "i8"}

_RECONSTRUCT, _ARRAY, _DTYPE, _ENCODE = "_reconstruct", "ndarray", "dtype", "encode"

# Functions and classes by the names that a file has for them.
_NAMES = {
    "numpy.core.multiarray._reconstruct": _RECONSTRUCT,
    "numpy._core.multiarray._reconstruct": _RECONSTRUCT,
    "numpy.ndarray": _ARRAY,
    "numpy.dtype": _DTYPE,
    "_codecs.encode": _ENCODE,  # bytes, as Python 2's protocols have them
}


@dataclass(frozen=True)
class _Name:
    name: str


@dataclass
class _Type:
    code: str
    order: str = "|"


@dataclass
class _Array:
    values: np.ndarray | None = None


class _Mark:
    pass


def read_pickle(data: bytes) -> Any:
    """What a pickle holds: None, numbers, bytes, text, lists, tuples, dictionaries of these, and arrays of integers.

    Text that Python 2 wrote are bytes.

    :raises ValueError: where it is damaged, or holds anything else.
    """
    return _Machine().run(data)


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.bytes_left = _MOST_BYTES

    def run(self, data: bytes) -> Any:
        argument: Any
        for opcode, argument, _ in pickletools.genops(data):
            name = opcode.name
            if name == "STOP":
                return _finished(self.pop())
            if name in _PUSHED:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _MADE:
                self.stack.append(_MADE[name]())
            elif name in _PICKED:
                if argument not in self.memo:
                    raise ValueError("it points to nothing")
                self.stack.append(self.memo[argument])
            elif name in _KEPT:
                self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.top()
            elif name in _STRINGS:
                self.stack.append(argument.encode("latin1"))
            elif hasattr(self, f"do_{name.lower()}"):
                getattr(self, f"do_{name.lower()}")(argument)
            elif name not in ("PROTO", "FRAME"):
                raise ValueError(f"it holds more than numbers, text, lists and arrays ({name})")
        raise ValueError("it ends too early")

    def pop(self) -> Any:
        if not self.stack or isinstance(self.stack[-1], _Mark):
            raise ValueError("it takes what is not there")
        return self.stack.pop()

    def top(self) -> Any:
        value = self.pop()
        self.stack.append(value)
        return value

    def pop_to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while at >= 0 and not isinstance(self.stack[at], _Mark):
            at -= 1
        if at < 0:
            raise ValueError("it takes what is not there")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def do_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def do_tuple1(self, _: Any) -> None:
        self.stack.append((self.pop(),))

    def do_tuple2(self, _: Any) -> None:
        second = self.pop()
        self.stack.append((self.pop(), second))

    def do_tuple3(self, _: Any) -> None:
        third, second = self.pop(), self.pop()
        self.stack.append((self.pop(), second, third))

    def do_list(self, _: Any) -> None:
        self.stack.append(self.pop_to_mark())

    def do_dict(self, _: Any) -> None:
        pairs = self.pop_to_mark()
        self.stack.append({})
        self.set_items(pairs)

    def do_append(self, _: Any) -> None:
        self.extend([self.pop()])

    def do_appends(self, _: Any) -> None:
        self.extend(self.pop_to_mark())

    def do_setitem(self, _: Any) -> None:
        value = self.pop()
        self.set_items([self.pop(), value])

    def do_setitems(self, _: Any) -> None:
        self.set_items(self.pop_to_mark())

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            raise ValueError("it appends to what is no list")
        target += values

    def set_items(self, pairs: list[Any]) -> None:
        target, keys = self.top(), pairs[::2]
        if type(target) is not dict or len(pairs) % 2 or not all(type(key) in (bytes, str) for key in keys):
            raise ValueError("it fills what is no dictionary of named values")
        target.update(zip(keys, map(_finished, pairs[1::2]), strict=True))

    def do_global(self, argument: str) -> None:
        self.name(*argument.split(" ", 1))

    def do_stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self.name(module, name)

    def name(self, module: Any, name: Any) -> None:
        if f"{module}.{name}" not in _NAMES:
            raise ValueError(f"it asks for {module}.{name}")
        self.stack.append(_Name(_NAMES[f"{module}.{name}"]))

    def do_reduce(self, _: Any) -> None:
        arguments, called = self.pop(), self.pop()
        known = called.name if isinstance(called, _Name) and type(arguments) is tuple else ""
        if known == _RECONSTRUCT:
            self.stack.append(_Array())
        elif known == _DTYPE and arguments and _text(arguments[0]).lstrip("<|") in _DTYPES:
            self.stack.append(_Type(_text(arguments[0]).lstrip("<|")))
        elif known == _ENCODE and arguments[1:] == ("latin1",) and type(arguments[0]) is str:
            self.bytes_left -= len(arguments[0])
            if self.bytes_left < 0:
                raise ValueError("it holds more than a data set does")
            self.stack.append(arguments[0].encode("latin1"))
        elif known == _ENCODE and arguments == ("",):
            self.stack.append(b"")
        else:
            raise ValueError("it calls what it may not, or with other arguments")

    def do_build(self, _: Any) -> None:
        state, built = self.pop(), self.top()
        if isinstance(built, _Type) and type(state) is tuple and len(state) == 8 and state[2:5] == (None, None, None):
            built.order = _text(state[1])
        elif isinstance(built, _Array) and type(state) is tuple and len(state) == 5:
            built.values = _array(*state[1:])
        else:
            raise ValueError("it builds what is no array of integers")


_PUSHED = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES",
    "SHORT_BINBYTES",
}  # fmt: skip
_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_MADE: dict[str, Any] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "MARK": _Mark}
_PICKED = {"GET", "BINGET", "LONG_BINGET"}
_KEPT = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}


def _text(value: Any) -> str:
    return value.decode("latin1") if type(value) is bytes else value if type(value) is str else ""


def _finished(value: Any) -> Any:
    """A value, or the array that stands for one."""
    return value.values if isinstance(value, _Array) else value


def _array(shape: Any, dtype: Any, is_fortran: Any, data: Any) -> np.ndarray:
    """:raises ValueError: where these are not an array's, or its bytes are more or less than it has."""
    sizes = (
        type(shape) is tuple
        and len(shape) <= 4
        and all(type(size) is int and 0 <= size <= _MOST_BYTES for size in shape)
    )
    if not (sizes and isinstance(dtype, _Type) and dtype.order in ("<", "|", "=") and type(data) is bytes):
        raise ValueError("it builds what is no array of integers")
    values = np.frombuffer(data, np.dtype(f"<{dtype.code}"))
    return values.reshape(shape, order="F" if is_fortran is True else "C")

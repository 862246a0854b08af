"""Pickles inside weight files, read without running code from them.

A pickle is a program that may name any function. Here a name is resolved to a function that builds tensors over
storages of the same file, to `OrderedDict`, or to a stand-in without behaviour. So objects beside the tensors
(`argparse.Namespace`, paths, NumPy arrays, classes of a training framework) are skipped, installed or not. Names from
the standard library that are not plain data (`os.system`, `builtins.eval`) are refused: a stand-in would not run them,
but a file that has them is not to be trusted.
"""

from __future__ import annotations

import _compat_pickle
import pickle
import struct
import sys
from collections import OrderedDict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor

STORAGES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
PLAIN_DATA = {
    "_codecs": {"encode"},
    "argparse": {"Namespace"},
    "array": {"array", "_array_reconstructor"},
    "builtins": {
        "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range", "set",
        "slice", "str", "tuple",
    },
    "collections": {"ChainMap", "Counter", "UserDict", "UserList", "defaultdict", "deque"},
    "copyreg": {"_reconstructor"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "fractions": {"Fraction"},
    "functools": {"partial"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "re": {"_compile"},
    "types": {"MappingProxyType", "SimpleNamespace"},
    "uuid": {"SafeUUID", "UUID"},
    "zoneinfo": {"ZoneInfo", "ZoneInfo._unpickle"},
}  # fmt: skip
"""Names of the standard library that stand-ins replace; `pathlib` is `pathlib._local` since Python 3.13."""
MAX_NAME_CHARACTERS = 300


class StandIn(dict[Any, Any]):
    """Replaces any object beside the tensors; a mapping without behaviour."""

    origin = ""
    """Dotted name of the class or function."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __new__(cls, *_: object, **__: object) -> StandIn:
        if not isinstance(cls, type):  # a pickle may call this with an instance
            raise pickle.UnpicklingError("it makes an object of what is no class")
        return super().__new__(cls)

    def _ignore(self, *_: object, **__: object) -> None:
        """Drop items of a list, a set or a mapping."""

    append = extend = add = update = _ignore
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __ne__ = object.__ne__


class RestrictedUnpickler(pickle._Unpickler):
    """Read one pickle of any protocol from a file of `num_bytes`, beyond which nothing is allocated.

    It extends the reader written in Python: the one in C allocates a table of any length that a pickle names.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, stream: BinaryIO, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._stand_ins: dict[str, type[StandIn]] = {}
        super().__init__(_Bounded(stream, num_bytes))

    def find_class(self, module: str, name: str) -> Any:
        """Return the replacement of a name of the pickle."""
        # Pickles of protocol 2 and below have the names of Python 2.
        renamed = _compat_pickle.IMPORT_MAPPING.get(module, module), name
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), renamed)
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "collections" and name == "OrderedDict":
            return OrderedDict
        if module in ("torch._utils", "torch._tensor", "torch.storage"):
            builders = {
                "_rebuild_tensor": self.rebuild_tensor, "_rebuild_tensor_v2": self.rebuild_tensor,
                "_rebuild_parameter": first_argument, "_rebuild_parameter_with_state": first_argument,
                "_rebuild_from_type_v2": self._rebuild_subclass,
            }  # fmt: skip
            if name in builders:
                return builders[name]
            raise refused(module, name)
        public = "pathlib" if module in ("pathlib._local", "pathlib._abc") else module
        if module.partition(".")[0] in sys.stdlib_module_names and name not in PLAIN_DATA.get(public, ()):
            raise refused(module, name)
        origin = f"{module}.{name}"[:MAX_NAME_CHARACTERS]
        if origin not in self._stand_ins:
            self._stand_ins[origin] = type("StandIn", (StandIn,), {"origin": origin})
        return self._stand_ins[origin]

    def rebuild_tensor(
        self, storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
    ) -> Tensor:
        """Return a view of a storage."""
        try:
            tensor = storage.as_strided(size, stride, offset)  # refuses to reach beyond the storage
        except (RuntimeError, TypeError, AttributeError) as error:
            raise pickle.UnpicklingError(f"a tensor does not fit its storage: {error}") from None
        if tensor.numel() > storage.numel():  # overlapping rows: a small file that would unfold to a vast tensor
            raise pickle.UnpicklingError(f"a tensor of {list(size)} is larger than its storage")
        return tensor

    def _rebuild_subclass(self, build: Any, _: object, arguments: tuple[Any, ...], *__: object) -> Tensor:
        """Return the tensor below an instance of a subclass of `torch.Tensor`."""
        if build != self.rebuild_tensor or not isinstance(arguments, tuple) or len(arguments) < 4:
            raise pickle.UnpicklingError("it holds a tensor of a class that is not known")
        return self.rebuild_tensor(*arguments)

    def load_build(self) -> None:
        """Set the state of the last object; only modules of TorchScript have one here."""
        stack: list[Any] = self.stack  # type: ignore[attr-defined]
        if len(stack) < 2:
            raise pickle.UnpicklingError("it sets the state of nothing")
        state, instance = stack.pop(), stack[-1]
        if isinstance(instance, Module):
            instance.__setstate__(state)
        elif not isinstance(instance, StandIn | OrderedDict | Tensor):
            raise pickle.UnpicklingError(f"it sets the state of a {type(instance).__name__}")

    def load_bytearray8(self) -> None:
        """Read bytes; Python's own method allocates any length that is named."""
        machine: Any = self
        size = machine.read(8)
        if len(size) < 8:
            raise EOFError("it ends within a length")
        (length,) = struct.unpack("<Q", size)
        machine.append(bytearray(machine.read(length)))

    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8


class Module:
    """Replaces every class of a TorchScript archive: has attributes, and no behaviour."""

    attributes: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a module's state is no mapping")
        self.attributes = state


class _Bounded:
    """A stream that refuses to read more than its file has."""

    def __init__(self, stream: BinaryIO, num_bytes: int) -> None:
        self._stream, self._num_bytes = stream, num_bytes
        self.readline = stream.readline

    def read(self, length: int) -> bytes:
        if length > self._num_bytes:
            raise EOFError(f"it asks for {length:,} bytes of a file of {self._num_bytes:,}")
        return self._stream.read(length)


def refused(module: str, name: str) -> pickle.UnpicklingError:
    """Return the error for a name that is refused."""
    return pickle.UnpicklingError(f"it asks for {f'{module}.{name}'[:MAX_NAME_CHARACTERS]}")


def first_argument(value: object, *_: object) -> object:
    """Return the first argument, for calls whose other arguments do not matter."""
    return value

"""Reading untrusted checkpoints: what a pickle names and how large its tensors are is known before torch sees it.

``torch.load(weights_only=True)`` runs no code, but it believes the sizes that a file declares. The scan here
walks the pickle with inert stand-ins for everything it names and compares each declared storage and tensor
with the bytes that are there. Only then torch loads it, with the same narrow list of names.
"""

from __future__ import annotations

import argparse
import io
import math
import pickle
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy._core import multiarray
from safetensors import SafetensorError
from safetensors.torch import load_file

from pipeline.errors import WeightsError

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".th")
MAX_PICKLE_BYTES = 32 << 20
MAX_PICKLE_STEPS = 2_000_000
# Tied weights share a storage; a file whose tensors add up to much more than its bytes is a bomb.
MAX_SHARING = 4
SMALL_BYTES = 64 << 20

_STORAGES = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1, "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16, "UntypedStorage": 1,
}  # fmt: skip
_PLAIN = {
    "collections OrderedDict", "torch._utils _rebuild_parameter", "torch Size", "torch device",
    *(f"torch {name}" for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
}  # fmt: skip
_NUMPY_DTYPES = [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]
_ALLOWANCES: dict[str, dict[str, Any]] = {
    "numpy_scalars": {
        "numpy.core.multiarray scalar": multiarray.scalar,
        "numpy._core.multiarray scalar": multiarray.scalar,
        "numpy dtype": np.dtype,
    },
    "numpy_arrays": {
        "numpy.core.multiarray _reconstruct": multiarray._reconstruct,
        "numpy._core.multiarray _reconstruct": multiarray._reconstruct,
        "numpy ndarray": np.ndarray,
        "numpy dtype": np.dtype,
    },
    "namespace": {"argparse Namespace": argparse.Namespace},
}


# Named by no honest checkpoint; a file that names one is refused even where other classes are read as stand-ins.
_NEVER = {
    "builtins", "__builtin__", "os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "importlib", "runpy",
    "pickle", "_pickle", "code", "codeop", "ctypes", "multiprocessing", "threading", "webbrowser", "types", "functools",
    "operator", "timeit", "pdb", "cProfile", "profile", "asyncio", "pty", "torch", "numpy",
}  # fmt: skip


class StandIn:
    """What an object of a class named in ``stand_ins`` is read as: its state as plain attributes."""

    def __init__(self, *arguments: object, **fields: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def load_payload(
    path: Path,
    *,
    allow: Iterable[str] = (),
    stand_ins: Iterable[str] | None = (),
    max_bytes: int = 4 << 30,
) -> Any:
    """Return what the checkpoint file holds, on the CPU; no code of it is run.

    Args:
        path: ``.safetensors``, or a torch file (zip or legacy) under one of ``TORCH_SUFFIXES``.
        allow: groups of names besides tensors and plain values: numpy_scalars, numpy_arrays, namespace.
        stand_ins: ``module.Class`` names that are read as :class:`StandIn`; None = every class but the
            standard library's means of running code, and torch's and numpy's own.
        max_bytes: a larger file is refused unread.

    Raises:
        WeightsError: not a checkpoint, damaged, holds code, or declares more than its bytes hold.
    """
    size = path.stat().st_size
    if size > max_bytes:
        raise _refusal(
            path, "it is larger than any known checkpoint of its kind", f"{max_bytes} bytes at most", size
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise _refusal(path, "it is no whole safetensors file", "safetensors", error) from error
    if path.suffix not in TORCH_SUFFIXES:
        known = ", ".join((*TORCH_SUFFIXES, ".safetensors"))
        raise _refusal(path, "its suffix is not a checkpoint's", known, path.suffix or "none")
    named = {key: value for group in allow for key, value in _ALLOWANCES[group].items()}
    named |= {" ".join(name.rsplit(".", 1)): StandIn for name in stand_ins or ()}
    names = _Names(set(named), any_class=stand_ins is None)
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        if zipped:
            _scan_zip(path, file, names)
        else:
            _scan_legacy(path, file, size, names)
    named |= dict.fromkeys(names.met, StandIn)
    allowed: list[Any] = [(value, key.replace(" ", ".")) for key, value in named.items()]
    allowed += _NUMPY_DTYPES if any(group.startswith("numpy") for group in allow) else []
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        # torch's own message advises weights_only=False; that is the one thing not to do.
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise _refusal(path, "torch does not read it", "tensors and plain values", reason) from error


def _refusal(path: Path, why: str, expected: object, got: object) -> WeightsError:
    return WeightsError(f"{path.name} cannot be loaded: {why}", expected=expected, got=str(got)[:300])


class _RefusedError(Exception):
    """Why the scan stopped: ``why``, ``expected``, ``got``."""


class _Inert:
    """Takes any call and any state, and does nothing."""

    def __init__(self, *arguments: object) -> None: ...
    def __call__(self, *arguments: object) -> _Inert:
        return _Inert()

    def __setstate__(self, state: object) -> None: ...
    def __setitem__(self, key: object, value: object) -> None: ...
    def append(self, value: object) -> None: ...
    def extend(self, values: object) -> None: ...


class _Storage(_Inert):
    """A declared storage: its length and bytes an element."""

    def __init__(self, elements: int = 0, item_bytes: int = 1) -> None:
        self.elements, self.item_bytes = elements, item_bytes


class _NeverCalled(_Inert):
    def __call__(self, *arguments: object) -> _Inert:
        raise _RefusedError("it makes an array of a declared size", "arrays with their bytes", arguments)


def _empty_array(kind: object, shape: object, code: object) -> _Inert:
    if shape != (0,):
        raise _RefusedError("it makes an array of a declared size", "(0,), as numpy writes", shape)
    return _Inert()


class _CountedReader:
    """A file that ends the scan after ``MAX_PICKLE_STEPS`` reads."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self.file, self.steps, self.end = file, 0, file.tell() + limit

    def read(self, size: int = -1) -> bytes:
        self.steps += 1
        if self.steps > MAX_PICKLE_STEPS or self.file.tell() > self.end:
            raise _RefusedError("its pickle has no end", f"{MAX_PICKLE_STEPS} steps at most", "more")
        # A string may declare any length; what is not in the file is never reserved.
        return self.file.read(min(size, MAX_PICKLE_BYTES) if size >= 0 else MAX_PICKLE_BYTES)

    def readline(self) -> bytes:
        self.steps += 1
        return self.file.readline(4096)


@dataclass
class _Names:
    """What a pickle may name besides tensors (``module name``), and the classes met that become stand-ins."""

    allowed: set[str]
    any_class: bool = False
    met: set[str] = field(default_factory=set)

    def __contains__(self, full: str) -> bool:
        return full in self.allowed

    def takes(self, module: str, name: str) -> bool:
        """Whether an object of this class is read as a stand-in, which is then noted."""
        full = f"{module} {name}"
        if full in self.allowed:
            return True
        if self.any_class and module.partition(".")[0] not in _NEVER:
            self.met.add(full)
            return True
        return False


class _Scan(pickle._Unpickler):
    """Walks a pickle without importing or calling anything it names, and adds up what its tensors need."""

    def __init__(self, reader: _CountedReader, named: _Names) -> None:
        super().__init__(reader)
        self.named = named
        self.storages: dict[str, int] = {}
        self.tensor_bytes = 0

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module} {name}"
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _Storage(0, _STORAGES[name])
        if full in ("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2"):
            return self._tensor
        if full == "numpy ndarray" and full in self.named:
            return _NeverCalled()
        if full.endswith(" _reconstruct") and full in self.named:
            return _empty_array
        if full in _PLAIN or full == "_codecs encode" or self.named.takes(module, name):
            return _Inert
        raise _RefusedError("it names code", "tensors and plain values", f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        if not (isinstance(pid, tuple) and len(pid) in (5, 6) and isinstance(pid[1], _Storage)):
            raise _RefusedError("it refers to something that is no storage", "storages", type(pid).__name__)
        key, elements = str(pid[2]), pid[4]
        if not isinstance(elements, int) or elements < 0:
            raise _RefusedError("a storage has no length", "a number of elements", repr(elements)[:60])
        storage = _Storage(elements, pid[1].item_bytes)
        self.storages[key] = max(self.storages.get(key, 0), elements * storage.item_bytes)
        return storage

    def _tensor(self, *given: Any) -> _Inert:
        storage, offset, size, stride = (*given, None, None, None, None)[:4]
        if not isinstance(storage, _Storage):
            raise _RefusedError("a tensor has no storage", "a storage", type(storage).__name__)
        numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (-1,)
        if any(not isinstance(n, int) or n < 0 for n in numbers) or len(size) != len(stride):
            raise _RefusedError("a tensor has an impossible shape", "shape and strides", f"{size}, {stride}")
        elements = math.prod(size)
        reach = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        if elements and reach > storage.elements:
            raise _RefusedError(
                "a tensor reaches past its storage", f"{storage.elements} elements", f"shape {size}"
            )
        if elements > storage.elements and elements * storage.item_bytes > SMALL_BYTES:
            raise _RefusedError(
                "a tensor is larger than its storage", f"{storage.elements} elements", f"shape {size}"
            )
        self.tensor_bytes += elements * storage.item_bytes
        return _Inert()

    def check_total(self) -> None:
        held = sum(self.storages.values())
        if self.tensor_bytes > MAX_SHARING * held + SMALL_BYTES:
            raise _RefusedError("its tensors add up to far more than its bytes", held, self.tensor_bytes)


def _forbidden(scan: Any) -> None:
    raise _RefusedError("its pickle uses opcodes that no torch file has", "pickle protocol 2", "extensions")


# Frames would hide steps from the counter; the others load classes by ways that find_class need not see.
_NOT_OF_TORCH = (pickle.FRAME, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.INST, pickle.OBJ)
_Scan.dispatch = {**pickle._Unpickler.dispatch, **{opcode[0]: _forbidden for opcode in _NOT_OF_TORCH}}


def _scan(path: Path, file: BinaryIO, limit: int, named: _Names) -> tuple[_Scan, Any]:
    scan = _Scan(_CountedReader(file, limit), named)
    try:
        value = scan.load()
        scan.check_total()
    except _RefusedError as refused:
        raise _refusal(path, *refused.args) from refused
    except Exception as error:  # a damaged pickle fails in any of a dozen ways, all meaning this
        raise _refusal(path, "it is no whole torch file", "a torch checkpoint", error) from error
    return scan, value


def _scan_zip(path: Path, file: BinaryIO, named: _Names) -> None:
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise _refusal(path, "it is no whole torch file", "a torch checkpoint", error) from error
    sizes: dict[str, int] = {}
    for member in archive.infolist():
        inner = member.filename.partition("/")[2]
        if inner in sizes:
            raise _refusal(path, "two of its members have one name", "each once", member.filename)
        if member.compress_type != zipfile.ZIP_STORED:
            raise _refusal(path, "its members are compressed", "stored members, as torch.save writes", inner)
        sizes[inner] = member.file_size
    pickles = [m for m in archive.infolist() if re.fullmatch(r"[^/]+/data\.pkl", m.filename)]
    if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
        got = pickles[0].file_size if len(pickles) == 1 else f"{len(pickles)} data.pkl"
        raise _refusal(path, "it is no torch file", f"one data.pkl of {MAX_PICKLE_BYTES} bytes at most", got)
    try:
        with archive.open(pickles[0]) as member_file:
            content = member_file.read()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise _refusal(path, "it is damaged", "a whole data.pkl", error) from error
    scan, _ = _scan(path, io.BytesIO(content), MAX_PICKLE_BYTES, named)
    for key, needed in scan.storages.items():
        if sizes.get(f"data/{key}", -1) < needed:
            got = f"{sizes.get(f'data/{key}', 0)} bytes"
            raise _refusal(path, f"storage {key} is shorter than declared", f"{needed} bytes", got)


def _scan_legacy(path: Path, file: BinaryIO, size: int, named: _Names) -> None:
    """torch before 1.6: five pickles in a row (magic, protocol, system, object, storage keys), then the bytes."""
    _, magic = _scan(path, file, MAX_PICKLE_BYTES, named)
    if magic != torch.serialization.MAGIC_NUMBER:
        raise _refusal(path, "it is no torch file", "a torch checkpoint", "another pickle")
    for _ in ("protocol version", "system information"):
        _scan(path, file, MAX_PICKLE_BYTES, named)
    scan, _ = _scan(path, file, MAX_PICKLE_BYTES, named)
    _, keys = _scan(path, file, MAX_PICKLE_BYTES, named)
    if not isinstance(keys, list) or {str(key) for key in keys} != set(scan.storages):
        raise _refusal(path, "its storages are not those it refers to", "a torch checkpoint", "others")
    needed = sum(8 + nbytes for nbytes in scan.storages.values())
    if size - file.tell() < needed:
        got = f"{size - file.tell()} bytes"
        raise _refusal(path, "its storages are shorter than declared", f"{needed} bytes", got)

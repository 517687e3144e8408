"""Imports torchaudio where its native library cannot be loaded.

The one torchaudio wheel on PyPI links CUDA; with a CPU build of torch its import ends in an OSError. Its
spectral transforms are plain torch, so they work once the module that loads the library is replaced by one
that says the library is absent. Nothing in the package needs torchaudio; tests compare with it.
"""

from __future__ import annotations

import importlib
import sys
import types

from pipeline.errors import MissingDependencyError

EXTENSION = "torchaudio._extension"


def load_torchaudio() -> types.ModuleType:
    """Return torchaudio; without its native functions (lfilter, forced alignment) where CUDA is missing.

    Raises:
        MissingDependencyError: it is not installed, or does not import even so.
    """
    try:
        return importlib.import_module("torchaudio")
    except ModuleNotFoundError as error:
        if error.name != "torchaudio":
            raise
        raise MissingDependencyError(
            "torchaudio is not installed", run="pip install 'ossicle[audio]'"
        ) from error
    except OSError:
        _forget()
    sys.modules[EXTENSION] = _without_library()
    try:
        return importlib.import_module("torchaudio")
    except (ImportError, OSError, AttributeError) as error:
        _forget()
        raise MissingDependencyError(
            f"torchaudio does not import without its native library: {error}",
            run="install the torchaudio of your torch build",
        ) from error


def has_native_library(torchaudio: types.ModuleType) -> bool:
    """Whether torchaudio's native functions can be called."""
    return bool(torchaudio._extension._IS_TORCHAUDIO_EXT_AVAILABLE)


def _forget() -> None:
    # A failed import leaves submodules behind that would be found half made.
    for name in [n for n in sys.modules if n == "torchaudio" or n.startswith("torchaudio.")]:
        del sys.modules[name]


def _without_library() -> types.ModuleType:
    stub = types.ModuleType(EXTENSION)
    stub.__dict__.update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        _load_lib=lambda name: False,
        _check_cuda_version=lambda: None,
        fail_if_no_align=_refuse,
    )
    return stub


def _refuse(function: object) -> object:
    def refused(*_: object, **__: object) -> None:
        raise MissingDependencyError(
            f"{getattr(function, '__name__', 'this function')} needs torchaudio's native library",
            run="install the torchaudio of your torch build",
        )

    return refused

"""torchaudio's pure-torch transforms, also where its compiled part does not fit the installed torch."""

from __future__ import annotations

import importlib
import sys
import types

import pytest


def load() -> types.ModuleType:
    """Return ``torchaudio.transforms``, or skip where torchaudio is not installed.

    The index's torchaudio is built for CUDA; beside a CPU build of torch its library does not load. The mel
    transforms are plain Python, so it is then imported as if it had been built without its library.
    """
    if not _library_loads():
        _without_library()
    return importlib.import_module("torchaudio.transforms")


def _library_loads() -> bool:
    try:
        importlib.import_module("torchaudio")
    except ModuleNotFoundError:
        pytest.skip("torchaudio is not installed")
    except OSError:
        return False
    return True


def _without_library() -> None:
    for name in [n for n in sys.modules if n == "torchaudio" or n.startswith("torchaudio.")]:
        del sys.modules[name]
    extension = types.ModuleType("torchaudio._extension")
    vars(extension).update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        fail_if_no_align=lambda function: function,
    )
    sys.modules["torchaudio._extension"] = extension

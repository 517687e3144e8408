"""The Kaldi filter bank's passes over memory, compiled by numba where it is installed (extra: speed)."""

from __future__ import annotations

import functools
import importlib.util
import inspect
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class CompiledPasses(NamedTuple):
    """``kaldi_frames.write_frames`` and ``kaldi_mels.write_mels``, compiled."""

    write_frames: Callable[[np.ndarray, int, int, int, np.ndarray, np.ndarray, np.float32, np.ndarray], None]
    write_mels: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.float32, bool, np.ndarray], None]


@functools.cache
def compiled() -> CompiledPasses | None:
    """Return the passes, compiled at their first call; None where numba is not installed."""
    if importlib.util.find_spec("numba") is None:
        return None
    import numba

    from pipeline.frontends.kaldi_frames import write_frames
    from pipeline.frontends.kaldi_mels import write_mels

    # Unwrapped: a shape check around the function cannot be compiled.
    frames, mels = inspect.unwrap(write_frames), inspect.unwrap(write_mels)
    # Of the frames a product and its sum must be rounded apart, as Kaldi's are.
    exact = numba.njit(nogil=True, error_model="numpy")
    contracted = numba.njit(nogil=True, error_model="numpy", fastmath={"contract"})
    return CompiledPasses(exact(frames), contracted(mels))

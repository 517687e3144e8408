"""torchaudio is imported with and without its native library, each in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.golden.golden_vectors import REPOSITORY

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torchaudio") is None, reason="torchaudio is not installed"
)

LOAD = """
import json, torch
from pipeline.audio.torchaudio_loader import has_native_library, load_torchaudio
torchaudio = load_torchaudio()
mel = torchaudio.transforms.MelSpectrogram(16_000, n_fft=512, n_mels=8)(torch.ones(1, 4_000))
again = load_torchaudio() is torchaudio
print(json.dumps({"native": has_native_library(torchaudio), "shape": list(mel.shape), "again": again}))
"""

BREAK_LIBRARY = """
import torch
def refuse(self, path):
    raise OSError(f"Could not load this library: {path}")
type(torch.ops).load_library = refuse
"""

# A library that loads is played by a module that says so: this machine's own may be built for CUDA.
WORKING_LIBRARY = """
import sys, torch, types
for name in ("_lfilter_core_loop", "_overdrive_core_loop"):
    torch.library.define(f"torchaudio::{name}", "(Tensor x, Tensor a, Tensor y) -> ()")
extension = types.ModuleType("torchaudio._extension")
extension._IS_TORCHAUDIO_EXT_AVAILABLE = True
extension.fail_if_no_align = lambda function: function
sys.modules["torchaudio._extension"] = extension
"""

ABSENT = """
import sys
sys.modules["torchaudio"] = None
from pipeline.audio.torchaudio_loader import load_torchaudio
try:
    load_torchaudio()
except ImportError as error:
    print(type(error).__name__, error)
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_its_library_the_transforms_still_work() -> None:
    found = json.loads(run(BREAK_LIBRARY + LOAD))
    assert found == {"native": False, "shape": [1, 8, 16], "again": True}


def test_a_library_that_loads_is_left_alone() -> None:
    assert json.loads(run(WORKING_LIBRARY + LOAD))["native"] is True


def test_as_installed_here_it_imports() -> None:
    assert json.loads(run(LOAD))["shape"] == [1, 8, 16]


def test_where_it_is_not_installed_the_error_says_what_to_run() -> None:
    out = run(ABSENT)
    assert out.startswith("MissingDependencyError") and "pip install" in out


def test_native_functions_refuse_clearly_without_the_library() -> None:
    code = """
import torch
from pipeline.audio.torchaudio_loader import load_torchaudio
from pipeline.errors import MissingDependencyError
torchaudio = load_torchaudio()
try:
    torchaudio.functional.forced_align(torch.zeros(1, 4, 2), torch.zeros(1, 1, dtype=torch.int32))
except MissingDependencyError as error:
    print("refused:", error.problem)
"""
    assert run(BREAK_LIBRARY + code).startswith("refused: forced_align needs torchaudio's native library")


def test_nothing_in_the_package_needs_it() -> None:
    sources = [*(REPOSITORY / "pipeline").rglob("*.py"), *(REPOSITORY / "stages").rglob("*.py")]
    starts = ("import torchaudio", "from torchaudio")
    importing = [
        path.name
        for path in sources
        if any(line.strip().startswith(starts) for line in path.read_text().splitlines())
    ]
    assert len(sources) > 20 and importing == []

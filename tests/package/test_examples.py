"""The examples give the pipeline's own embeddings: Python with numpy and onnxruntime alone, C on its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from pipeline.audio import clip_source
from pipeline.audio.windows import fit
from pipeline.config import TeacherConfig
from pipeline.teachers.run_teacher import build_run
from tests.package import made_run
from tests.package.runtime_header import header_folder

ALONE = ("numpy", "numpy.libs", "onnxruntime")
# What onnxruntime itself requires by its metadata may stand beside it; nothing of ours may.
OURS = ("torch", "pipeline", "onnx", "scipy", "soundfile", "safetensors")


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run.write_wav(tmp_path_factory.mktemp("sound") / "sound.wav")


@pytest.fixture(scope="module")
def expected(trained: Path, wav: Path) -> np.ndarray:
    """What stage 1 would hear from the run itself, in torch, window by window."""
    teacher = build_run(TeacherConfig(name=f"run:{trained}"))
    sound, rate_hz = clip_source.read(wav)
    assert rate_hz == teacher.sample_rate_hz
    samples = round(made_run.WINDOW_SECONDS * rate_hz)
    windows = [fit(sound[start:], samples) for start in range(0, len(sound), samples)]
    assert len(windows) == 4
    return teacher.embed(torch.from_numpy(np.stack(windows)))["embedding"].numpy()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An interpreter that finds the standard library, numpy and onnxruntime, and no other package."""
    folder = tmp_path_factory.mktemp("alone")
    site = Path(onnxruntime.__file__).parents[1]
    for name in ALONE:
        if (site / name).exists():
            (folder / name).symlink_to(site / name)
    # -S: no site-packages, -E and -P: no environment and no current folder.
    start = f"import sys, runpy; sys.path.append({str(folder)!r}); sys.argv = sys.argv[1:]; "
    start += "runpy.run_path(sys.argv[0], run_name='__main__')"
    return [sys.executable, "-S", "-E", "-P", "-c", start]


def printed(command: list[str], folder: Path | None = None) -> np.ndarray:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return np.array([[float(word) for word in line.split()] for line in done.stdout.splitlines()])


def agrees(got: np.ndarray, expected: np.ndarray) -> bool:
    return got.shape == expected.shape and bool(np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max())


def test_python_needs_numpy_and_onnxruntime_alone(
    packed: Path, alone: list[str], wav: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text(f"import importlib.util as u; print([n for n in {OURS} if u.find_spec(n)])")
    done = subprocess.run([*alone, str(probe)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    got = printed([*alone, str(packed / "embed_wav.py"), str(wav), "student_fp32.onnx"], tmp_path)
    assert agrees(got, expected)
    lines = (packed / "embed_wav.py").read_text().splitlines()
    assert len([line for line in lines if line.strip()]) <= 30


def test_the_shipped_file_is_the_default_and_keeps_the_direction(
    packed: Path, alone: list[str], wav: Path, expected: np.ndarray
) -> None:
    got = printed([*alone, str(packed / "embed_wav.py"), str(wav)])
    cosine = (got * expected).sum(axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() > 0.95
    assert not agrees(got, expected)  # int8: the default is not the float file


def test_a_wrong_rate_is_one_line(packed: Path, alone: list[str], tmp_path: Path) -> None:
    other = made_run.write_wav(tmp_path / "other.wav", rate_hz=44_100)
    command = [*alone, str(packed / "embed_wav.py"), str(other)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "16000 Hz" in done.stderr


@pytest.mark.slow
@pytest.mark.network
def test_python_in_a_fresh_environment(packed: Path, wav: Path, expected: np.ndarray, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    wanted = [f"numpy=={np.__version__}", f"onnxruntime=={onnxruntime.__version__}"]
    install = [str(python), "-m", "pip", "install", "--quiet", *wanted]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"pip reaches no registry: {done.stderr.strip().splitlines()[-1]}")
    got = printed([str(python), str(packed / "embed_wav.py"), str(wav), "student_fp32.onnx"], tmp_path)
    assert agrees(got, expected)


def test_c_without_any_library_gives_the_int8_files_embedding(
    packed: Path, alone: list[str], wav: Path, tmp_path: Path
) -> None:
    if shutil.which("cc") is None or shutil.which("make") is None:
        pytest.skip("no C compiler or make")
    copy = shutil.copytree(packed, tmp_path / "model")
    command = ["make", "-C", str(copy / "c99"), "CFLAGS=-O1 -g -pedantic -fsanitize=address,undefined"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "-Werror" in done.stdout
    got = printed(["./embed_wav", str(wav)], copy / "c99")
    # As the package's own Python says, with signed integers kept on x86: its example would compute some in float.
    exact = tmp_path / "exact.py"
    exact.write_text(
        "import sys, onnxruntime as o; sys.path.insert(0, sys.argv[2]); options = o.SessionOptions()\n"
        "options.add_session_config_entry('session.qdqisint8allowed', '1'); import embed_wav as e\n"
        "e.InferenceSession = lambda p: o.InferenceSession(p, options)\nfor v in e.embed(sys.argv[1]): print(*v)\n"
    )
    want = printed([*alone, str(exact), str(wav), str(copy)])
    cosine = (got * want).sum(axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
    assert got.shape == want.shape
    # Two log-mels that differ in the last bit can fall on two sides of an int8 step.
    assert cosine.min() > 0.9995


def test_c_compiles_without_a_warning_and_gives_the_same(
    packed: Path, wav: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    header = header_folder()
    if header is None:
        pytest.skip("onnxruntime_c_api.h is not at hand (Debian 13's libonnxruntime-dev)")
    copy = shutil.copytree(packed, tmp_path / "model")
    runtime = tmp_path / "runtime"
    (runtime / "lib").mkdir(parents=True)
    (runtime / "include").symlink_to(header)
    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (runtime / "lib" / name).symlink_to(library)
    environment = {"PATH": os.environ["PATH"]}
    command = ["make", "-C", str(copy / "c"), f"ONNXRUNTIME={runtime}", "CFLAGS=-O1 -g -fsanitize=undefined"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "-Werror" in done.stdout
    assert "warning" not in done.stderr
    got = printed(["./embed_wav", str(wav), "../student_fp32.onnx"], copy / "c")
    assert agrees(got, expected)
    other = made_run.write_wav(tmp_path / "other.wav", rate_hz=44_100)
    for sound, words in (
        (other, "16000 Hz"),
        (copy / "README.md", "no WAV file"),
        (tmp_path / "no.wav", "opened"),
    ):
        done = subprocess.run(
            ["./embed_wav", str(sound)], cwd=copy / "c", capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert words in done.stderr

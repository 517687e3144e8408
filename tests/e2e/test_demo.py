"""A folder of sound to a report in one command; again, and it is reused; stage 2 without audio or its libraries."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

TOP = Path(__file__).resolve().parents[2]
RECIPE = """
headline = "distilled"
jobs = 2
[embed]
shard_rows = 64
chunk_rows = 16
teacher = { name = "tiny" }
views = { mixes = 40, textures = 20 }
[targets]
components = 8
[train]
steps = 30
validate_every = 15
batch_size = 16
label_column = "label"
[export]
calibration_clips = 32
[evaluate]
bootstrap = 50
[benchmark]
arm = false
latency_runs = 10
latency_seconds = 0.2
[runs.distilled]
[runs.random]
set = { "train.control" = "random" }
[runs.labels]
set = { "train.control" = "labels" }
"""
BLOCK = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('soundfile', 'torchaudio', 'soxr'):
            raise ModuleNotFoundError(f'{name} is not installed', name=name)
sys.meta_path.insert(0, Refuse())
"""


def ossicle(folder: Path, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{path}:{TOP}", "XDG_CACHE_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "stages.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    generator = np.random.default_rng(5)
    for label, pitch in (("low", 110.0), ("mid", 440.0), ("high", 1760.0)):
        for number in range(14):
            time = np.arange(16_000) / 16_000
            sound = np.sin(2 * np.pi * pitch * generator.uniform(0.8, 1.25) * time) + 0.1 * generator.normal(
                size=16_000
            )
            (folder / "sound" / label).mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / "sound" / label / f"{number}.wav", 0.3 * sound, 16_000)
    (folder / "sound" / "broken.wav").write_bytes(b"not a sound")
    (folder / "mine.toml").write_text(RECIPE)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_command_from_a_folder_to_a_report(work: Path) -> None:
    call = ("demo", "mine.toml", "--set", "fetch.audio_folder=sound")
    done = ossicle(work, *call)
    assert done.returncode == 0, done.stderr[-3000:]
    report = work / done.stdout.strip()
    page = report.read_text()
    assert '<script src="http' not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "distilled" in page
    scores = json.loads(next((work / "artifacts/evaluation").glob("*/scores.json")).read_text())
    assert {row["task"] for row in scores["rows"]}
    assert not list((work / "artifacts").rglob("*.tmp"))

    before = {
        p: p.stat().st_mtime_ns
        for p in (work / "artifacts").rglob("*")
        if p.suffix in (".safetensors", ".onnx")
    }
    again = ossicle(work, *call)
    assert again.returncode == 0, again.stderr[-3000:]
    for stage in ("manifest", "embed", "distill", "export", "evaluate", "benchmark"):
        assert any(stage in line and "reused" in line for line in again.stderr.splitlines()), stage
    assert {p: p.stat().st_mtime_ns for p in before} == before

    # Stage 2 opens no audio: without the files and without the libraries that could read them it still runs.
    shutil.rmtree(work / "sound")
    (work / "blocked").mkdir()
    (work / "blocked" / "sitecustomize.py").write_text(BLOCK)
    blocked = ossicle(work, "embed", *call[1:], path=str(work / "blocked"))
    assert blocked.returncode == 1, "the blockade does not block"
    assert "pip install 'ossicle[audio]'" in blocked.stderr
    assert "Traceback" not in blocked.stderr
    changed = ("--set", "train.steps=20", "--set", "student.name=micronet_m0", "--set", "loss.angle=2")
    without = ossicle(work, "distill", *call[1:], *changed, "--only", "distilled", path=str(work / "blocked"))
    assert without.returncode == 0, without.stderr[-3000:]
    student = json.loads((work / without.stdout.strip() / "student.json").read_text())
    assert student["student"]["name"] == "micronet_m0"

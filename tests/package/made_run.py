"""A run with everything that a package is made of: store, export, scores and costs of known numbers."""

from __future__ import annotations

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch

from pipeline import artifact, config
from pipeline.config import ExportConfig, StudentConfig
from pipeline.deploy.bundle import Job, export_run
from pipeline.store import schema
from pipeline.store.writer import StoreWriter
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student
from pipeline.students.saved import TeacherCredit, save_student
from tests.deploy import tiny

WINDOW_SECONDS = 0.46
DATASETS = ("bells", "mix", "voices")
LICENCES = {"bells": "CC0-1.0", "mix": "CC0-1.0 + CC-BY-SA-3.0", "voices": "CC-BY-SA-3.0"}
TEACHER = TeacherCredit(name="deep_ear", licence="CC BY-NC 4.0", citation="A. Author, Deep Ears, 2024")
SCORE, LOW, HIGH, TEACHER_SCORE, OVERLAP = 0.7125, 0.6401, 0.7803, 0.8432, 0.5678
INT8_SCORE, INSTRUCTIONS, P50_MS = 0.7083, 1_234_567, 0.4321


def write_store(folder: Path) -> str:
    """Write 24 rows of three datasets, one of them rejected; return the store's digest."""
    rows = 24
    names = [DATASETS[row % 3] for row in range(rows)]
    plan = pandas.DataFrame(
        {
            "row": range(rows), "key": [f"{row:016x}" for row in range(rows)],
            "split": ["validation" if row % 4 == 3 else "train" for row in range(rows)],
            "dataset": names, "licence": [LICENCES[name] for name in names],
        }
    )  # fmt: skip
    spectrogram = schema.spectrogram_spec(tiny.FRONTEND, tiny.FRAMES)
    embedding = schema.embedding_spec(TEACHER.name, "ab" * 32, 4, licence=TEACHER.licence)
    meta = schema.StoreMeta(
        name="tiny", manifest_digest="0" * 64, shard_rows=8, chunk_rows=4, arrays=(spectrogram, embedding),
        windowing={"embed": {"window_seconds": WINDOW_SECONDS}},
    )  # fmt: skip
    log_mels = tiny.log_mels(rows)
    with StoreWriter.create(folder, plan, meta) as writer:
        for shard in writer.pending():
            first, end = writer.meta.bounds(shard)
            silent = [{"row": 3, "reason": "silent", "problem": "no sound"}] if first <= 3 < end else []
            arrays = {
                spectrogram.path: log_mels[first:end],
                embedding.path: np.ones((end - first, 4), np.float32),
            }
            writer.write_shard(shard, arrays, silent)
        writer.finish(config={}, inputs={})
    return artifact.read(folder).digest


def make(root: Path, *, teacher: TeacherCredit | None = TEACHER, measured: bool = True) -> Path:
    """Write store, run, export, and (``measured``) an evaluation and a benchmark below ``root``; return the run."""
    store = root / "store" / "windows-0123"
    digest = write_store(store)
    folder = root / "run" / "distilled-seed0-4567"
    torch.manual_seed(0)
    student_config = StudentConfig(width=0.25)
    student = NormalisedStudent(build_student(student_config, tiny.MELS), tiny.MEAN, tiny.STD).eval()
    save_student(folder, student, student_config, tiny.FRONTEND, teacher)
    artifact.finish(folder, kind="run", config={"train": {"steps": 321}}, inputs={"store": digest})
    export = root / "export" / "distilled-seed0-89ab"
    settings = ExportConfig(calibration_clips=8, int8_min_cosine=-1.0)
    export_run(
        Job(
            "distilled-seed0",
            folder,
            store,
            export,
            settings,
            {"code": 1},
            {"run": artifact.read(folder).digest},
        )
    )
    if measured:
        _write_scores(root, artifact.read(folder).digest, export)
        write_costs(root, export)
    return folder


def _write_scores(root: Path, run_digest: str, export: Path) -> None:
    folder = root / "evaluation" / "tiny"
    int8 = config.digest({"onnx": artifact.file_digest(export / "student_s8s8.onnx")})
    models = [
        {"key": "teacher-deep_ear", "role": "teacher", "source": "t"},
        {"key": "distilled-seed0", "role": "student", "source": run_digest},
        {"key": "distilled-seed0-int8", "role": "int8", "source": int8},
    ]
    values = {"teacher-deep_ear": TEACHER_SCORE, "distilled-seed0": SCORE, "distilled-seed0-int8": INT8_SCORE}
    rows = [
        {"model": m["key"], "role": m["role"], "task": "drums", "probe": "knn", "score": values[m["key"]],
         "low": LOW, "high": HIGH}
        for m in models
    ]  # fmt: skip
    structure = [
        {"task": "drums", "model": m["key"], "neighbour_overlap": OVERLAP, "neighbours": 10} for m in models
    ]
    tasks: list[dict[str, Any]] = [
        {"name": "drums", "title": "Drum class | by kit", "licence": "CC0-1.0", "metric": "accuracy", "clips": 452,
         "groups": 12}
    ]  # fmt: skip
    artifact.write_json(
        folder / "scores.json", {"models": models, "rows": rows, "structure": structure, "tasks": tasks}
    )
    artifact.finish(folder, kind="evaluation", config={}, inputs={})


def write_costs(root: Path, export: Path, float_factor: float = 2.0) -> None:
    """Write a benchmark in which float32 costs ``float_factor`` of what int8 costs."""
    rows = []
    for precision, factor in (("fp32", float_factor), ("s8s8", 1.0)):
        path = export / f"student_{precision}.onnx"
        rows.append({
            "file_sha256": artifact.file_digest(path), "precision": precision, "parameters": 4321, "macs": 7_654_321,
            "int8_mac_share": 0.97, "peak_activation_bytes": 20_480, "x86": {"p50_ms": P50_MS * factor},
            "arm": {"cortex-a76": {"instructions": round(INSTRUCTIONS * factor)}},
        })  # fmt: skip
    folder = root / "benchmark" / "tiny"
    artifact.write_json(folder / "benchmark.json", {"rows": rows, "machine": {"name": "Some CPU"}})
    artifact.finish(folder, kind="benchmark", config={}, inputs={})


def write_wav(path: Path, seconds: float = 1.7, channels: int = 2, rate_hz: int = 16_000) -> Path:
    """Write a chord under noise as 16-bit PCM."""
    samples = int(seconds * rate_hz)
    time = np.arange(samples) / rate_hz
    noise = np.random.default_rng(7).standard_normal((samples, channels))
    chord = sum(np.sin(2 * np.pi * hz * time) for hz in (220.0, 277.2, 1_870.0))
    sound = (4_000 * (chord[:, None] + 0.3 * noise)).clip(-32_768, 32_767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(sound.tobytes())
    return path


def front_matter(card: str) -> dict[str, Any]:
    """Return the YAML block of a card; its values are JSON or plain words."""
    _, block, _ = card.split("---\n", 2)
    found = {}
    for line in block.splitlines():
        name, _, value = line.partition(": ")
        found[name] = json.loads(value) if value[0] in '["{' else value
    return found

"""A tree of finished artifacts with made-up numbers, for the report's tests; nothing is trained or measured."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest

from pipeline import artifact
from pipeline.config import Recipe
from pipeline.evaluation.scoring import Model, Score, summarise
from pipeline.measure import extra_tables
from pipeline.recipe import expand
from pipeline.store import schema
from pipeline.store.writer import StoreWriter
from stages import locations

TASKS = {
    "drums": "Drum class, grouped by kit",
    "sonic_pi": "Sonic Pi sample family",
    "esc10": "ESC-10, its own folds",
}
LEVELS = {"teacher": 0.86, "student": 0.82, "int8": 0.818, "labels": 0.74, "random": 0.66, "log_mel": 0.55}
DATASETS = (
    ("hydrogen-drumkits", "drums", "GPL-2.0"),
    ("klettres", "speech", "GPL-2.0"),
    ("onsen", "ambience", "CC0-1.0"),
)


def recipe(root: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "paper",
            "headline": "cnn4_wide",
            "paths": {"artifacts": root},
            "evaluate": {"tasks": ["drums", "sonic_pi"]},
            "embed": {"frontend": {"mels": 32}},
            "runs": {
                "cnn4_wide": {"seeds": [1, 2, 3], "set": {"student.name": "cnn4_wide"}},
                "labels": {"seeds": [1], "set": {"student.name": "cnn4_wide", "train.control": "labels"}},
                "random": {
                    "seeds": [1, 2, 3, 4, 5],
                    "set": {"student.name": "cnn4_wide", "train.control": "random"},
                },
                "micronet_m0": {"seeds": [1], "set": {"student.name": "micronet_m0"}},
            },
        }
    )


def place(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the stages look below ``root`` whatever the digests say."""
    monkeypatch.setattr(locations, "store_folder", lambda recipe: root / "store")
    monkeypatch.setattr(locations, "run_folder", lambda run: root / "run" / run.label)
    monkeypatch.setattr(locations, "export_folder", lambda run: root / "export" / run.label)


def write_store(root: Path) -> None:
    rng = np.random.default_rng(0)
    rows = 48
    chosen = [DATASETS[row % 3] for row in range(rows)]
    plan = pandas.DataFrame(
        {
            "row": range(rows), "key": [f"{row:016x}" for row in range(rows)],
            "split": ["validation" if row % 8 == 0 else "train" for row in range(rows)],
            "view": ["clean" if row % 2 else "mix" for row in range(rows)], "label": "",
            "dataset": [c[0] for c in chosen], "kind": [c[1] for c in chosen], "licence": [c[2] for c in chosen],
        }
    )  # fmt: skip
    spectrogram = schema.spectrogram_spec(recipe(root).embed.frontend, 60)
    embedding = schema.embedding_spec("aisfx", "ab" * 32, 4, licence="CC-BY-4.0")
    meta = schema.StoreMeta(
        name="paper", manifest_digest="0" * 64, shard_rows=48, chunk_rows=16, arrays=(spectrogram, embedding)
    )
    with StoreWriter.create(root / "store", plan, meta) as writer:
        time = (
            np.cumsum(rng.normal(0, 0.6, (rows, 1, 60)), axis=2) - np.abs(rng.normal(0, 3, (rows, 32, 1))) - 4
        )
        embeddings = np.ones((rows, 4), np.float32)
        arrays = {spectrogram.path: time + rng.normal(0, 0.5, (rows, 32, 60)), embedding.path: embeddings}
        writer.write_shard(0, arrays)
        writer.finish(config={}, inputs={})


def write_runs(root: Path, *, exported: bool = True) -> None:
    for index, run in enumerate(expand(recipe(root))):
        folder, control = root / "run" / run.label, run.recipe.train.control
        steps = 0 if control == "random" else 2000
        lines = [{"step": 0, "effective_rank": 20.0}]
        for step in range(100, steps + 1, 100):
            lines.append({"step": step, "loss": 0.9 * 0.9985**step + 0.2})
            if step % 500 == 0:
                lines.append(
                    {"step": step, "validation_loss": 0.9 * 0.9985**step + 0.25, "effective_rank": 40.0}
                )
        artifact.write_bytes(folder / "metrics.jsonl", "".join(json.dumps(x) + "\n" for x in lines).encode())
        summary = {
            "steps": steps, "validation_neighbour_overlap": 0.41, "effective_rank": 41.7, "embedding_dim": 320,
            "collapsed": False,
        }  # fmt: skip
        if steps:
            summary["validation_loss"] = 0.31
        record = artifact.finish(
            folder, kind="run", config={"run": index}, inputs={"store": "cd" * 32}, summary=summary
        )
        if exported and control == "none":
            int8 = {
                "precision": "s8s8", "ops": "all", "kept_float": [], "centred_cosine": 0.9962, "cosine": 0.9998,
                "compared_rows": 256, "compared_split": "validation", "target_met": True, "file_bytes": 213_000,
            }  # fmt: skip
            found = {
                "label": run.label, "student": run.recipe.student.name, "parameters": 190_952, "fp32_bytes": 771_000,
                "parity_worst_relative": 7e-7, "int8": int8,
            }  # fmt: skip
            artifact.finish(
                root / "export" / run.label, kind="export", config={"export": index},
                inputs={"run": record.digest}, summary=found,
            )  # fmt: skip


def models(root: Path) -> list[Model]:
    found = [Model("teacher-aisfx", "teacher", "aisfx")]
    for run in expand(recipe(root)):
        role = {"none": "student", "labels": "labels", "random": "random"}[run.recipe.train.control]
        found.append(Model(run.label, role, run.name, run.seed, run.recipe.student.name))
        if role == "student":
            found.append(Model(f"{run.label}-int8", "int8", run.name, run.seed, run.recipe.student.name))
    found += [
        Model(f"random-m0-{s}", "random", "random_micronet_m0_w1-ab12cd", s, "micronet_m0") for s in (1, 2)
    ]
    return [
        *found,
        Model("log_mel-mean", "log_mel", "mean"),
        Model("log_mel-mean_std", "log_mel", "mean_std"),
    ]


def scores(root: Path) -> list[Score]:
    rng = np.random.default_rng(1)
    rows = []
    for task in TASKS:
        for model in models(root):
            for probe, bonus in (("knn", 0.0), ("linear", 0.04)):
                score = round(LEVELS[model.role] + bonus + float(rng.uniform(-0.01, 0.01)), 4)
                rows.append(
                    Score(
                        model.key, model.role, model.name, model.label, model.seed, model.floor, task, probe, score,
                        score - 0.05, score + 0.05, [score] * 3,
                    )
                )  # fmt: skip
    return rows


def write_evaluation(root: Path) -> None:
    folder = locations.evaluation_folder(recipe(root))
    rng = np.random.default_rng(2)
    rows = scores(root)
    structure = [
        {
            "task": task, "model": m.key, "role": m.role, "name": m.name, "seed": m.seed, "effective_rank": 37.2,
            "linear_cka": 0.71, "neighbour_overlap": 0.43, "neighbours": 10,
        }
        for task in TASKS
        for m in models(root)
    ]  # fmt: skip
    described = [
        {
            "name": task, "title": title, "about": "Made-up clips.", "licence": "CC0-1.0", "metric": "accuracy",
            "labelled": True, "clips": 120, "groups": 40, "classes": dict.fromkeys("abcdef", 20), "folds": [1, 2, 3],
            "left_out": {}, "unusable": [],
        }
        for task, title in TASKS.items()
    ]  # fmt: skip
    record = {
        "schema": "ossicle-evaluation/1", "recipe": "paper", "headline": "cnn4_wide",
        "models": [{**asdict(m), "label": m.label, "dim": 320} for m in models(root)], "tasks": described,
        "rows": [row.as_json() for row in rows], "summary": summarise(rows), "structure": structure, "settings": {},
    }  # fmt: skip
    labels = [name for name in ("kick", "snare", "hihat", "cymbal", "tom", "clap") for _ in range(20)]
    centres = np.repeat(rng.normal(0, 8, (6, 2)), 20, axis=0)
    maps = {
        key: (centres + rng.normal(0, 2.2, (120, 2))).round(3).tolist()
        for key in ("teacher-aisfx", "cnn4_wide-seed1", "random-seed1")
    }
    projections = {"drums": {"clip_id": [f"{i}" for i in range(120)], "label": labels, "maps": maps}}
    artifact.write_json(folder / "scores.json", record)
    artifact.write_json(folder / "projections.json", projections)
    artifact.finish(folder, kind="evaluation", config={}, inputs={"task:drums": "ef" * 32})


def benchmark_rows(root: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, parameters, macs in (("cnn4_wide", 190_952, 13.7e6), ("micronet_m0", 333_216, 2.9e6)):
        export = artifact.read(root / "export" / f"{name}-seed1").digest
        for precision, factor in (("fp32", 1.0), ("s8s8", 0.45), ("u8s8", 0.5)):
            row: dict[str, Any] = {
                "kind": "student", "model": name, "run": f"{name}-seed1", "seed": 1, "headline": name == "cnn4_wide",
                "precision": precision, "export_digest": export, "parameters": parameters, "macs": macs,
                "flops": 2 * macs, "file_kb": 753.2 * factor, "peak_activation_bytes": 812_000 * factor,
                "int8_mac_share": 0.0 if precision == "fp32" else 1.0, "not_measured": {},
                "x86": {"p10_ms": 1.1 * factor, "p50_ms": 1.21 * factor, "p95_ms": 1.9 * factor},
            }  # fmt: skip
            if precision == "u8s8":
                row["not_measured"]["arm"] = "u8s8 is for timing on x86"
            else:
                same = {"equal": True, "max_abs_difference": 0.0, "cosine": 1.0, "believable": True}
                row["arm"] = {
                    cpu: {"instructions": int(9.1e6 * factor * slow), "comparison": same}
                    for cpu, slow in (("cortex-a72", 1.3), ("cortex-a76", 1.0))
                }
            rows.append(row)
    rows.append({
        "kind": "frontend", "model": "log-mel frontend", "precision": "fp32", "headline": False, "parameters": 0,
        "macs": 33e6, "flops": 66e6, "file_kb": 1100.0, "not_measured": {"arm": "QEMU is not installed"},
    })  # fmt: skip
    shared = {
        "precision": "fp32",
        "headline": False,
        "not_measured": {"exact": "the teacher is not exported"},
    }
    rows.append({**shared, "kind": "teacher", "model": "aisfx", "parameters": 4_700_000, "macs": 1.93e9,
                 "flops": 3.86e9, "x86": {"p10_ms": 61.0, "p50_ms": 66.0, "p95_ms": 80.0}})  # fmt: skip
    rows.append({**shared, "kind": "teacher_frontend", "model": "aisfx frontend", "parameters": 0, "macs": 12e6,
                 "flops": 24e6})  # fmt: skip
    return rows


def write_benchmark(root: Path) -> None:
    folder = locations.benchmark_folder(recipe(root))
    record = {
        "schema": "ossicle-benchmark/1", "recipe": "paper", "headline": "cnn4_wide", "window_seconds": 2.3,
        "machine": {"name": "A <fast> processor", "machine": "x86_64"}, "rows": benchmark_rows(root),
    }  # fmt: skip
    for row in record["rows"]:  # type: ignore[attr-defined]
        if row["kind"] == "student":
            row.update(weight_bytes=700_000, graph_bytes=70_000, arena_bytes=830_000)
            row["x86"]["memory"] = {"delta_bytes": 9_000_000}
    artifact.write_json(folder / "benchmark.json", record)
    layer = {
        "index": 0,
        "name": "conv",
        "op": "FusedConv",
        "kind": "float",
        "output_shape": [1, 24, 32, 58],
        "macs": 400_000,
        "parameters": 216,
        "live_bytes": 178_176,
        "time_share": 0.25,
        "instructions": 123_456,
    }
    layers = [layer, {**layer, "index": 1, "op": "Gemm", "time_share": 0.75, "instructions": 370_368}]
    models = {
        f"{name} fp32": {"model": name, "precision": "fp32", "file_sha256": "0" * 64, "layers": layers}
        for name in ("cnn4_wide", "micronet_m0")
    }
    artifact.write_json(
        folder / "layers.json",
        {"schema": "ossicle-layers/1", "cpu": "cortex-a76", "profiled_runs": 20, "models": models},
    )  # fmt: skip
    columns = (extra_tables.Column(key="model", heading="model"),
               extra_tables.Column(key="cycles", heading="M cycles", decimals=2))  # fmt: skip
    npu = extra_tables.ExtraTable(
        name="npu", title="Ethos-U55-128 by Vela", kind="estimate", note="A model's figures, no board's.",
        columns=columns, rows=({"model": "cnn4_wide", "cycles": 0.94},),
    )  # fmt: skip
    extra_tables.write(folder, npu)
    artifact.finish(folder, kind="benchmark", config={}, inputs={})

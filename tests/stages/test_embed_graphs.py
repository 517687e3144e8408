"""TFLite, ONNX and a finished run teach through a recipe's lines alone, in worker processes."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from pipeline import recipe as recipes
from pipeline.store.reader import StoreReader
from pipeline.teachers.registry import build_teacher
from pipeline.training.job import run_job
from stages import embed
from tests.golden.test_golden_yamnet_tflite import MODELS, snippet
from tests.stages.embed_corpus import prepared
from tests.teachers.tiny_graphs import waveform_graph
from tests.training import small_store

YAMNET = sorted(MODELS.glob("*.tflite"))


def run(recipe: Any) -> Path:
    with Path(os.devnull).open("w") as nowhere:
        return embed.run(recipe, console=Console(file=nowhere))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def onnx_teacher(folder: Path) -> dict[str, Any]:
    path = waveform_graph(folder / "tiny.onnx", 4_000)
    options = {"name": "tiny_graph", "sample_rate_hz": 16_000, "embedding": "hidden", "logits": "logits",
               "licence": "CC0-1.0", "citation": "none"}  # fmt: skip
    return {"name": "onnx", "weights": path, "trust_sha256": digest(path), "options": options,
            "outputs": ["embedding", "logits"]}  # fmt: skip


def yamnet_teacher() -> dict[str, Any]:
    given = snippet()
    return {**given, "weights": YAMNET[0], "options": {**given["options"], "checkpoint": None}}


def has_yamnet() -> bool:
    return bool(YAMNET) and importlib.util.find_spec("ai_edge_litert") is not None


def run_teacher(folder: Path) -> dict[str, Any]:
    recipe = small_store.small_recipe(**{"train.steps": 2, "train.validate_every": 2})
    store = small_store.write_store(folder / "small", recipe, rows=64)
    run_job(small_store.small_job(store, folder / "runs" / "assistant-seed0-abc", recipe))
    return {"name": f"run:{folder}/runs/assistant-*", "dtype": "float32"}


def test_declared_teachers_embed_into_one_store(tmp_path: Path) -> None:
    given = [onnx_teacher(tmp_path), run_teacher(tmp_path), *([yamnet_teacher()] if has_yamnet() else [])]
    recipe = prepared(tmp_path / "corpus", clips=8, embed__views__mixes=4, embed__views__textures=0)
    recipe = recipes.change(recipe, {"embed.teacher": given[0], "embed.more_teachers": given[1:]})
    store = run(recipe)
    for config in recipe.embed.all_teachers:
        teacher = build_teacher(config)
        reader = StoreReader(store, teacher=teacher.digest())
        assert (reader.embedding.name, reader.embedding.licence) == (teacher.name, teacher.licence)
        shards = [reader.read_shard(i, arrays=("embedding",)) for i in range(len(reader.shard_sizes))]
        embeddings = np.concatenate([shard["embedding"] for shard in shards])
        assert embeddings.shape == (len(reader.rows), teacher.embedding_dim)
        assert (reader.rows["status"] == "ok").all()
        assert np.isfinite(embeddings).all()
        silence = teacher.embed(torch.zeros(1, teacher.window_samples))["embedding"].numpy()
        heard = np.abs(embeddings - silence).max(axis=1) > 1e-3
        assert heard.mean() > 0.9, teacher.name

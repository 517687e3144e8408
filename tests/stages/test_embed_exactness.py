"""A teacher in bfloat16 is measured against itself in float32 before anything is embedded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from rich.console import Console
from torch import Tensor

from pipeline.config import Recipe, TeacherConfig
from pipeline.embedding import pool
from pipeline.errors import ConfigError
from pipeline.store.reader import StoreReader
from pipeline.teachers.network import NetworkTeacher
from pipeline.teachers.registry import teachers
from stages import embed
from tests.stages.embed_corpus import prepared
from tests.stages.test_embed_outputs import embed_here

VIEWS = {"embed__views__mixes": 0, "embed__views__textures": 0}


class Linear(NetworkTeacher):
    """One matrix on the spectrum's magnitudes; ``cancelling`` subtracts what bfloat16 cannot hold apart."""

    code_version, name, licence, citation = "linear/1", "linear", "CC0-1.0", "none"
    sample_rate_hz, window_samples, embedding_dim = 8_000, 8_000, 6
    outputs = ("embedding",)

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__(config, "0" * 64, {"cancelling": bool(config.options.get("cancelling"))})
        draw = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(257, self.embedding_dim, generator=draw).to(self.dtype)

    def compute(self, waveforms: Tensor, outputs: frozenset[str]) -> dict[str, Tensor]:
        spectra = torch.stft(waveforms, 512, window=torch.ones(512), return_complex=True).abs().mean(dim=2)
        rows = spectra.to(self.dtype)
        if self.options["cancelling"]:
            rows = (rows + 1e4) - 1e4
        return {"embedding": rows @ self.matrix}


@pytest.fixture(autouse=True)
def linear(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"linear": "tests.stages.test_embed_exactness:build_linear"}
    monkeypatch.setattr(teachers, "_lazy", {**teachers._lazy, **entry})
    monkeypatch.setattr(pool, "embed_shards", embed_here)


def build_linear(config: TeacherConfig, **_: object) -> Linear:
    return Linear(config)


def recipe_of(folder: Path, **changes: Any) -> Recipe:
    return prepared(folder, clips=12, **VIEWS, embed__teacher__name="linear", **changes)


def run(recipe: Recipe) -> Path:
    return Path(str(embed.run(recipe, console=Console(file=Path(os.devnull).open("w")))))


def rows_of(folder: Path) -> np.ndarray:
    reader = StoreReader(folder)
    shards = [reader.read_shard(i, ("embedding",))["embedding"] for i in range(reader.meta.shards)]
    return np.concatenate(shards).astype(np.float64)


def test_the_agreement_stands_in_the_stores_attributes(tmp_path: Path) -> None:
    ours = run(recipe_of(tmp_path / "half", embed__teacher__dtype="bfloat16"))
    exact = run(recipe_of(tmp_path / "full", embed__teacher__dtype="float32"))
    (spec,) = [spec for spec in StoreReader(ours).meta.arrays if spec.kind == "embedding"]
    attributes: Any = zarr.open_group(ours / spec.path, mode="r").attrs.asdict()
    said = attributes["ossicle"]["config"]["float32_agreement"]
    a, b = rows_of(ours)[: int(said["windows"])], rows_of(exact)[: int(said["windows"])]
    cosine = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert said["smallest_cosine"] == pytest.approx(cosine.min(), abs=1e-6)
    assert said["mean_cosine"] == pytest.approx(cosine.mean(), abs=1e-6)
    assert 0 < said["largest_difference"] < 0.05
    (spec,) = [spec for spec in StoreReader(exact).meta.arrays if spec.kind == "embedding"]
    assert "float32_agreement" not in spec.config


def test_a_teacher_that_is_not_exact_enough_is_refused_before_any_work(tmp_path: Path) -> None:
    recipe = recipe_of(
        tmp_path, embed__teacher__dtype="bfloat16", embed__teacher__options={"cancelling": True}
    )
    with pytest.raises(ConfigError, match="not exact enough") as caught:
        run(recipe)
    assert "dtype=float32" in (caught.value.run or "")
    assert not (tmp_path / "artifacts" / "store").exists()

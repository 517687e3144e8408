"""Stage 1 with every output of several teachers and frontends in one store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from pipeline.config import Recipe
from pipeline.embedding import pool
from pipeline.errors import ConfigError
from pipeline.store.reader import StoreReader
from pipeline.teachers.registry import teachers
from pipeline.teachers.synthetic import TinyTeacher
from stages import embed
from tests.stages.embed_corpus import prepared, small_recipe, store_content

OUTPUTS = ("embedding", "frames", "layer.0", "logits")
VIEWS = {"embed__views__mixes": 0, "embed__views__textures": 0}


def quiet() -> Console:
    return Console(file=Path(os.devnull).open("w"), width=200)


def rows_of(reader: StoreReader, output: str) -> np.ndarray:
    (spec,) = [spec for spec in reader.meta.arrays if spec.output == output]
    return np.concatenate([reader.read_array(spec, shard) for shard in range(reader.meta.shards)])


@pytest.fixture(scope="module", autouse=True)
def in_this_process() -> Iterator[None]:
    """Workers would import torch anew for each little store, and know no teacher of a test's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "embed_shards", embed_here)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    folder = tmp_path_factory.mktemp("outputs")
    changes: dict[str, Any] = {"embed__teacher__outputs": OUTPUTS, "embed__frames_dtype": "float32"}
    recipe = prepared(folder, clips=20, **VIEWS, **changes)
    return recipe, embed.run(recipe, console=quiet())


def test_outputs_are_those_of_one_teacher_and_one_window(whole: tuple[Recipe, Path]) -> None:
    """The tiny teacher's embedding is its frames' mean and deviation projected: the arrays must agree."""
    reader = StoreReader(whole[1])
    made = {output: rows_of(reader, output).astype(np.float64) for output in OUTPUTS}
    frames = made["frames"]
    assert frames.shape[1:] == (8, 16)
    np.testing.assert_allclose(made["layer.0"], frames.mean(axis=1), atol=1e-5)
    summary = np.concatenate([frames.mean(axis=1), frames.std(axis=1)], axis=1)
    projected = summary @ TinyTeacher().projection.double().numpy()
    np.testing.assert_allclose(made["embedding"], projected, atol=1e-4)
    np.testing.assert_array_equal(made["logits"], made["embedding"][:, :5])


def test_frames_are_averaged_to_the_asked_rate(whole: tuple[Recipe, Path], tmp_path: Path) -> None:
    seconds = whole[0].embed.window_seconds
    changes = {
        "embed__teacher__outputs": ("embedding", "frames"), "embed__teacher__frame_rate_hz": 4 / seconds,
    }  # fmt: skip
    pooled = rows_of(
        StoreReader(
            embed.run(
                prepared(tmp_path, clips=20, **VIEWS, **changes, embed__frames_dtype="float32"),
                console=quiet(),
            )
        ),
        "frames",
    )
    own = rows_of(StoreReader(whole[1]), "frames")
    np.testing.assert_allclose(pooled, own.reshape(len(own), 4, 2, 16).mean(axis=2), atol=1e-5)


def test_top_k_keeps_the_largest_logits_and_the_tail(whole: tuple[Recipe, Path], tmp_path: Path) -> None:
    changes = {"embed__teacher__outputs": ("logits",), "embed__teacher__logits_top_k": 2}
    folder = embed.run(prepared(tmp_path, clips=20, **VIEWS, **changes), console=quiet())
    reader = StoreReader(folder, teacher="tiny:logits")
    (spec,) = [spec for spec in reader.meta.arrays if spec.kind == "logits"]
    kept = [reader.read_members(spec, shard) for shard in range(reader.meta.shards)]
    full = rows_of(StoreReader(whole[1]), "logits").astype(np.float64)
    values = np.concatenate([part["values"] for part in kept])
    tail = np.concatenate([part["tail"] for part in kept])
    np.testing.assert_allclose(values, -np.sort(-full, axis=1)[:, :2], rtol=1e-6)
    np.testing.assert_allclose(tail, np.log(np.exp(np.sort(full, axis=1)[:, :3]).sum(axis=1)), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed__teacher__outputs": ("layer.9",)}, "layer.9"),
        ({"embed__teacher__outputs": ("frames",), "embed__teacher__frame_rate_hz": 50.0}, "frame_rate_hz"),
        ({"embed__teacher__outputs": ("logits",), "embed__teacher__logits_top_k": 5}, "too few classes"),
        ({"embed__more_teachers": ({"name": "tiny"},)}, "listed twice"),
    ],
)
def test_what_a_teacher_cannot_give_stops_before_any_work(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    recipe = prepared(tmp_path, clips=4, **VIEWS, **changes)
    with pytest.raises(ConfigError, match=message):
        embed.run(recipe, console=quiet())
    assert not (tmp_path / "artifacts" / "store").exists()


class LouderTeacher(TinyTeacher):
    """The tiny teacher with another seed and another rate: in one process, so that its calls can be counted."""

    name = "louder"
    sample_rate_hz = 16_000

    def __init__(self) -> None:
        super().__init__(seed=7)


def test_teachers_and_frontends_share_windows_and_are_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two teachers and two frontends, in separate runs and in one: the same arrays, nothing made again."""
    entry_point = {"louder": "tests.stages.test_embed_outputs:build_louder"}
    monkeypatch.setattr(teachers, "_lazy", {**teachers._lazy, **entry_point})
    both = {"embed__more_teachers": ({"name": "louder"},), "embed__more_frontends": ({"mels": 32},)}
    together = embed.run(prepared(tmp_path / "one", clips=12, **VIEWS, **both), console=quiet())
    first = embed.run(prepared(tmp_path / "two", clips=12, **VIEWS), console=quiet())
    stamps = {p: p.stat().st_mtime_ns for p in first.rglob("*.zarr/**/*") if p.is_file()}
    assert embed.run(small_recipe(tmp_path / "two", **VIEWS, **both), console=quiet()) == first
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps
    apart, once = store_content(first), store_content(together)
    del apart["store.json"], once["store.json"]  # the order of arrays is the order in which they came
    assert apart == once
    names = {spec.name for spec in StoreReader(together, teacher="louder").meta.arrays}
    assert names == {"log_mel", "tiny", "louder"}


def build_louder(*_: object, **__: object) -> LouderTeacher:
    return LouderTeacher()


def embed_here(work: Any, shards: Any, workers: int, on_message: Any) -> None:
    """Do a pool's work in this process, where the registry knows the test's teacher."""
    from pipeline.embedding.array_makers import build_makers
    from pipeline.embedding.shard import ShardArrays, ShardRenderer, rates_of, wanted_specs
    from pipeline.store.writer import StoreWriter

    torch.set_num_threads(1)
    with StoreWriter.open(work.store) as writer:
        needed = {i for i, made in enumerate(work.makers) if set(made) & set(work.digests)}
        makers = build_makers(work.embed, work.cache, needed)
        renderer = ShardRenderer(work, writer)
        for shard in shards:
            specs = wanted_specs(work, writer, shard)
            made = ShardArrays(shard, specs, writer, makers)
            for batch in renderer.batches(shard, rates_of(specs, makers)):
                made.add(batch)
            writer.write_shard(shard, made.arrays, list(made.rejects.values()))

"""Verification knows every kind of array; descriptions that make no sense are refused."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy
import pytest
from pydantic import ValidationError

from pipeline.errors import ConfigError, StoreError
from pipeline.store.combination import Combination
from pipeline.store.commits import commit_path
from pipeline.store.reader import StoreReader
from pipeline.store.schema import ArraySpec, embedding_spec, output_digest, output_spec
from pipeline.store.verification import verify
from pipeline.store.zarr_layout import ShardEncoder, members, shard_file
from tests.store import every_kind

ALL = [
    (spec, name) for spec in every_kind.specs() for name in members(spec)
]  # an array's data, and what belongs to it


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return every_kind.make_store(tmp_path / "s", 32)


def test_a_flipped_byte_of_every_member(folder: Path) -> None:
    assert verify(folder).sound
    for spec, name in ALL:
        file = folder / shard_file(spec, name, 1)
        whole = file.read_bytes()
        file.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
        (problem,) = verify(folder).problems
        assert (problem.code, problem.array, problem.shard) == ("damaged_shard", spec.path, 1)
        file.write_bytes(whole)


def forge(folder: Path, spec: ArraySpec, name: str, rows: numpy.ndarray) -> None:
    """Write a member's rows into shard 1 with a record that fits."""
    content = ShardEncoder((folder / spec.path / name / "zarr.json").read_bytes()).encode(1, 32, rows)
    file = shard_file(spec, name, 1)
    (folder / file).write_bytes(content)
    path = commit_path(folder, spec, 1)
    record = json.loads(path.read_text())
    record["files"][file] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("name", "value"), [("indices", 11), ("indices", -1), ("values", numpy.nan), ("tail", numpy.inf)]
)
def test_top_k_that_a_forged_record_covers(folder: Path, name: str, value: Any) -> None:
    spec = next(spec for spec in every_kind.specs() if spec.top_k)
    rows = StoreReader(folder).read_members(spec, 1)[name]
    rows[4, ...] = value
    forge(folder, spec, name, rows)
    assert {(one.code, one.array) for one in verify(folder).problems} == {("wrong_values", spec.path)}


def test_a_class_twice(folder: Path) -> None:
    spec = next(spec for spec in every_kind.specs() if spec.top_k)
    rows = StoreReader(folder).read_members(spec, 1)["indices"]
    rows[4, 0] = rows[4, 1]
    forge(folder, spec, "indices", rows)
    assert [one.code for one in verify(folder).problems] == ["wrong_values"]


def test_digests() -> None:
    specs = every_kind.specs()
    assert len({spec.digest for spec in specs}) == len(specs)
    assert output_digest("ab" * 32, "embedding") == "ab" * 32
    wanted = {"frame_rate_hz": 2.5, "output": "frames", "teacher": "ab" * 32, "top_k": None}
    text = json.dumps(wanted, sort_keys=True, separators=(",", ":"))
    assert output_digest("ab" * 32, "frames", 2.5) == sha256(text.encode()).hexdigest()
    assert embedding_spec("t", "ab" * 32, 7) == output_spec("t", "ab" * 32, "embedding", (7,))


@pytest.mark.parametrize(
    ("output", "shape", "options"),
    [
        ("frames", (5, 7), {}),
        ("layer", (7,), {}),
        ("logits.1", (7,), {}),
        ("spectrogram", (7, 7), {}),
        ("embedding", (7,), {"top_k": 3}),
        ("layer.1", (7,), {"frame_rate_hz": 2.0}),
    ],
)
def test_outputs_that_make_no_sense(output: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    with pytest.raises(StoreError):
        output_spec("t", "ab" * 32, output, shape, **options)


@pytest.mark.parametrize(
    ("output", "shape", "options"),
    [
        ("frames", (7,), {"frame_rate_hz": 2.0}),
        ("logits", (7,), {"top_k": 7}),
        ("logits", (7,), {"top_k": 0}),
        ("layer.1", (0,), {}),
        ("logits", (7,), {"dtype": "uint8"}),
    ],
)
def test_shapes_that_make_no_sense(output: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        output_spec("t", "ab" * 32, output, shape, **options)


def test_combinations_that_make_no_sense(folder: Path) -> None:
    for teachers, how, weights in (
        ((), "concat", ()),
        (("a", "a"), "concat", ()),
        (("a", "b"), "mean", (1.0,)),
        (("a", "b"), "mean", (1.0, 0.0)),
    ):
        with pytest.raises(ConfigError):
            Combination(teachers, how, weights)  # type: ignore[arg-type]
    frames = next(spec for spec in every_kind.specs() if spec.kind == "frames")
    logits = next(spec for spec in every_kind.specs() if spec.top_k)
    embedding = every_kind.specs()[1]
    with pytest.raises(ConfigError, match="one width"):
        Combination(("a", "b"), "mean").spec([embedding, logits])
    with pytest.raises(ConfigError, match="cannot be combined"):
        Combination(("a", "b")).spec([embedding, frames])
    with pytest.raises(ConfigError, match="one width"):
        StoreReader(folder, teacher=Combination(("linear", logits.digest), "mean"))


def test_a_combination_is_read_in_place(folder: Path) -> None:
    names = ("linear", "linear:layer.2", next(spec.digest for spec in every_kind.specs() if spec.top_k))
    reader = StoreReader(folder, teacher=Combination(names))
    parts = [StoreReader(folder, teacher=name).read_shard(1, ("embedding",))["embedding"] for name in names]
    wanted = numpy.concatenate(parts, axis=1).astype(numpy.float32)
    assert reader.widths == (7, 7, 11)
    numpy.testing.assert_array_equal(reader.read_shard(1, ("embedding",))["embedding"], wanted)
    out = numpy.zeros_like(wanted)
    assert reader.read_shard(1, ("embedding",), out={"embedding": out})["embedding"] is out
    numpy.testing.assert_array_equal(out, wanted)
    mean = StoreReader(folder, teacher=Combination(names[:2], "mean", (3, 1))).read_shard(1, ("embedding",))
    numpy.testing.assert_allclose(mean["embedding"], 0.75 * parts[0] + 0.25 * parts[1], rtol=1e-6)

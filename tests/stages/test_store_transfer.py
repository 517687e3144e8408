"""``ossicle store merge | join | export-hdf5 | import-hdf5`` as a user calls them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from typer.testing import CliRunner

from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import ConfigError, MissingArtifactError, OssicleError, StoreError
from pipeline.recipe import Run
from pipeline.store.reader import StoreReader
from pipeline.store.writer import StoreWriter
from stages import cli, locations
from tests.store import made_store

MADE = made_store.content(40, rejected=(3,))


def ossicle(*arguments: str) -> str:
    """Run a command in this process; its errors are raised, what it prints is returned."""
    result = CliRunner().invoke(cli.app, list(arguments))
    if isinstance(result.exception, OssicleError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = made_store.content(40, rejected=(3,))
    made.rows["clip_id"] = [f"clip{row}" for row in range(40)]
    made.rows["group"] = [f"abcdefghi{row:02d}" for row in range(40)]
    return made_store.make_store(tmp_path / "s", made)


def part(folder: Path, shard: int) -> str:
    with StoreWriter.create(folder, MADE.rows, made_store.meta(made_store.specs(), 32, 8)) as writer:
        made_store.write_pending(writer, MADE, [shard])
    return str(folder)


def test_merge_then_train_on_it(tmp_path: Path) -> None:
    one, two = part(tmp_path / "a", 0), part(tmp_path / "b", 1)
    merged = str(tmp_path / "c")
    assert "2 shards are in none of them" in ossicle("store", "merge", one, one + "/", "--out", merged)
    assert "paths.store=" in ossicle("store", "merge", one, two, "--out", merged)
    assert "sound: 4 shards" in ossicle("store", "verify", merged)
    assert "40 rows in 2 shards" in ossicle("store", "inspect", merged)
    recipe = recipes.change(
        Recipe(), {"paths.store": merged, "embed.frontend.mels": 6, "embed.teacher.name": "linear"}
    )
    inputs = locations.run_inputs(Run("r", 0, recipe))
    assert inputs == {
        "store": StoreReader(tmp_path / "c").digest,
        "frontend": made_store.specs()[0].digest,
        "teacher": made_store.TEACHER_DIGEST,
    }
    unfinished = recipes.change(recipe, {"paths.store": one})
    with pytest.raises(MissingArtifactError, match="no finished artifact"):
        locations.run_inputs(Run("r", 0, unfinished))


def test_join_by_column_and_by_table(store: Path, tmp_path: Path) -> None:
    logits = numpy.random.default_rng(0).normal(size=(30, 5)).astype(numpy.float32)
    numpy.save(tmp_path / "logits.npy", logits)
    names = [f"Yabcdefghi{row:02d}.wav" for row in range(30)]
    (tmp_path / "names.json").write_text(json.dumps(names))
    common = ("store", "join", str(store), str(tmp_path / "logits.npy"), "--dtype", "float32")
    printed = ossicle(*common, "--teacher", "first", "--names", str(tmp_path / "names.json"))
    assert "29 of the file's 30 clips are in the store" in printed
    assert "abcdefghi30" in printed and "first:logits" in printed
    table = "clip_id,id\n" + "".join(f"clip{row},abcdefghi{29 - row:02d}\n" for row in range(30))
    (tmp_path / "ids.csv").write_text(table)
    (tmp_path / "names.csv").write_text("\n".join(names))
    ossicle(
        *common, "--teacher", "second", "--names", str(tmp_path / "names.csv"), "--ids", str(tmp_path / "ids.csv")
    )  # fmt: skip
    rows = {
        name: StoreReader(store, teacher=f"{name}:logits").read_shard(0, ("embedding",))["embedding"]
        for name in ("first", "second")
    }
    numpy.testing.assert_array_equal(rows["first"][4:30], logits[4:30])
    numpy.testing.assert_array_equal(rows["second"][4:30], logits[::-1][4:30])
    assert numpy.isnan(rows["first"][[3, 30, 31]]).all() and numpy.isnan(rows["second"][[3, 30, 31]]).all()
    assert "11 rows not covered" in ossicle("store", "inspect", str(store))
    assert "sound" in ossicle("store", "verify", str(store))


def test_what_join_cannot_do(store: Path, tmp_path: Path) -> None:
    numpy.save(tmp_path / "logits.npy", numpy.zeros((2, 5), dtype=numpy.float32))
    common = ("store", "join", str(store), str(tmp_path / "logits.npy"), "--teacher", "t")
    with pytest.raises(ConfigError, match="which row is which clip"):
        ossicle(*common)
    with pytest.raises(ConfigError, match="'relu' is unknown"):
        ossicle(*common, "--activation", "relu")
    (tmp_path / "names.json").write_text('["a", "b"]')
    with pytest.raises(StoreError, match="no such column") as caught:
        ossicle(*common, "--names", str(tmp_path / "names.json"), "--ids", "ytid")
    assert "group" in str(caught.value.expected)


def test_export_and_import(store: Path, tmp_path: Path) -> None:
    file, back = str(tmp_path / "store.h5"), str(tmp_path / "back")
    assert "store.h5" in ossicle("store", "export-hdf5", str(store), file)
    assert "40 rows, sound" in ossicle("store", "import-hdf5", file, back)
    assert made_store.file_bytes(tmp_path / "back") == made_store.file_bytes(store)


def test_errors_are_lines_and_statuses(store: Path, tmp_path: Path) -> None:
    """In a process of its own: exit status 1 and no traceback."""
    shard = next((store / "embedding").rglob("c/1/0"))
    shard.write_bytes(shard.read_bytes()[:-1])
    for arguments, words in (
        (("verify", str(store)), "truncated_shard"),
        (("export-hdf5", str(store), str(tmp_path / "x.h5")), "not what its commit record says"),
    ):
        command = [sys.executable, "-m", "stages.cli", "store", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert words in done.stderr and "Traceback" not in done.stderr

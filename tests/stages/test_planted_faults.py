"""Faults planted into a store of real rendering and a real (tiny) teacher: verify or audit finds each one."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.store.commits import commit_path
from pipeline.store.reader import StoreReader
from pipeline.store.schema import ArraySpec
from pipeline.store.zarr_layout import ShardEncoder, members, shard_file
from stages import embed, locations, store
from tests.stages import in_process
from tests.stages.embed_corpus import prepared

OUTPUTS = {"embed.teacher.outputs": ("embedding", "logits", "frames"), "embed.teacher.logits_top_k": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("faults")
    recipe = recipes.change(prepared(folder, embed__views__mixes=12, embed__views__textures=4), OUTPUTS)
    with pytest.MonkeyPatch.context() as patch:
        in_process.counted(patch)
        embed.run(recipe, console=Console(file=io.StringIO()))
    return recipe


@pytest.fixture
def planted(whole: Recipe, tmp_path: Path) -> tuple[Recipe, Path]:
    """A copy of the store, and a recipe that means it."""
    shutil.copytree(Path(locations.store_folder(whole)), tmp_path / "store")
    return recipes.change(whole, {"paths.store": str(tmp_path / "store")}), tmp_path / "store"


def said(action: Callable[..., bool], place: Path, **options: object) -> tuple[bool, str]:
    text = io.StringIO()
    well = action(place, console=Console(file=text, width=300, highlight=False), **options)
    return well, text.getvalue()


def array(folder: Path, kind: str) -> ArraySpec:
    return next(spec for spec in StoreReader(folder).meta.arrays if spec.kind == kind)


def rewrite(folder: Path, spec: ArraySpec, shard: int, rows: dict[str, np.ndarray]) -> None:
    """Put other rows into a shard and make its commit record fit, as someone who knows the format would."""
    path = commit_path(folder, spec, shard)
    record = json.loads(path.read_text())
    for name, values in rows.items():
        file = shard_file(spec, name, shard)
        description = (folder / spec.path / name / "zarr.json").read_bytes()
        content = ShardEncoder(description).encode(shard, record["rows"][0], values)
        (folder / file).write_bytes(content)
        record["files"][file] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    path.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def a_flipped_byte(folder: Path) -> None:
    spec = array(folder, "frames")
    file = folder / shard_file(spec, "frames", 1)
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 4
    file.write_bytes(data)


def a_truncated_shard(folder: Path) -> None:
    file = folder / shard_file(array(folder, "logits"), "indices", 1)
    file.write_bytes(file.read_bytes()[:-1])


def a_missing_shard(folder: Path) -> None:
    (folder / shard_file(array(folder, "embedding"), "embedding", 1)).unlink()


def a_stale_digest(folder: Path) -> None:
    """The frame rate was changed in the description; the digest still names the old one."""
    described = (folder / "store.json").read_text()
    rate = array(folder, "frames").config["frame_rate_hz"]
    assert f'"frame_rate_hz": {rate}' in described
    (folder / "store.json").write_text(described.replace(f'"frame_rate_hz": {rate}', '"frame_rate_hz": 1.0'))


def another_teachers_commit(folder: Path) -> None:
    path = commit_path(folder, array(folder, "embedding"), 1)
    path.write_text(json.dumps({**json.loads(path.read_text()), "array": "0" * 64}))


def rows_swapped_without_the_record(folder: Path) -> None:
    spec = array(folder, "embedding")
    kept = commit_path(folder, spec, 1).read_bytes()
    two_rows_swapped("embedding")(folder)
    commit_path(folder, spec, 1).write_bytes(kept)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (a_flipped_byte, "damaged_shard"),
        (a_truncated_shard, "truncated_shard"),
        (a_missing_shard, "missing_shard"),
        (a_stale_digest, "stale_digest"),
        (another_teachers_commit, "stale_digest"),
        (rows_swapped_without_the_record, "damaged_shard"),
    ],
)
def test_verify_finds(planted: tuple[Recipe, Path], fault: Callable[[Path], None], code: str) -> None:
    _, folder = planted
    assert said(store.verify, folder)[0]
    fault(folder)
    well, text = said(store.verify, folder)
    assert not well and code in text and "--repair" in text


def two_rows_swapped(kind: str) -> Callable[[Path], None]:
    def swap(folder: Path) -> None:
        spec = array(folder, kind)
        rows = StoreReader(folder).read_members(spec, 1)
        for values in rows.values():
            values[[2, 5]] = values[[5, 2]]
        rewrite(folder, spec, 1, rows)

    swap.__name__ = f"two_rows_of_{kind}_swapped"
    return swap


def two_rows_exchanged(kind: str) -> Callable[[Path], None]:
    def exchange(folder: Path) -> None:
        spec = array(folder, kind)
        reader = StoreReader(folder)
        one, two = reader.read_members(spec, 0), reader.read_members(spec, 1)
        for name in members(spec):
            one[name][4], two[name][7] = two[name][7].copy(), one[name][4].copy()
        rewrite(folder, spec, 0, one)
        rewrite(folder, spec, 1, two)

    exchange.__name__ = f"two_rows_of_{kind}_exchanged"
    return exchange


@pytest.mark.parametrize("kind", ["embedding", "spectrogram", "logits", "frames"])
@pytest.mark.parametrize("fault", [two_rows_swapped, two_rows_exchanged])
def test_audit_finds_what_a_forger_did(
    planted: tuple[Recipe, Path], fault: Callable[[str], Callable[[Path], None]], kind: str
) -> None:
    """Whoever forges the records too passes every checksum; the teacher is not to be fooled."""
    recipe, folder = planted
    fault(kind)(folder)
    assert said(store.verify, folder)[0]
    well, text = said(store.audit, folder, recipe=recipe, sample=None)
    assert not well
    named = {f"{array(folder, kind).path}: row {row}," for row in _rows_of(fault)}
    assert {line.split(" shard")[0] for line in text.splitlines() if ": row " in line} == named
    assert text.count("no: 2 rows") == 1 and text.count("yes") == 3


def _rows_of(fault: object) -> tuple[int, int]:
    return (18, 21) if fault is two_rows_swapped else (4, 23)


def test_an_honest_store_is_agreed_with(planted: tuple[Recipe, Path]) -> None:
    recipe, folder = planted
    well, text = said(store.audit, folder, recipe=recipe, sample=None)
    assert well and text.count("yes") == 4
    well, text = said(store.audit, folder, recipe=recipe, sample=1)
    shards = StoreReader(folder).meta.shards
    assert well and f" {shards} " in text  # a row of every shard, though one was asked for
    assert not said(store.audit, folder, recipe=recipe, sample=8, min_cosine=1.1)[0]
    # Recomputed in other batches, and stored as float16: no more than their last bits.
    assert said(store.audit, folder, recipe=recipe, sample=None, max_difference=0.05)[0]


def test_a_mean_shift_that_verify_cannot_see(planted: tuple[Recipe, Path]) -> None:
    recipe, folder = planted
    spec = array(folder, "embedding")
    rows = StoreReader(folder).read_members(spec, 1)
    rows["embedding"] *= 1.2
    rewrite(folder, spec, 1, rows)
    assert said(store.verify, folder)[0]
    well, text = said(store.audit, folder, recipe=recipe, sample=3)
    assert not well and "shard 1" in text and "shard 0" not in text

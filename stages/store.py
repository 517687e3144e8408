"""``ossicle store inspect | verify | audit``: look into a store, check every byte, make some rows anew.

Each returns whether the store is well; the command's exit status says the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import pandas
from rich.console import Console
from rich.table import Table

from pipeline.config import Recipe
from pipeline.errors import ConfigError, DigestMismatchError
from pipeline.store import audit as auditing
from pipeline.store import tables, verification
from pipeline.store.reader import StoreReader
from pipeline.store.schema import CLIPS_FILE, REJECTS_FILE, read_meta
from pipeline.store.writer import finished_arrays

if TYPE_CHECKING:
    from pipeline.teachers.base import Teacher

SHOWN_PROBLEMS = 20


def inspect(folder: Path, *, console: Console, recipe: Recipe | None = None) -> bool:
    """Print rows by status, split and data set, the arrays with their digests, and why rows were rejected."""
    meta = read_meta(folder)
    rows, rejects = tables.read(folder / CLIPS_FILE), tables.read(folder / REJECTS_FILE)
    finished = finished_arrays(folder)
    console.print(f"{folder}\n  schema {meta.schema_version}, manifest {meta.manifest_digest[:12]}, "
                  f"{meta.rows} rows in {meta.shards} shards of {meta.shard_rows}")  # fmt: skip
    arrays = Table("array", "made by", "type", "row", "MB", "state", "licence")
    for spec in meta.arrays:
        size = sum(file.stat().st_size for file in (folder / spec.path).rglob("*") if file.is_file())
        state = "complete" if spec.path in finished else "not finished"
        arrays.add_row(
            spec.path, spec.name, spec.dtype, " x ".join(map(str, spec.row_shape)), f"{size / 1e6:.1f}", state,
            spec.licence or "-",
        )  # fmt: skip
    console.print(arrays)
    for column in ("status", "split", "view", "dataset"):
        if column in rows.columns:
            counts = ", ".join(f"{name} {count}" for name, count in rows[column].value_counts().items())
            console.print(f"  {column}: {counts}")
    counts = ", ".join(f"{name} {count}" for name, count in rejects["reason"].value_counts().items())
    console.print(f"  rejects: {len(rejects)}{f' ({counts})' if counts else ''}")
    return True


def verify(folder: Path, *, console: Console, recipe: Recipe | None = None, repair: bool = False) -> bool:
    """Check checksums, completeness, digests and rows. With ``repair`` the damaged shards are discarded."""
    found = verification.verify(folder)
    for problem in found.problems[:SHOWN_PROBLEMS]:
        console.print(f"{problem.code}: {problem.where}: {problem.text}", markup=False)
    if len(found.problems) > SHOWN_PROBLEMS:
        console.print(f"... and {len(found.problems) - SHOWN_PROBLEMS} more")
    if found.sound:
        console.print(f"sound: {found.shards} shards, {found.files} files, {found.bytes / 1e6:.1f} MB read")
        return True
    if repair:
        discarded = verification.repair(folder, found)
        console.print(f"discarded {len(discarded)} shards; ossicle embed makes them anew")
        return False
    console.print(f"{len(found.problems)} problems; next: ossicle store verify {folder} --repair")
    return False


def audit(
    folder: Path, *, console: Console, recipe: Recipe | None = None, sample: int = 32, seed: int = 0
) -> bool:
    """Render ``sample`` rows from their audio again, run frontend and teacher, and print the agreement.

    Raises:
        ConfigError: no recipe was given, so nobody says which audio and which teacher.
        DigestMismatchError: this machine's teacher (its weights, code or dtype) is not the store's.
    """
    if recipe is None:
        raise ConfigError(
            "an audit needs the recipe: it says which audio and which teacher",
            expected="a recipe",
            got=str(folder),
            run="ossicle store audit RECIPE",
        )
    reader = StoreReader(folder, frontend=recipe.embed.frontend, teacher=recipe.embed.teacher.name)
    agreements = auditing.audit(reader, recompute(recipe, reader), sample, seed)
    table = Table(
        "array", "rows", "largest error", "relative error", "least cosine", "centred cosine", "agrees"
    )
    for one in agreements:
        table.add_row(
            one.kind, str(one.rows), f"{one.max_error:.3g}", f"{one.relative_error:.2e}", f"{one.min_cosine:.6f}",
            f"{one.centred_cosine:.6f}", "yes" if one.holds() else f"no: row {one.worst_row}",
        )  # fmt: skip
    console.print(table)
    return all(one.holds() for one in agreements)


def recompute(
    recipe: Recipe, reader: StoreReader
) -> Callable[[pandas.DataFrame], Mapping[str, numpy.ndarray]]:
    """Return the function that makes rows anew from their audio, as stage 1 does."""
    import torch

    from pipeline import manifest
    from pipeline.audio.decode import resample
    from pipeline.audio.plan import SAMPLE_RATE_HZ
    from pipeline.audio.render import ClipReader, Renderer
    from pipeline.audio.windows import fit, frame_count
    from pipeline.frontends.log_mel import LogMel
    from pipeline.teachers.registry import build_teacher
    from stages import locations

    embed, frontend = recipe.embed, recipe.embed.frontend
    teacher = build_teacher(embed.teacher, cache=recipe.paths.cache)
    _refuse_another(teacher, reader)
    clips = manifest.read(locations.manifest_folder(recipe))
    renderer = Renderer(ClipReader(clips, embed.window_seconds, recipe.manifest.peak_floor), embed.views)
    log_mel = LogMel(frontend)

    def heard(wave: numpy.ndarray, rate_hz: int) -> numpy.ndarray:
        return fit(resample(wave, SAMPLE_RATE_HZ, rate_hz), frame_count(embed.window_seconds, rate_hz))

    def make(rows: pandas.DataFrame) -> dict[str, numpy.ndarray]:
        made: dict[str, list[Any]] = {"spectrogram": [], "embedding": []}
        for first in range(0, len(rows), embed.teacher.batch_size):
            batch = rows.iloc[first : first + embed.teacher.batch_size].to_dict("records")
            waves = [renderer.render({str(name): value for name, value in row.items()}) for row in batch]
            student = numpy.stack([heard(wave, frontend.sample_rate_hz) for wave in waves])
            with torch.inference_mode():
                made["spectrogram"].append(log_mel(torch.from_numpy(student)).numpy())
            windows = torch.from_numpy(numpy.stack([heard(wave, teacher.sample_rate_hz) for wave in waves]))
            made["embedding"].append(teacher.embed(windows)["embedding"].numpy())
        return {kind: numpy.concatenate(parts) for kind, parts in made.items()}

    return make


def _refuse_another(teacher: Teacher, reader: StoreReader) -> None:
    if teacher.digest() != reader.embedding.digest:
        raise DigestMismatchError(
            f"the teacher {teacher.name} here is not the one that filled the store",
            expected=reader.embedding.digest,
            got=teacher.digest(),
            run="set embed.teacher.dtype to what the store was made with, or ossicle embed again",
        )

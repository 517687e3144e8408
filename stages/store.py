"""``ossicle store inspect | verify | audit``: look into a store, check every byte, make some rows anew.

Each returns whether the store is well; the command's exit status says the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy
import pandas
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from pipeline.config import Recipe
from pipeline.errors import ConfigError, DigestMismatchError
from pipeline.store import audit as auditing
from pipeline.store import tables, verification
from pipeline.store.commits import finished_arrays, is_finished, read_marker
from pipeline.store.location import Place, at
from pipeline.store.reader import StoreReader
from pipeline.store.schema import CLIPS_FILE, REJECTS_FILE, read_meta

if TYPE_CHECKING:
    from pipeline.embedding.array_makers import ArrayMaker

SHOWN_PROBLEMS = 20


def inspect(place: Place, *, console: Console, recipe: Recipe | None = None) -> bool:
    """Print rows by status, split and data set, the arrays with their digests, and why rows were rejected."""
    location = at(place)
    meta = read_meta(location)
    rows, rejects = tables.load(location, CLIPS_FILE), tables.load(location, REJECTS_FILE)
    finished = read_marker(location).summary["arrays"] if is_finished(location) else {}
    console.print(f"{location}\n  schema {meta.schema_version}, manifest {meta.manifest_digest[:12]}, "
                  f"{meta.rows} rows in {meta.shards} shards of {meta.shard_rows}")  # fmt: skip
    arrays = Table("array", "made by", "type", "row", "MB", "state", "licence")
    for spec in meta.arrays:
        size = sum(location.listing(spec.path).values())
        arrays.add_row(
            spec.path, spec.name if spec.output in ("", "embedding") else f"{spec.name}:{spec.output}",
            spec.dtype if spec.top_k is None else f"{spec.dtype}, top {spec.top_k}",
            " x ".join(map(str, spec.row_shape)), f"{size / 1e6:.1f}", _state(finished.get(spec.path)),
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


def _state(described: dict[str, Any] | None) -> str:
    if described is None:
        return "not finished"
    state = "complete" if "missing" not in described else f"{described['missing']} rows not covered"
    if "lost_mass" in described:
        lost = described["lost_mass"]
        state += f"; tail {lost['mean']:.2%} of the probability, at most {lost['largest']:.2%}"
    return state


def verify(place: Place, *, console: Console, recipe: Recipe | None = None, repair: bool = False) -> bool:
    """Check checksums, completeness, digests and rows. With ``repair`` the damaged shards are discarded."""
    found = verification.verify(place)
    for problem in found.problems[:SHOWN_PROBLEMS]:
        console.print(f"{problem.code}: {problem.where}: {problem.text}", markup=False)
    if len(found.problems) > SHOWN_PROBLEMS:
        console.print(f"... and {len(found.problems) - SHOWN_PROBLEMS} more")
    if found.sound:
        console.print(f"sound: {found.shards} shards, {found.files} files, {found.bytes / 1e6:.1f} MB read")
        return True
    if repair:
        discarded = verification.repair(place, found)
        console.print(f"discarded {len(discarded)} shards; ossicle embed makes them anew")
        return False
    console.print(f"{len(found.problems)} problems; next: ossicle store verify {place} --repair")
    return False


def audit(
    place: Place,
    *,
    console: Console,
    recipe: Recipe | None = None,
    sample: int | None = 32,
    seed: int = 0,
    min_cosine: float = auditing.MIN_COSINE,
    max_difference: float | None = None,
) -> bool:
    """Render rows from their audio again, run frontends and teachers, and print the agreement.

    Args:
        place: the store.
        console: where to print.
        recipe: says which audio, frontends and teachers.
        sample: rows, at least one of every shard; None = all.
        seed: of the draw.
        min_cosine: below it a row disagrees.
        max_difference: of any value; above it a row disagrees. None = a twentieth of the row's norm.

    Raises:
        ConfigError: no recipe was given, so nobody says which audio and which teacher.
        DigestMismatchError: this machine's teacher (its weights, code or dtype) is not the store's.
    """
    if recipe is None:
        raise ConfigError(
            "an audit needs the recipe: it says which audio and which teacher",
            expected="a recipe",
            got=str(place),
            run="ossicle store audit RECIPE",
        )
    reader = StoreReader(place)
    makers = _makers(recipe, reader)
    specs = [reader.meta.find(spec.path) for maker in makers for spec in maker.specs]
    rows = auditing.draw(reader, sample, seed)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("audit", total=len(rows))
        agreements = auditing.audit(
            reader, specs, recompute(recipe, makers), rows, min_cosine=min_cosine,
            max_difference=max_difference, on_rows=lambda count: progress.advance(bar, count),
        )  # fmt: skip
    table = Table(
        "array", "rows", "largest difference", "relative error", "least cosine", "centred cosine", "agrees"
    )
    for one in agreements:
        table.add_row(
            one.array, str(one.rows), f"{one.max_difference:.3g}", f"{one.max_relative_error:.2e}",
            f"{one.min_cosine:.6f}", f"{one.centred_cosine:.6f}",
            "yes" if one.holds else f"no: {len(one.disagreeing)} rows",
        )  # fmt: skip
    console.print(table)
    others = [spec.path for spec in reader.meta.arrays if spec not in specs]
    if others:
        console.print(f"not audited, of other recipes or files: {', '.join(others)}")
    for one in agreements:
        for row in one.disagreeing[:SHOWN_PROBLEMS]:
            clip = reader.rows.iloc[row]
            console.print(
                f"{one.array}: row {row}, shard {row // reader.meta.shard_rows}, key {clip['key']}, "
                f"clip {clip['clip_id']}", markup=False,
            )  # fmt: skip
        if len(one.disagreeing) > SHOWN_PROBLEMS:
            console.print(f"{one.array}: ... and {len(one.disagreeing) - SHOWN_PROBLEMS} more rows")
    return all(one.holds for one in agreements)


def recompute(recipe: Recipe, makers: Sequence[ArrayMaker]) -> auditing.Recompute:
    """Return the function that makes rows anew from their audio, as stage 1 does."""
    import torch

    from pipeline import manifest
    from pipeline.audio.plan import SAMPLE_RATE_HZ
    from pipeline.audio.render import Renderer
    from pipeline.audio.resampling import resample
    from pipeline.audio.windows import fit, frame_count
    from stages import locations

    embed = recipe.embed
    clips = manifest.read(locations.manifest_folder(recipe))
    renderer = Renderer.of(clips, embed, recipe.manifest.peak_floor)

    def make(rows: pandas.DataFrame) -> dict[str, numpy.ndarray]:
        made: dict[str, list[numpy.ndarray]] = {spec.path: [] for maker in makers for spec in maker.specs}
        for first in range(0, len(rows), embed.teacher.batch_size):
            batch = rows.iloc[first : first + embed.teacher.batch_size].to_dict("records")
            waves = [renderer.render({str(name): value for name, value in row.items()}) for row in batch]
            for maker in makers:
                frames = frame_count(embed.window_seconds, maker.sample_rate_hz)
                heard = [fit(resample(wave, SAMPLE_RATE_HZ, maker.sample_rate_hz), frames) for wave in waves]
                wanted = [spec.path for spec in maker.specs]
                for path, values in maker.make(torch.from_numpy(numpy.stack(heard)), wanted).items():
                    made[path].append(values)
        return {path: numpy.concatenate(parts) for path, parts in made.items()}

    return make


def _makers(recipe: Recipe, reader: StoreReader) -> list[ArrayMaker]:
    """Return what makes the recipe's arrays; each of them must be in the store, made by the same code."""
    from pipeline.embedding.array_makers import build_makers

    makers = [maker for maker in build_makers(recipe.embed, recipe.paths.cache) if maker is not None]
    complete = finished_arrays(reader.location)
    for spec in (spec for maker in makers for spec in maker.specs):
        if spec.path in complete:
            continue
        there = [
            known for known in reader.meta.arrays
            if known.path in complete and (known.name, known.output) == (spec.name, spec.output)
        ]  # fmt: skip
        raise DigestMismatchError(
            f"{spec.name}{f':{spec.output}' if spec.output else ''} here is not what filled the store",
            expected=", ".join(known.digest for known in there) or "an array of that name, and there is none",
            got=spec.digest,
            run="set the recipe to what the store was made with, or ossicle embed again: it adds this one",
        )
    return makers

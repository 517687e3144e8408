"""``ossicle manifest``: from the fetched packages, or a folder of yours, to one validated table of clips."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline import artifact
from pipeline.audio import clip_source, packages, quality_report, sources
from pipeline.audio.ingest import REJECT_COLUMNS, ingest
from pipeline.audio.inputs import INPUT_KINDS, Collected, collect
from pipeline.config import Recipe, digest
from pipeline.errors import ManifestError, MissingArtifactError
from pipeline.manifest import content_digest, validate
from pipeline.recipe import DATA_MANIFESTS
from stages import locations


def run(recipe: Recipe, *, console: Console) -> Path:
    """Build the manifest; a finished one is reused while the files it was made from are unchanged.

    Returns:
        The folder with ``clips.parquet``, ``labels.parquet``, ``rejects.parquet``, ``quality.parquet``,
        ``quality.json`` and ``roots.json``.
    """
    folder = locations.manifest_folder(recipe)
    collected = _collected(recipe)
    roots, candidates = collected.roots, collected.candidates
    inputs = {"files": _listing(roots, candidates, collected.rejects)}
    if artifact.is_finished(folder, artifact.identity("manifest", locations.manifest_config(recipe), inputs)):
        console.print(f"manifest: reused {folder}")
        return folder
    if not candidates:
        why = f" ({len(collected.rejects)} clips are missing or held out)" if collected.rejects else ""
        expected = "wav, flac, ogg or mp3"
        raise ManifestError(f"no sound file was found{why}", expected=expected, got=_folders(roots))
    columns = (TextColumn("manifest"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("manifest", total=len(candidates))
        found = ingest(
            candidates,
            roots,
            min_seconds=recipe.manifest.min_seconds,
            validation_share=recipe.manifest.validation_share,
            seed=recipe.manifest.seed,
            workers=min(os.cpu_count() or 1, 1 + len(candidates) // 200),
            progress=lambda done: progress.advance(bar, done),
            validation_shares=collected.validation_shares,
            near=recipe.manifest.near_duplicates,
        )
    rejects = pd.concat([pd.DataFrame(collected.rejects, columns=list(REJECT_COLUMNS)), found.rejects])
    rejects = rejects.astype("str").reset_index(drop=True)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / artifact.MARKER).unlink(missing_ok=True)
    with artifact.replacing(folder / "rejects.parquet") as path:
        rejects.to_parquet(path, index=False)
    if found.clips.empty:
        raise ManifestError("no file could be used", run=f"the reasons are in {folder / 'rejects.parquet'}")
    validate(found.clips, roots)
    tables = {"clips": found.clips, "labels": found.labels, "quality": found.quality}
    for name, table in tables.items():
        with artifact.replacing(folder / f"{name}.parquet") as path:
            table.to_parquet(path, index=False)
    quality = quality_report.summary(found.quality, found.clips, rejects)
    artifact.write_json(folder / "quality.json", quality)
    absolute = {key: str(root.resolve()) for key, root in roots.items()}
    artifact.write_bytes(folder / "roots.json", (json.dumps(absolute, indent=2) + "\n").encode())
    hours = float(found.clips["duration_seconds"].sum()) / 3600
    summary: dict[str, Any] = {
        "content": content_digest(found.clips),
        "clips": len(found.clips),
        "hours": round(hours, 3),
        "rejects": quality["rejects"],
        "quality": quality["issues"],
        "datasets": {str(k): int(v) for k, v in found.clips["dataset"].value_counts().sort_index().items()},
    }
    artifact.finish(
        folder, kind="manifest", config=locations.manifest_config(recipe), inputs=inputs, summary=summary
    )
    console.print(
        f"manifest: {len(found.clips)} clips, {hours:.2f} h; rejected: {_counted(summary['rejects'])}; in {folder}"
    )
    console.print(f"manifest: worth a look: {_counted(quality['issues'])}; by clip in quality.parquet")
    return folder


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _collected(recipe: Recipe) -> Collected:
    """Return everything that the recipe names: inputs, and its folder or its packages."""
    found = collect(recipe.manifest.inputs)
    own = recipe.fetch.audio_folder
    if own is None:
        roots, candidates = _packaged(recipe)
    elif own.is_dir():
        roots, candidates = {"folder": own}, list(sources.folder_candidates("folder", own))
    else:
        raise ManifestError("fetch.audio_folder is no folder", expected="a folder of sound files", got=own)
    if both := set(roots) & set(found.roots):
        raise ManifestError(f"two inputs are called {min(both)!r}", run="give one another dataset = '...'")
    found.roots |= roots
    found.candidates += candidates
    return found


def _packaged(recipe: Recipe) -> tuple[dict[str, Path], list[sources.Candidate]]:
    cache = recipe.paths.cache or packages.default_cache()
    known = sources.read_sources(DATA_MANIFESTS)
    roots: dict[str, Path] = {}
    candidates: list[sources.Candidate] = []
    for name in [*recipe.fetch.packages, *recipe.fetch.wheels]:
        folder = (packages.wheel_folder if "==" in name else packages.deb_folder)(cache, name)
        if not packages.is_complete(folder):
            raise MissingArtifactError(
                f"{name} is not fetched", expected=folder, run=f"make fetch RECIPE={recipe.name}"
            )
        mine = [source for source in known if source.package == name]
        if not mine:
            raise ManifestError(
                f"{name} is in no row of sources.csv", run=f"add one to {DATA_MANIFESTS / 'sources.csv'}"
            )
        roots[name] = folder
        candidates += sources.package_candidates(name, folder, mine)
    return roots, candidates


def _listing(
    roots: dict[str, Path], candidates: list[sources.Candidate], rejects: list[dict[str, str]]
) -> str:
    """Return a digest of names and sizes, and of times too where files are the user's: those may be edited."""
    rows: list[list[object]] = [[*reject.values()] for reject in rejects]
    packs: dict[Path, list[object]] = {}
    for candidate in candidates:
        row: list[object] = [
            candidate.root,
            os.fsencode(candidate.path).hex(),
            candidate.dataset,
            candidate.group,
        ]
        row += [candidate.label, candidate.kind, candidate.licence, candidate.credit]
        if candidate.split or candidate.fold != -1 or candidate.columns:
            row += [candidate.split, candidate.fold, candidate.columns]
        path = roots[candidate.root] / candidate.path
        file = clip_source.file_of(path)
        if file == path:
            row += _state(path, candidate.source)
        else:
            if file not in packs:
                packs[file] = _state(file, candidate.source)
            row += packs[file]
        rows.append(row)
    return digest(rows)


def _state(file: Path, source: str) -> list[object]:
    try:
        status = file.lstat()
    except OSError as error:
        return [error.errno]
    fetched = source not in INPUT_KINDS
    return [status.st_size] if fetched else [status.st_size, status.st_mtime_ns]


def _folders(roots: dict[str, Path]) -> str:
    return ", ".join(str(root) for root in roots.values())

"""``ossicle manifest``: from the fetched packages, or a folder of yours, to one validated table of clips."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline import artifact
from pipeline.audio import packages, sources
from pipeline.audio.ingest import ingest
from pipeline.config import Recipe, digest
from pipeline.errors import ManifestError, MissingArtifactError
from pipeline.manifest import content_digest, validate
from pipeline.recipe import DATA_MANIFESTS
from stages import locations


def run(recipe: Recipe, *, console: Console) -> Path:
    """Build the manifest; a finished one is reused while the files it was made from are unchanged.

    Returns:
        The folder with ``clips.parquet``, ``rejects.parquet`` and ``roots.json``.
    """
    folder = locations.manifest_folder(recipe)
    roots, candidates = _candidates(recipe)
    inputs = {"files": _listing(roots, candidates)}
    if artifact.is_finished(folder, artifact.identity("manifest", locations.manifest_config(recipe), inputs)):
        console.print(f"manifest: reused {folder}")
        return folder
    if not candidates:
        raise ManifestError("no sound file was found", expected="wav, flac, ogg or mp3", got=_folders(roots))
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
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / artifact.MARKER).unlink(missing_ok=True)
    with artifact.replacing(folder / "rejects.parquet") as path:
        found.rejects.to_parquet(path, index=False)
    if found.clips.empty:
        raise ManifestError("no file could be used", run=f"the reasons are in {folder / 'rejects.parquet'}")
    validate(found.clips, roots)
    with artifact.replacing(folder / "clips.parquet") as path:
        found.clips.to_parquet(path, index=False)
    absolute = {key: str(root.resolve()) for key, root in roots.items()}
    artifact.write_bytes(folder / "roots.json", (json.dumps(absolute, indent=2) + "\n").encode())
    hours = float(found.clips["duration_seconds"].sum()) / 3600
    summary: dict[str, Any] = {
        "content": content_digest(found.clips),
        "clips": len(found.clips),
        "hours": round(hours, 3),
        "rejects": {str(k): int(v) for k, v in found.rejects["reason"].value_counts().sort_index().items()},
        "datasets": {str(k): int(v) for k, v in found.clips["dataset"].value_counts().sort_index().items()},
    }
    artifact.finish(
        folder, kind="manifest", config=locations.manifest_config(recipe), inputs=inputs, summary=summary
    )
    rejected = ", ".join(f"{count} {reason}" for reason, count in summary["rejects"].items()) or "none"
    console.print(f"manifest: {len(found.clips)} clips, {hours:.2f} h; rejected: {rejected}; in {folder}")
    return folder


def _candidates(recipe: Recipe) -> tuple[dict[str, Path], list[sources.Candidate]]:
    own = recipe.fetch.audio_folder
    if own is not None:
        if not own.is_dir():
            raise ManifestError(
                "fetch.audio_folder is no folder", expected="a folder of sound files", got=own
            )
        return {"folder": own}, list(sources.folder_candidates("folder", own))
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


def _listing(roots: dict[str, Path], candidates: list[sources.Candidate]) -> str:
    """Return a digest of names and sizes, and of times too in a user's folder: files there may be edited."""
    rows = []
    for candidate in candidates:
        row: list[object] = [
            candidate.root,
            os.fsencode(candidate.path).hex(),
            candidate.dataset,
            candidate.group,
        ]
        row += [candidate.label, candidate.kind, candidate.licence, candidate.credit]
        try:
            status = (roots[candidate.root] / candidate.path).lstat()
            row += [status.st_size] if candidate.root != "folder" else [status.st_size, status.st_mtime_ns]
        except OSError as error:
            row.append(error.errno)
        rows.append(row)
    return digest(rows)


def _folders(roots: dict[str, Path]) -> str:
    return ", ".join(str(root) for root in roots.values())

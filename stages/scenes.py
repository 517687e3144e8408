"""``ossicle scenes``: spatial scenes in DEAR's layout from a speech and a background manifest."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline import artifact, manifest
from pipeline.config import Recipe
from pipeline.scenes import acoustics, layout
from pipeline.scenes.generation import generate
from pipeline.scenes.material import SPLITS, gather
from pipeline.scenes.schedule import schedule
from stages import locations

CODE = 1


def run(recipe: Recipe, *, console: Console) -> Path:
    """Make the tracks; finished ones are kept, and a finished folder is reused.

    Returns:
        The folder with ``DEAR_metadata.csv`` and ``files/<id>.wav``, to be given as ``evaluate.audio_roots.dear``.
    """
    config = recipe.scenes
    own = locations.manifest_folder(recipe)
    speech = manifest.read(config.speech_manifest or own)
    background = manifest.read(config.background_manifest or own)
    inputs = {"speech": speech.digest, "background": background.digest}
    settings = {
        "scenes": config.model_dump(
            mode="json", exclude={"workers", "speech_manifest", "background_manifest"}
        ),
        "pyroomacoustics": acoustics.version(),
        "code": CODE,
    }
    work = artifact.identity("scenes", settings, inputs)
    folder = artifact.folder_for(locations.root(recipe), "scenes", "tracks", work)
    if artifact.is_finished(folder, work):
        console.print(f"scenes: reused {folder}")
        return folder
    material = gather(speech, background, config)
    for split in SPLITS:
        recordings = {name for of in material.backgrounds[split].values() for name in of}
        console.print(
            f"scenes: {split}: {len(material.speakers[split])} speakers, {len(recordings)} background recordings "
            f"of {len(material.backgrounds[split])} environments"
        )
    slots = schedule(config, material)
    columns = (TextColumn("scenes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("scenes", total=len(slots))
        records = generate(
            folder, slots, config, material, workers=config.workers or os.cpu_count() or 1,
            progress=lambda done: progress.advance(bar, done),
        )  # fmt: skip
    layout.write_tables(folder, records, material.rejects, config.seconds)
    refused = Counter(str(row["reason"]) for row in material.rejects)
    refused.update(str(row["reason"]) for record in records for row in record["rejects"])
    summary = _summary(records) | {"rejects": dict(sorted(refused.items()))}
    artifact.finish(folder, kind="scenes", config=settings, inputs=inputs, summary=summary)
    told = ", ".join(f"{count} {reason}" for reason, count in summary["rejects"].items()) or "none"
    console.print(f"scenes: {len(records)} tracks of {config.seconds} s; clips not used: {told}; in {folder}")
    console.print(f"scenes: evaluate them with --set evaluate.audio_roots.dear={folder}", soft_wrap=True)
    return folder


def _summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    counts: dict[str, Any] = {"tracks": len(records)}
    counts["split"] = dict(Counter(record["split"] for record in records))
    for name in ("environmentClass", "indoorOrOutdoor", "stationaryOrTransientNoise", "nTargets"):
        values = Counter(str(record["labels"][name] or "no label") for record in records)
        counts[name] = dict(sorted(values.items()))
    return counts

"""``ossicle quantise``: what int8 costs an exported student, layer by layer and method by method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline import artifact
from pipeline.config import ExportConfig
from pipeline.deploy import int8_study
from pipeline.deploy.bundle import FP32
from pipeline.store.reader import StoreReader
from pipeline.students.saved import read_description
from stages import locations, quantise_table, run_records
from stages.console import progress_bar


def run(name: str, *, console: Console, parts: tuple[str, ...], store: str | None = None) -> Path:
    """Study one exported run; the same study of the same export on the same rows is reused.

    Args:
        name: a run's or an export's folder.
        console: for progress and the tables.
        parts: of ``pipeline.deploy.int8_study.PARTS``.
        store: rows are read from it; default the store that the run learnt from.

    Returns:
        The folder that holds ``quantisation.json``.

    Raises:
        MissingArtifactError: no such run, it is not exported, or its store is not there.
        DigestMismatchError: the store has another frontend.
        StoreError: the store has too few usable rows.
    """
    records = run_records.find(name)
    place = run_records.store_of(records, None) if store is None else locations.place_of(store)
    export = records.export
    frontend = read_description(export.folder).frontend
    settings = ExportConfig.model_validate(export.config["export"])
    teacher = None
    if records.run is not None and store is None:
        teacher = records.run.inputs.get("teacher.0", records.run.inputs.get("teacher"))
    reader = StoreReader(place, frontend=frontend, teacher=teacher)
    if teacher is None and len(reader.meta.arrays) > 2:
        # Another store than the run's: any of its teachers tells sounds apart well enough to cluster them.
        first = next(spec for spec in reader.meta.arrays if spec.kind == "embedding")
        reader = reader.select(teacher=first.digest)
    config = {"parts": list(parts), "export": export.config["export"], "code": 1}
    inputs = {"export": export.digest, "store": reader.digest, "rows": reader.meta.rows_digest}
    work = artifact.identity("quantisation", config, inputs)
    folder = artifact.folder_for(records.root, "quantisation", records.label, work)
    if not artifact.is_finished(folder, work):
        study = int8_study.Study(export.folder / FP32, folder, parts, settings, frontend)
        int8_study.write(study, _run(study, reader, console), config, inputs)
    result: dict[str, Any] = json.loads((folder / int8_study.RESULT).read_text(encoding="utf-8"))
    for table in quantise_table.tables(records.label, result):
        console.print(table)
    return folder


def _run(study: int8_study.Study, reader: StoreReader, console: Console) -> dict[str, Any]:
    with progress_bar(console) as progress:
        bar = progress.add_task("quantise", total=None)

        def done(what: str) -> None:
            progress.update(bar, advance=1, description=f"quantise {what}")

        return int8_study.run(study, reader, done=done)

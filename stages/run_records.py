"""What else is known of a trained run: its export, store, scores and costs, found by content and not by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import artifact, config
from pipeline.artifact import Artifact
from pipeline.errors import ConfigError, DigestMismatchError, MissingArtifactError, near_matches
from pipeline.store.commits import read_marker
from pipeline.store.location import Place


@dataclass(frozen=True)
class RunRecords:
    """A run's artifacts.

    Attributes:
        root: the folder of all artifacts.
        run: its marker; None where its folder is gone.
        export: the export's marker.
    """

    root: Path
    run: Artifact | None
    export: Artifact

    @property
    def label(self) -> str:
        """The run's name and seed."""
        return str(self.export.summary.get("label") or self.export.folder.name.rpartition("-")[0])


def find(name: str) -> RunRecords:
    """Return the records of ``name``: a run's or an export's folder.

    Raises:
        MissingArtifactError: there is no such folder, or the run is not exported.
        ConfigError: it is another artifact, or the run is exported in several ways.
    """
    folder = Path(name)
    if not folder.is_dir():
        known = [path.name for path in Path("artifacts/run").glob("*") if artifact.is_finished(path)]
        raise MissingArtifactError(
            f"no run is at {name}", expected=near_matches(folder.name, known) if known else "a run's folder",
            got="no such folder", run="ossicle distill RECIPE",
        )  # fmt: skip
    found = artifact.read(folder, run="ossicle distill RECIPE")
    root = folder.absolute().parent.parent
    if found.kind == "export":
        return RunRecords(root, run_of(root, found), found)
    if found.kind != "run":
        raise ConfigError(f"{folder} is no run", expected="a run's or an export's folder", got=found.kind)
    exports = exports_of(root, found)
    if not exports:
        raise MissingArtifactError(
            f"{folder.name} is not exported yet", expected=str(root / "export" / "..."), run="ossicle export RECIPE"
        )  # fmt: skip
    if len(exports) > 1:
        raise ConfigError(
            f"{folder.name} is exported in {len(exports)} ways", expected="one of them",
            got=", ".join(str(export.folder) for export in exports), run=f"ossicle package {exports[0].folder}",
        )  # fmt: skip
    return RunRecords(root, found, exports[0])


def run_of(root: Path, export: Artifact) -> Artifact | None:
    """Return the run that an export was made from, or None where it is not below ``root``."""
    return next((run for run in _finished(root / "run") if run.digest == export.inputs["run"]), None)


def exports_of(root: Path, run: Artifact) -> list[Artifact]:
    """Return the finished exports of a run below ``root``."""
    return [export for export in _finished(root / "export") if export.inputs.get("run") == run.digest]


def store_of(records: RunRecords, given: Place | None) -> Place:
    """Return the store that the run learnt from: ``given``, or the one of its digest below the root.

    Raises:
        MissingArtifactError: it is not there.
        DigestMismatchError: ``given`` is another store.
    """
    wanted = None if records.run is None else records.run.inputs.get("store")
    if given is not None:
        got = read_marker(given, run="ossicle embed RECIPE").digest
        if wanted is not None and got != wanted:
            raise DigestMismatchError("the run learnt from another store", expected=wanted[:12], got=got[:12])
        return given
    for store in _finished(records.root / "store"):
        if store.digest == wanted:
            return store.folder
    raise MissingArtifactError(
        "the store that the run learnt from is not here; its datasets and licences belong on the card",
        expected=f"a store of digest {wanted[:12]}" if wanted else "the run's folder beside the export",
        run="ossicle package RUN --store FOLDER",
    )


def scores_of(records: RunRecords) -> list[dict[str, Any]]:
    """Return one entry a task, probe and file of the run, from the newest evaluation that holds it.

    Each has the keys of a row of ``scores.json`` (``task``, ``probe``, ``score``, ``low``, ``high``), and
    ``file`` (name of the ONNX file; ``""`` for float32 in torch), ``described`` (of the task), ``teacher`` (score)
    and ``structure`` (the row beside the teacher), each None where there is none.
    """
    sources = {config.digest({"onnx": sha256}): name for name, sha256 in digests_of(records.export).items()}
    if records.run is not None:
        sources[records.run.digest] = ""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    evaluations = [e for e in _finished(records.root / "evaluation") if (e.folder / "scores.json").is_file()]
    for evaluation in sorted(evaluations, key=lambda e: str(e.provenance.get("finished_at"))):
        scores = json.loads((evaluation.folder / "scores.json").read_text(encoding="utf-8"))
        ours = {
            model["key"]: sources[model["source"]] for model in scores["models"] if model["source"] in sources
        }
        described = {task["name"]: task for task in scores["tasks"]}
        teachers = {
            (row["task"], row["probe"]): row["score"] for row in scores["rows"] if row["role"] == "teacher"
        }
        structure = {(row["task"], row["model"]): row for row in scores["structure"]}
        for row in scores["rows"]:
            if row["model"] not in ours:
                continue
            file = ours[row["model"]]
            found[row["task"], row["probe"], file] = {
                **row, "file": file, "described": described[row["task"]],
                "teacher": teachers.get((row["task"], row["probe"])),
                "structure": structure.get((row["task"], row["model"])),
            }  # fmt: skip
    return [found[key] for key in sorted(found)]


def costs_of(records: RunRecords) -> list[dict[str, Any]]:
    """Return the newest benchmark row of each of the export's files, with ``file`` and ``machine`` (its name)."""
    names = {sha256: name for name, sha256 in digests_of(records.export).items()}
    found: dict[str, dict[str, Any]] = {}
    benchmarks = [b for b in _finished(records.root / "benchmark") if (b.folder / "benchmark.json").is_file()]
    for benchmark in sorted(benchmarks, key=lambda b: str(b.provenance.get("finished_at"))):
        record = json.loads((benchmark.folder / "benchmark.json").read_text(encoding="utf-8"))
        for row in record["rows"]:
            name = names.get(row.get("file_sha256"))
            if name is not None:
                machine = (record.get("machine") or {}).get("name") or ""
                found[name] = {**row, "file": name, "machine": machine}
    return [found[name] for name in sorted(found)]


def digests_of(export: Artifact) -> dict[str, str]:
    """Return the SHA-256 of each ONNX file of an export, by name."""
    return {path.name: artifact.file_digest(path) for path in sorted(export.folder.glob("*.onnx"))}


def _finished(folder: Path) -> Iterator[Artifact]:
    for path in sorted(folder.glob("*")):
        if artifact.is_finished(path):
            yield artifact.read(path)

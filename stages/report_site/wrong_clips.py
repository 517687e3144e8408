"""The clips that the headline student gets most wrong, to be heard where their audio is at hand."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console

from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import OssicleError
from pipeline.evaluation import dear_table
from pipeline.evaluation.suite import suite_names
from stages import evaluation_tasks
from stages.report_page.evidence import Evidence
from stages.report_page.palette import STUDENT
from stages.report_site.blocks import Sound
from stages.report_site.subjects import file_name

FOLDER = "audio"
PLAYABLE = {".wav": "audio/wav", ".flac": "audio/flac", ".ogg": "audio/ogg", ".oga": "audio/ogg", ".mp3": "audio/mpeg",
            ".opus": "audio/ogg", ".m4a": "audio/mp4"}  # fmt: skip
ABOUT = "Held-out clips that most of {student}'s seeds and probes answer wrongly, the worst first."


@dataclass
class Heard:
    """Clips by task, and a sentence by task about them or about why there are none."""

    sounds: dict[str, list[Sound]] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Wrong:
    """One clip: where it lies, its class, what was said instead most often, and by how many of the answers."""

    path: Path
    place: str
    truth: str
    answer: str
    wrong: int
    answers: int


def gather(evidence: Evidence, folder: Path) -> Heard:
    """Return the clips to hear, copied below ``folder/audio`` or embedded, as ``[report]`` says.

    Args:
        evidence: its evaluation's ``predictions/*.parquet`` say who was wrong.
        folder: of the report.
    """
    settings, found = evidence.recipe.report, Heard()
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    record = evidence.artifacts.get("evaluation")
    if settings.audio == "none" or record is None or evidence.headline is None:
        return found
    left = int(settings.audio_megabytes * 1e6)
    for task in (evidence.scores or {})["tasks"]:
        name, table = task["name"], record.folder / "predictions" / f"{task['name']}.parquet"
        if not table.is_file() or not task["classes"]:
            continue
        try:
            worst = _worst(evidence, task, pd.read_parquet(table))[: settings.audio_clips]
        except OssicleError as error:
            found.about[name] = f"No clip can be heard: {error.problem}."
            continue
        found.about[name] = ABOUT.format(student=evidence.headline)
        for number, clip in enumerate(worst, start=1):
            reason = _unheard(clip.path, left)
            if reason:
                found.about[name] += f" {clip.path.name}: {reason}."
                continue
            left -= clip.path.stat().st_size
            source = (
                _embedded(clip.path)
                if settings.audio == "embed"
                else _copied(clip.path, folder, name, number)
            )
            about = (
                f"is {clip.truth}; taken for {clip.answer}, wrong in {clip.wrong} of {clip.answers} answers"
            )
            found.sounds.setdefault(name, []).append(Sound(f"{clip.path.name}{clip.place}", about, source))
    return found


def _worst(evidence: Evidence, task: dict[str, Any], table: pd.DataFrame) -> list[Wrong]:
    keys = [
        m["key"]
        for m in (evidence.scores or {})["models"]
        if m["role"] == STUDENT and m["name"] == evidence.headline
    ]
    columns = [c for c in table.columns if c.rpartition(".")[0] in keys]
    # Several tags a clip have no one wrong answer.
    if not columns or not all(isinstance(one, str) for one in table["truth"]):
        return []
    answers, truth = table[columns].astype(str).to_numpy(), table["truth"].astype(str).to_numpy()
    wrong = answers != truth[:, None]
    counts = wrong.sum(axis=1)
    place_of = _places(evidence.recipe, task)
    found = []
    for row in np.argsort(-counts, kind="stable")[: evidence.recipe.report.audio_clips]:
        if counts[row] == 0:
            break
        said, often = np.unique(answers[row][wrong[row]], return_counts=True)
        path, place = place_of(int(table["row"].iloc[row]))
        answer = str(said[often.argmax()])
        found.append(Wrong(path, place, str(truth[row]), answer, int(counts[row]), len(columns)))
    return found


def _places(recipe: Recipe, task: dict[str, Any]) -> Callable[[int], tuple[Path, str]]:
    """Return what gives the file of a row of predictions, and the second where it is one of a track."""
    suite = task.get("suite")
    if suite in suite_names(recipes.DATA_MANIFESTS / "suites"):
        tracks = dear_table.read(recipe.evaluate.audio_roots[suite])
        if task["unit"] == "track":
            return lambda row: (tracks.paths[row], "")
        return lambda row: (
            tracks.paths[row // tracks.seconds], f", second {row % tracks.seconds + 1}"
        )  # fmt: skip
    quiet = Console(quiet=True)
    known = {clips.task.name: clips.frame for clips in evaluation_tasks.choose(recipe, quiet, stage="report")}
    # A task of several metrics is told apart by what follows its name.
    named = [name for name in known if task["name"] == name or task["name"].startswith(f"{name}_")]
    if named:
        frame = known[max(named, key=len)]
        return lambda row: (Path(frame["path"].iloc[row]), "")
    raise OssicleError(f"the clips of {task['name']} are not in the manifest any more")


def _unheard(path: Path, left: int) -> str:
    if path.suffix.lower() not in PLAYABLE:
        return "no browser plays such files"
    if not path.is_file():
        return "not there any more"
    return "left out: report.audio_megabytes" if path.stat().st_size > left else ""


def _copied(path: Path, folder: Path, task: str, number: int) -> str:
    name = f"{file_name(task).removesuffix('.html')}-{number}{path.suffix.lower()}"
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / FOLDER / name)
    return f"{FOLDER}/{name}"


def _embedded(path: Path) -> str:
    return f"data:{PLAYABLE[path.suffix.lower()]};base64,{base64.b64encode(path.read_bytes()).decode()}"

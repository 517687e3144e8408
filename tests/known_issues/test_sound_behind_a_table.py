"""``evaluate`` called an evaluation finished although a clip of a user's table held another sound by now."""

from __future__ import annotations

import io
from pathlib import Path

import soundfile
from rich.console import Console

from pipeline.config import Recipe
from stages import evaluate, manifest
from tests.evaluation import sounds


def test_another_sound_under_the_same_name_is_evaluated_again(tmp_path: Path) -> None:
    clips = sounds.write_folder(tmp_path / "audio")
    recipe = Recipe.model_validate(
        {
            "name": "table",
            "paths": {"artifacts": tmp_path / "artifacts"},
            "fetch": {"audio_folder": tmp_path / "audio"},
            "embed": {"teacher": {"name": "tiny"}, "frontend": {"mels": 16}, "window_seconds": 0.5},
            "evaluate": {"bootstrap": 0, "shots": 0, "random_floors": 0},
        }
    )
    manifest.run(recipe, console=Console(file=io.StringIO()))
    table = tmp_path / "audio" / "mine.csv"
    table.write_text("path,label\n" + "\n".join(f"{path},{label}" for path, label in clips))

    def reused() -> bool:
        printed = io.StringIO()
        console = Console(file=printed, width=220)
        evaluate.run(recipe, console=console, model="teacher:tiny", manifest=table)
        return "reused" in printed.getvalue()

    assert not reused()
    assert reused()
    other = sounds.waveform(clips[0][1], 99, 0.7, 44_100)
    soundfile.write(tmp_path / "audio" / clips[0][0], other, 44_100)
    assert not reused()
    assert reused()

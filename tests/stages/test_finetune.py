"""The stage: a table of members, scores of folds and of averaged logits, and a stop that can be gone on from."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pipeline.errors import ConfigError, MissingArtifactError
from pipeline.students.saved import WEIGHTS_FILE
from stages import finetune, preflight
from tests.finetuning.labelled_sounds import made_manifest, recipe, write_sounds

TINY_HEAD = {"teacher": {"name": "tiny"}, "trained": "head", "clip_seconds": 0.5, "steps": 20}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sounds(tmp_path_factory.mktemp("sounds"))


def test_folds_and_seeds_are_scored_together(table: Path, tmp_path: Path) -> None:
    keys = {**TINY_HEAD, "held_out_folds": [1, 3]}
    made = recipe(tmp_path, table, finetune=keys, runs={"tiny": {"seeds": [0, 1]}})
    with pytest.raises(MissingArtifactError, match="manifest"):
        finetune.run(made, console=Console(quiet=True))
    manifest = made_manifest(made)
    said = io.StringIO()
    folder = finetune.run(made, console=Console(file=said, width=200))
    scores = json.loads((folder / "scores.json").read_text())
    assert set(scores["folds"]) == {"1", "3"}
    truth, mean = {}, {}
    for one in finetune.members_of(made, manifest):
        found = np.load(one.folder / "held_out.npz")
        truth[one.fold] = found["truth"]
        mean[one.fold] = mean.get(one.fold, 0) + found["logits"].astype(np.float64) / 2
        own = float((found["logits"].argmax(axis=1) == found["truth"]).mean())
        assert scores["folds"][str(one.fold)]["members"][one.run.label] == pytest.approx(own)
    for fold, logits in mean.items():
        right = float((logits.argmax(axis=1) == truth[fold]).mean())
        assert scores["folds"][str(fold)]["ensemble"] == pytest.approx(right)
    assert sum(map(sum, scores["confusion"]["counts"])) == 24
    assert (folder / "confusion.png").is_file()
    assert "averaged logits" in said.getvalue()
    again = io.StringIO()
    finetune.run(made, console=Console(file=again, width=200))
    assert again.getvalue().count("is finished, reused") == 4


def test_ctrl_c_leaves_a_checkpoint_and_nothing_that_looks_finished(table: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path, table, finetune={"steps": 400})
    manifest = made_manifest(made)
    (one,) = finetune.members_of(made, manifest)
    metrics = one.folder / "metrics.jsonl"

    def strike() -> None:
        while not (metrics.is_file() and metrics.stat().st_size):
            if over.wait(0.02):
                return
        os.kill(os.getpid(), signal.SIGINT)

    over = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    striker = threading.Thread(target=strike)
    striker.start()
    said = io.StringIO()
    try:
        with pytest.raises(KeyboardInterrupt):
            finetune.run(made, console=Console(file=said, width=200))
    finally:
        over.set()
        striker.join()
    assert signal.getsignal(signal.SIGINT) is before
    assert "checkpoint written" in said.getvalue()
    assert (one.folder / "checkpoint.safetensors").is_file()
    assert not (one.folder / WEIGHTS_FILE).exists()


def test_an_unknown_teacher_is_refused_before_any_work(table: Path, tmp_path: Path) -> None:
    made = recipe(tmp_path, table, finetune={"teacher": {"name": "tinny"}})
    with pytest.raises(ConfigError, match="tinny"):
        preflight.check(made, "finetune")

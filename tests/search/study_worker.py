"""A process that works on a study: ``python -m tests.search.study_worker PLACE NAME BUDGET SECONDS LOG TOGETHER``.

A trial's "training" is sleeping; what it did is appended to ``LOG``. The first one
ends only when as many processes as ``TOGETHER`` have begun theirs, so that none does all the work.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pipeline.search import crew
from pipeline.search.study import Sampling, SharedStudy


def main(place: str, name: str, budget: int, seconds: float, log: Path, together: int) -> None:
    """Do trials until the study's budget is done."""
    study = SharedStudy(place, name, ["maximize"], Sampling("random", 2, 0))

    print("ready", flush=True)
    sys.stdin.readline()

    def body(trial: Any, values: dict[str, Any], stopping: threading.Event) -> None:
        study.accept(trial, work=f"{values['x']:.12f}", folder="none")
        print(f"began {trial.number} {values['x']:.12f}", flush=True)
        (log.parent / f"begun-{os.getpid()}").touch()
        while len(list(log.parent.glob("begun-*"))) < together:
            time.sleep(0.05)
        time.sleep(seconds)
        with log.open("a") as file:
            file.write(f"{trial.number} {values['x']:.12f}\n")
        study.complete(trial, [values["x"]])

    crew.work(
        study, budget=budget, slots=1, suggest=lambda t: {"x": t.suggest_float("x", 0.0, 1.0)}, body=body
    )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5]), int(sys.argv[6]))

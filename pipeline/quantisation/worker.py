"""The process that fine-tunes one run through rounding: ``python -m pipeline.quantisation.worker``."""

from __future__ import annotations

import sys

from pipeline.training.worker import Train, serve


def _training() -> Train:
    from pipeline.quantisation.job import QatJob, run_qat

    return lambda line, **hooks: run_qat(QatJob.from_json(line), **hooks)


if __name__ == "__main__":
    sys.exit(serve(_training))

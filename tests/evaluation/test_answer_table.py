"""The table of a task's out-of-fold answers names the clips that were heard and says what each model said."""

from __future__ import annotations

import numpy as np

from pipeline.evaluation.probes import ProbeAnswers
from pipeline.evaluation.scoring import Answers


def test_answers_as_a_table_keep_row_truth_and_what_was_said() -> None:
    classes = np.array(["clap", "kick"])
    said = ProbeAnswers(np.array(["kick", "kick", "clap"]), np.full((3, 2), 0.5), classes)
    truth = np.array(["kick", "clap", "clap"])
    answers = Answers(
        "drums", "accuracy", truth, np.array(["a", "b", "b"]), np.zeros(3, dtype=np.int64),
        {("cnn4-seed1", "knn"): said.predicted == truth}, {("cnn4-seed1", "knn"): said},
        np.array([True, False, True, True]),
    )  # fmt: skip
    table = answers.table()
    assert list(table.columns) == ["row", "group", "truth", "cnn4-seed1.knn"]
    assert table["row"].tolist() == [0, 2, 3]
    wrong = table[table["truth"] != table["cnn4-seed1.knn"]]
    assert wrong[["row", "group"]].to_numpy().tolist() == [[2, "b"]]

"""Whatever was scored or trained, each with its page: training runs first, then teachers, floors and log-mels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pipeline.artifact import Artifact
from stages.report_page.evidence import Evidence, RunEvidence
from stages.report_page.palette import INT8, LABELS, LOG_MEL, RANDOM, STUDENT, TEACHER, role_order

TRAINED = (STUDENT, INT8, LABELS, RANDOM)
ROLE_OF_CONTROL = {"none": STUDENT, "random": RANDOM, "labels": LABELS, "teacher_lr": TEACHER}
ROLE_WORDS = {
    TEACHER: "teacher", STUDENT: "student", INT8: "student, int8", LABELS: "labels alone", RANDOM: "untrained",
    LOG_MEL: "log-mel, no network", "reference": "another teacher",
}  # fmt: skip
PRECISION = {STUDENT: "fp32", TEACHER: "fp32", LABELS: "fp32", RANDOM: "fp32", INT8: "s8s8"}


@dataclass(frozen=True)
class Subject:
    """One page's subject.

    Attributes:
        label: ``name-seedN``, or the name of what has no seed.
        name, role: as in ``scores.json``; the role of its float32 file.
        slug: unique, fit for a file name.
        models: its entries of ``scores.json``, float32 first.
        run: its training run, where it is one.
    """

    label: str
    name: str
    role: str
    slug: str
    models: tuple[dict[str, Any], ...]
    run: RunEvidence | None

    @property
    def page(self) -> str:
        """File of its page."""
        return f"run-{self.slug}.html"

    @property
    def title(self) -> str:
        """What it is called in headings."""
        return f"{self.label} ({ROLE_WORDS.get(self.role, self.role)})"


class Subjects:
    """All subjects of an evidence, found by model key, run label or artifact."""

    def __init__(self, evidence: Evidence) -> None:
        self.all = _subjects(evidence)
        self._by_model = {model["key"]: subject for subject in self.all for model in subject.models}
        self._by_digest: dict[str, Subject] = {}
        for subject in self.all:
            for record in made_of(subject):
                self._by_digest[record.digest] = subject

    def of_model(self, key: str) -> Subject:
        """Return the subject whose score this is."""
        return self._by_model[key]

    def label_of(self, key: str) -> str:
        """Return what the model ``key`` is called, or ``key`` where it is none."""
        found = self._by_model.get(key)
        return key if found is None else found.label

    def of_digest(self, digest: str) -> Subject | None:
        """Return the subject whose run or export this is."""
        return self._by_digest.get(digest)

    def of_role(self, role: str, name: str) -> list[tuple[Subject, dict[str, Any]]]:
        """Return subjects and models of a row of the summary, one a seed."""
        return [(s, m) for s in self.all for m in s.models if (m["role"], m["name"]) == (role, name)]

    def of_run(self, label: str) -> Subject | None:
        """Return the training run ``label``."""
        return next((s for s in self.all if s.run is not None and s.label == label), None)


def made_of(subject: Subject) -> list[Artifact]:
    """Return the run's and its export's records."""
    run = subject.run
    return [] if run is None else [run.record, *([run.export] if run.export is not None else [])]


def _subjects(evidence: Evidence) -> list[Subject]:
    models: list[dict[str, Any]] = list((evidence.scores or {}).get("models", []))
    taken: set[str] = set()
    found = []
    for run in evidence.runs:
        own = [m for m in models if m["label"] == run.label and m["role"] in TRAINED]
        models = [m for m in models if m not in own]
        role = ROLE_OF_CONTROL[run.control]
        ordered = tuple(sorted(own, key=lambda m: role_order(m["role"])))
        found.append(Subject(run.label, run.run.name, role, _slug(run.label, taken), ordered, run))
    for model in sorted(models, key=lambda m: role_order(m["role"])):
        slug = _slug(model["key"], taken)
        found.append(Subject(model["label"], model["name"], model["role"], slug, (model,), None))
    return found


def _slug(text: str, taken: set[str]) -> str:
    """Return ``text`` as a file name that no other subject has, upper and lower case counted as equal."""
    base = slug = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip(".-") or "run"
    number = 2
    while slug.lower() in taken:
        slug, number = f"{base}-{number}", number + 1
    taken.add(slug.lower())
    return slug


def file_name(task: str) -> str:
    """Return the page of a task; tasks' names are file names already."""
    return f"task-{re.sub(r'[^A-Za-z0-9_.-]+', '-', task)}.html"

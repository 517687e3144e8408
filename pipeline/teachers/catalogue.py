"""What every teacher hears and gives, where its weights come from, and whether they are here."""

from __future__ import annotations

import fnmatch
import functools
import importlib
import inspect
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import get_type_hints

from pydantic import Field

from pipeline.checkpoints.table import Checkpoint, of_teacher
from pipeline.config import Section
from pipeline.recipe import DATA_MANIFESTS
from pipeline.teachers import weights
from pipeline.teachers.options import NoOptions
from pipeline.teachers.registry import teachers

FACTS_FILE = DATA_MANIFESTS / "teachers.toml"
# What these hear and give is declared in the recipe, beside the file.
_DECLARED = ("ensemble", "onnx", "tflite")


class TeacherFacts(Section):
    """One table of ``data_manifests/teachers.toml``; what the weights or the recipe decide is left out."""

    names: tuple[str, ...] = Field(min_length=1, description="patterns of registry names")
    title: str
    parameters: int | None = Field(None, gt=0)
    sample_rate_hz: int | None = Field(None, gt=0)
    window_seconds: float | None = Field(None, gt=0, description="the window its authors use")
    embedding_dim: tuple[int, ...] = Field((), description="widths, the default first")
    outputs: tuple[str, ...] = ()
    golden: tuple[str, ...] = Field((), description="golden folders that confirm it")


@dataclass(frozen=True)
class Entry:
    """One teacher of the registry: its facts (None: somebody's own), its checkpoints, and those in the cache."""

    name: str
    facts: TeacherFacts | None
    checkpoints: tuple[Checkpoint, ...]
    present: tuple[Checkpoint, ...]

    @property
    def licence(self) -> str:
        """The licences of its checkpoints; of a graph, the recipe says it."""
        if self.name in _DECLARED:
            return "as the recipe says"
        return " / ".join(dict.fromkeys(entry.licence for entry in self.checkpoints)) or "yours"

    @property
    def state(self) -> str:
        """In a few words: weights here, not needed, or how to get them."""
        if self.name == "tiny" or self.name in teachers.entry_points():
            return "none needed"
        if self.name in _DECLARED:
            here = ", ".join(entry.name for entry in self.present)
            if self.name == "ensemble":
                return "its members'"
            return "your file" + (f"; here: {here}" if here else "")
        if not self.checkpoints:
            return "your file: embed.teacher.weights"
        if self.present:
            return "here" + (
                f": {', '.join(e.name for e in self.present)}" if len(self.checkpoints) > 1 else ""
            )
        return self.checkpoints[0].fetch_command


def read_facts(path: Path = FACTS_FILE) -> dict[str, TeacherFacts]:
    """Return every table of facts by its key."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    return {key: TeacherFacts.model_validate(table) for key, table in tables.items()}


def facts_of(name: str, facts: dict[str, TeacherFacts]) -> TeacherFacts | None:
    """Return the facts of the teacher called ``name``: of an exact name before those of a pattern."""
    exact = [f for f in facts.values() if name in f.names]
    fitting = [f for f in facts.values() if any(fnmatch.fnmatchcase(name, p) for p in f.names)]
    return next(iter(exact or fitting), None)


def entries(cache: Path | None = None) -> list[Entry]:
    """Return every teacher of the registry; nothing of their code is imported."""
    facts = read_facts()
    found = []
    for name in teachers.names():
        listed = tuple(of_teacher(name)) or tuple(
            e for e in (weights.CHECKPOINTS.get(name),) if e is not None
        )
        present = tuple(entry for entry in listed if weights.is_present(entry, cache))
        found.append(Entry(name, facts_of(name, facts), listed, present))
    return found


def option_classes(name: str) -> tuple[type[Section], ...]:
    """Return the classes of a teacher's own options; its module is imported.

    A family's options are what its module holds of ``Section`` classes named ``...Options``.
    """
    return tuple(
        value
        for value in vars(_module_of(name)).values()
        if inspect.isclass(value)
        and issubclass(value, Section)
        and value is not NoOptions
        and value.__name__.endswith("Options")
    )


def options_of(name: str) -> dict[str, tuple[str, str]]:
    """Return key to (default, meaning) of a teacher's own options; its module is imported."""
    rows = {}
    for kind in option_classes(name):
        for key, field in kind.model_fields.items():
            default = "required" if field.is_required() else repr(field.default)
            if isinstance(field.default, float):
                default = f"{field.default:.6g}"
            rows[key] = (default, field.description or "")
    return rows


def class_of(name: str) -> type | None:
    """Return the class that a teacher's builder says it returns; its module is imported."""
    made = get_type_hints(_function_of(name)).get("return")
    return made if inspect.isclass(made) else None


def _function_of(name: str) -> Callable[..., object]:
    builder = teachers.get(name)
    return builder.func if isinstance(builder, functools.partial) else builder


def _module_of(name: str) -> ModuleType:
    return importlib.import_module(_function_of(name).__module__)


def markdown() -> str:
    """Return the table of docs/teachers.md: what is the same on every machine."""
    lines = [
        "| teacher | what | parameters | rate | window | embedding | outputs | licence of the weights |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries():
        if entry.name not in teachers.entry_points():
            title = entry.facts.title if entry.facts is not None else ""
            rows.setdefault((title, entry.licence), []).append(entry)
    for (title, licence), group in rows.items():
        names = ", ".join(f"`{entry.name}`" for entry in group)
        lines.append(f"| {names} | {title} | {' | '.join(cells(group[0].facts))} | {licence} |")
    return "\n".join(lines)


def cells(facts: TeacherFacts | None) -> list[str]:
    """Return parameters, rate, window, embedding width and outputs as texts, empty where not known."""
    if facts is None:
        return ["", "", "", "", ""]
    count = facts.parameters or 0
    size = f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.3g} K" if count else ""
    rate = f"{facts.sample_rate_hz / 1000:g} kHz" if facts.sample_rate_hz else ""
    window = f"{facts.window_seconds:.3g} s" if facts.window_seconds else ""
    return [size, rate, window, " or ".join(map(str, facts.embedding_dim)), ", ".join(facts.outputs)]


def options_markdown() -> str:
    """Return the tables of docs/teachers.md that list each family's own keys; every family is imported."""
    families: dict[tuple[type[Section], ...], list[str]] = {}
    for name in [*teachers.names(), "run:FOLDER"]:
        if name not in teachers.entry_points() and option_classes(name):
            families.setdefault(option_classes(name), []).append(name)
    lines: list[str] = []
    for names in families.values():
        lines += ["**" + ", ".join(f"`{name}`" for name in names) + "**", ""]
        lines += ["| key | default | meaning |", "|---|---|---|"]
        for key, (default, meaning) in options_of(names[0]).items():
            lines.append(f"| `{key}` | `{default}` | {meaning} |")
        lines.append("")
    return "\n".join(lines).rstrip()

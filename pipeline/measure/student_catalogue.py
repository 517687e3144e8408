"""What every student is, what it costs, and how its counts compare with the published ones."""

from __future__ import annotations

import functools
import importlib
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import nn

from pipeline.config import Section, StudentConfig
from pipeline.errors import ConfigError
from pipeline.measure.complexity import count_macs, parameter_count
from pipeline.recipe import DATA_MANIFESTS
from pipeline.students.checker import frontend_of
from pipeline.students.options import kind_of
from pipeline.students.registry import build_student, students

FACTS_FILE = DATA_MANIFESTS / "students.toml"
FRAMES = 250
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


class PublishedForm(Section):
    """One form of a student whose counts are published: ``parameters`` and ``macs`` as its authors' code gives them."""

    form: str = Field(description="classes and input in a few words")
    build: str = Field(description="module:Class that makes it")
    arguments: dict[str, Any] = Field({}, description="keyword arguments; pipeline.module:NAME is looked up")
    input: tuple[int, int, int, int]
    parameters: int | None = None
    macs: int | None = Field(None, description="of convolutions and matrix products on that input")
    parameters_folded: int | None = Field(None, description="with batch norms folded into their convolutions")
    parameters_elsewhere: int = Field(0, description="of the count, what is no part of our network")
    macs_elsewhere: int = Field(0, description="of the count, what our network does without")
    stated_parameters: str | None = Field(None, description="as the authors print it: 4.88 M")
    stated_macs: str | None = None
    source: str
    explained: str | None = Field(None, description="why a stated count is not ours to the digits printed")


class StudentFacts(Section):
    """One table of ``data_manifests/students.toml``."""

    title: str
    paper: str = Field(description="authors, venue, year")
    note: str = ""
    published: tuple[PublishedForm, ...] = ()


@dataclass(frozen=True)
class Counts:
    """Parameters and MACs of one network on one input."""

    parameters: int
    parameters_folded: int
    macs: int


@dataclass(frozen=True)
class Entry:
    """One student of the registry at width 1; ``facts`` is None for somebody's own.

    Attributes:
        macs: on ``mels`` bands x 250 frames.
        causal: whether it has a causal form.
    """

    name: str
    facts: StudentFacts | None
    parameters: int
    macs: int
    mels: int
    embedding_dim: int
    causal: bool
    options: tuple[str, ...]


@functools.cache
def facts() -> dict[str, StudentFacts]:
    """Return every table by the student's name.

    Raises:
        ConfigError: a table is wrong.
    """
    return read_facts(FACTS_FILE)


def read_facts(path: Path) -> dict[str, StudentFacts]:
    """Return the tables of ``path``.

    Raises:
        ConfigError: a table is wrong.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return {name: StudentFacts.model_validate(table) for name, table in tables.items()}
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ConfigError(f"{path.name} is no table of students", got=str(error)[:300]) from error


def entries(names: Iterable[str] | None = None) -> list[Entry]:
    """Return the students called ``names``, by default all of the registry, built and counted.

    Raises:
        UnknownNameError: no such student. ConfigError: somebody's own cannot be built.
    """
    found = []
    for name in students.names() if names is None else names:
        config = StudentConfig(name=name)
        frontend = frontend_of(config)
        student = build_student(config, frontend.mels).eval()
        found.append(
            Entry(
                name=name,
                facts=facts().get(name),
                parameters=parameter_count(student),
                macs=count_macs(student, torch.zeros(1, 1, frontend.mels, FRAMES)),
                mels=frontend.mels,
                embedding_dim=student.embedding_dim,
                causal=student.not_causal is None,
                options=tuple(kind_of(students.get(name)).model_fields),
            )
        )
    return found


def counted(form: PublishedForm) -> Counts:
    """Return the counts of our network in a published form."""
    module, name = form.build.split(":")
    arguments = {key: _value(value) for key, value in form.arguments.items()}
    network: nn.Module = getattr(importlib.import_module(module), name)(**arguments).eval()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    parameters = parameter_count(network)
    return Counts(
        parameters=parameters,
        # Scale and shift of a norm become one bias of the convolution before it.
        parameters_folded=parameters - sum(norm.num_features for norm in norms),
        macs=count_macs(network, torch.zeros(form.input)),
    )


@functools.cache
def all_counts() -> dict[tuple[str, str], Counts]:
    """Return the counts of every published form by student and form: each is built and run once."""
    return {(name, form.form): counted(form) for name, fact in facts().items() for form in fact.published}


def _value(value: object) -> object:
    if isinstance(value, str) and value.startswith("pipeline.") and ":" in value:
        module, name = value.split(":")
        return getattr(importlib.import_module(module), name)
    return value


def differences(form: PublishedForm, ours: Counts) -> list[str]:
    """Return in words every count of the authors' code that ours is not; none where all are equal."""
    pairs = (
        ("parameters", form.parameters, ours.parameters + form.parameters_elsewhere),
        ("folded parameters", form.parameters_folded, ours.parameters_folded),
        ("MACs", form.macs, ours.macs + form.macs_elsewhere),
    )
    return [
        f"{what}: {want:,} published, {got:,} here"
        for what, want, got in pairs
        if want is not None and want != got
    ]


def unexplained(form: PublishedForm, ours: Counts) -> list[str]:
    """Return every stated count that ours does not round to, where nothing explains it."""
    if form.explained:
        return []
    pairs = (
        (form.stated_parameters, ours.parameters + form.parameters_elsewhere),
        (form.stated_macs, ours.macs + form.macs_elsewhere),
    )
    return [f"{text} stated, {got:,} here" for text, got in pairs if text and not rounds_to(got, text)]


def rounds_to(count: int, text: str) -> bool:
    """Return whether ``count`` prints as ``text`` ("4.88 M", "61,148") to the digits that it has."""
    number, _, unit = text.replace(",", "").partition(" ")
    decimals = len(number.partition(".")[2])
    return f"{count / UNITS[unit]:.{decimals}f}" == number


def short(count: int) -> str:
    """Return a count to three digits: 516 K, 14.1 M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def markdown(found: Iterable[Entry]) -> str:
    """Return docs/students.md's table of students at width 1."""
    lines = [
        "| student | what | parameters | MACs | embedding | causal form | paper |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for entry in found:
        if entry.facts is None:
            continue
        mels = "" if entry.mels == 64 else f" ({entry.mels} bins)"
        causal = "yes" if entry.causal else "no"
        lines.append(
            f"| `{entry.name}` | {entry.facts.title} | {entry.parameters:,} | {entry.macs:,}{mels} | "
            f"{entry.embedding_dim} | {causal} | {entry.facts.paper} |"
        )
    return "\n".join(lines)


def published_markdown() -> str:
    """Return docs/students.md's table of published counts beside ours, with its notes."""
    lines = [
        "| student, form | stated | authors' code | here | |",
        "|---|---|---|---|---|",
    ]
    notes: list[str] = []
    for name, fact in facts().items():
        for form in fact.published:
            ours = all_counts()[name, form.form]
            mark = "equal" if not differences(form, ours) and not unexplained(form, ours) else "**differs**"
            if form.explained:
                if form.explained not in notes:
                    notes.append(form.explained)
                mark = f"explained [{notes.index(form.explained) + 1}]"
            stated = _pair(form.stated_parameters, form.stated_macs)
            theirs = _pair(*(f"{n:,}" if n is not None else None for n in (form.parameters, form.macs)))
            here = _pair(f"{ours.parameters:,}", f"{ours.macs:,}")
            lines.append(f"| `{name}`, {form.form} | {stated} | {theirs} | {here} | {mark} |")
    lines += ["", "Each cell: parameters; MACs.", ""]
    lines += [f"{number}. {note}" for number, note in enumerate(notes, start=1)]
    return "\n".join(lines)


def _pair(parameters: str | None, macs: str | None) -> str:
    return "; ".join((parameters or "-", macs or "-")) if parameters or macs else "-"


def options_markdown() -> str:
    """Return docs/students.md's tables of each family's own keys; every family is imported."""
    families: dict[type[Section], list[str]] = {}
    for name in students.own_names():
        kind = kind_of(students.get(name))
        if kind.model_fields:
            families.setdefault(kind, []).append(name)
    lines: list[str] = []
    for kind, names in families.items():
        lines += ["**" + ", ".join(f"`{name}`" for name in names) + "**", ""]
        lines += ["| key | default | meaning |", "|---|---|---|"]
        lines += [f"| `{key}` | `{default}` | {meaning} |" for key, default, meaning in option_rows(kind)]
        lines.append("")
    return "\n".join(lines).rstrip()


def option_rows(kind: type[Section]) -> list[tuple[str, str, str]]:
    """Return key, default and meaning of each option."""
    return [
        (
            key,
            f"{field.default:.6g}" if isinstance(field.default, float) else repr(field.default),
            field.description or "",
        )
        for key, field in kind.model_fields.items()
    ]

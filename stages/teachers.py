"""``ossicle teachers``: what can teach, what each hears and gives, where its weights are; and the teacher checker."""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from pipeline import recipe as recipes
from pipeline.config import Recipe
from pipeline.errors import ConfigError
from stages.console import print_findings


def run(*, console: Console, markdown: bool = False, cache: Path | None = None) -> str:
    """Print every teacher of the registry; with ``markdown``, return the tables of docs/teachers.md instead."""
    from pipeline.teachers import catalogue

    if markdown:
        return f"{catalogue.markdown()}\n\n{catalogue.options_markdown()}"
    table = Table(title="teachers", title_justify="left")
    for heading in ("name", "rate", "window", "embedding", "outputs", "licence", "weights"):
        table.add_column(heading, overflow="fold")
    for entry in catalogue.entries(cache):
        cells = catalogue.cells(entry.facts)
        table.add_row(entry.name, *cells[1:], entry.licence, entry.state)
    console.print(table)
    console.print(
        "run:FOLDER: a finished run of yours. Files, and who publishes them: ossicle teachers show NAME"
    )
    return ""


def show(name: str, *, console: Console) -> None:
    """Print which files hold a teacher's weights, from whom, their licence, and its own options.

    Raises:
        UnknownNameError: no such teacher.
    """
    from pipeline.checkpoints.table import of_teacher
    from pipeline.teachers import catalogue
    from pipeline.teachers.registry import teachers

    teachers.get(name)
    for entry in of_teacher(name):
        console.print(f"[bold]{entry.name}[/bold]", soft_wrap=True)
        files = " or ".join(filter(None, (entry.file, *entry.files)))
        for what, value in (
            ("file", files), ("SHA-256", entry.sha256 or "not known here"), ("published at", entry.published_at),
            ("licence", entry.licence), ("citation", entry.citation), ("note", entry.note),
            ("fetch", entry.fetch_command),
        ):  # fmt: skip
            if value:
                console.print(f"  {what}: {value}", soft_wrap=True, markup=False)
    for key, (default, meaning) in catalogue.options_of(name).items():
        console.print(f"embed.teacher.options.{key} = {default}  # {meaning}", soft_wrap=True, markup=False)


def check(reference: str, overrides: list[str] | None, *, console: Console) -> bool:
    """Feed dummy clips to a teacher and print which parts of the contract it keeps; return whether it keeps all.

    Args:
        reference: a teacher's name, ``run:FOLDER``, or a recipe file that declares one.
        overrides: ``--set`` of a recipe's keys.
        console: where to print.

    Raises:
        OssicleError: the teacher cannot be built (weights absent, unknown name or option).
    """
    from pipeline.teachers.checker import check as check_contract
    from pipeline.teachers.registry import build_teacher

    recipe = declared(reference, overrides or [])
    teacher = build_teacher(recipe.embed.teacher, cache=recipe.paths.cache)
    findings = check_contract(teacher)
    return print_findings(f"teacher {teacher.name}", findings, console)


def fetch(
    name: str | None, source: str | None, trust_sha256: str | None, overrides: list[str], *, console: Console
) -> Path:
    """Bring one teacher's weights into the cache and return where they are.

    Args:
        name: a teacher, or one of its checkpoints.
        source: file or address; None for one that PyPI serves.
        trust_sha256: digest to accept where the published file's is not known.
        overrides: ``--set``; of its keys ``paths.cache`` matters.
        console: where progress goes.

    Raises:
        ConfigError: no name, or a digest that is none.
        WeightsError: not to be had, of an unknown digest, unsafe or damaged.
    """
    from pipeline.teachers import fetching, weights

    if name is None:
        raise ConfigError("fetch teacher wants a name", run="ossicle teachers lists them")
    if trust_sha256 is not None and not re.fullmatch("[0-9a-f]{64}", trust_sha256):
        raise ConfigError(
            "--trust-sha256 is no SHA-256", expected="64 lower-case hex digits", got=trust_sha256
        )
    cache = recipes.overridden(overrides).paths.cache
    if source is None:
        path = fetching.fetch(name, cache)
        if path is None:
            raise ConfigError(f"teacher {name!r} has no published weights: it runs a file of yours")
        return path
    columns = (TextColumn("fetch {task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        bar = shown.add_task(name, total=None)
        found = fetching.fetch_from(
            name, source, trust_sha256, cache,
            lambda done, total: shown.update(bar, completed=done, total=total),
        )  # fmt: skip
    folder = weights.teacher_folder(found.checkpoint.name, cache)
    console.print(f"{found.checkpoint.name}: SHA-256 {found.sha256}, licence {found.checkpoint.licence}")
    return folder


def declared(reference: str, overrides: list[str]) -> Recipe:
    """Return a recipe whose teacher is ``reference``: its name, or the recipe file that declares it."""
    if reference.endswith(".toml"):
        return recipes.load(reference, overrides)
    return recipes.overridden([f"embed.teacher.name={reference}", *overrides])

"""``ossicle students``: what can learn, what each costs and which paper it is of; and the student checker."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pipeline import recipe as recipes
from pipeline.config import LogMelConfig, StudentConfig
from stages.console import print_findings


def run(*, console: Console, markdown: bool = False) -> str:
    """Print every student of the registry; with ``markdown``, return the tables of docs/students.md instead."""
    from pipeline.measure import student_catalogue as catalogue
    from pipeline.students.registry import students

    if markdown:
        return "\n\n".join(
            (
                "## All students, at width 1, MACs on 64 mels x 250 frames",
                catalogue.markdown(catalogue.entries(students.own_names())),
                "## Published counts",
                catalogue.published_markdown(),
                "## Each family's own keys",
                catalogue.options_markdown(),
            )
        )
    table = Table(title="students at width 1, on 64 mels x 250 frames", title_justify="left")
    for heading in ("name", "parameters", "MACs", "embedding", "causal", "options", "what", "paper"):
        table.add_column(heading, overflow="fold")
    for entry in catalogue.entries():
        title, paper = (entry.facts.title, entry.facts.paper) if entry.facts else ("your own", "")
        table.add_row(
            entry.name, catalogue.short(entry.parameters), catalogue.short(entry.macs), str(entry.embedding_dim),
            "yes" if entry.causal else "no", ", ".join(entry.options), title, paper,
        )  # fmt: skip
    console.print(table)
    console.print("One student's published checkpoints and own keys: ossicle students show NAME")
    return ""


def show(name: str, *, console: Console) -> None:
    """Print a student's paper, published counts, checkpoints that it can start from, and own options.

    Raises:
        UnknownNameError: no such student.
    """
    from pipeline.measure import student_catalogue as catalogue
    from pipeline.students.options import kind_of
    from pipeline.students.published import StudentCheckpoint, fitting
    from pipeline.students.registry import students

    builder = students.get(name)
    fact = catalogue.facts().get(name)
    if fact is not None:
        console.print(f"[bold]{name}[/bold]: {fact.title}", soft_wrap=True)
        console.print(f"  {fact.paper}", soft_wrap=True, markup=False)
        for form in fact.published:
            stated = ", ".join(filter(None, (form.stated_parameters, form.stated_macs))) or "no counts"
            console.print(f"  published, {form.form}: {stated} ({form.source})", soft_wrap=True, markup=False)
    for entry in fitting(name):
        keys: dict[str, object] = {}
        if isinstance(entry, StudentCheckpoint):
            keys = {"width": entry.width, **entry.options}
        told = f" ({', '.join(f'{key} = {value}' for key, value in keys.items())})" if keys else ""
        files = ", ".join(entry.file_names)
        console.print(f"student.weights: {files}{told}", soft_wrap=True, markup=False)
        for what, value in (
            ("published at", entry.published_at), ("SHA-256", entry.sha256 or "not known here"),
            ("licence", entry.licence), ("citation", entry.citation), ("note", entry.note),
        ):  # fmt: skip
            if value:
                console.print(f"  {what}: {value}", soft_wrap=True, markup=False)
    for key, default, meaning in catalogue.option_rows(kind_of(builder)):
        console.print(f"student.options.{key} = {default}  # {meaning}", soft_wrap=True, markup=False)
    for line in latency_lines(name):
        console.print(line, soft_wrap=True, markup=False)


def latency_lines(name: str) -> list[str]:
    """Return what a student's receptive field and latency are, as published and causal, on its default frontend."""
    from pipeline.students.checker import frontend_of
    from pipeline.students.latency import latency
    from pipeline.students.registry import build_student

    config = StudentConfig(name=name)
    frontend = frontend_of(config)
    student = build_student(config, frontend.mels)
    lines = [f"student.causal = false: {latency(student, frontend)}"]
    if student.not_causal is not None:
        return [*lines, f"student.causal = true: refused, for {student.not_causal}"]
    causal = build_student(config.model_copy(update={"causal": True}), frontend.mels)
    return [*lines, f"student.causal = true: {latency(causal, frontend)}"]


def check(reference: str, overrides: list[str] | None, *, console: Console) -> bool:
    """Feed dummy log-mels to a student and print which parts of the contract it keeps; return whether it keeps all.

    Args:
        reference: a student's name, or a recipe file that declares one.
        overrides: ``--set`` of a recipe's keys.
        console: where to print.

    Raises:
        OssicleError: the student cannot be built (unknown name or option).
    """
    from pipeline.students import checker

    config, given = declared(reference, overrides or [])
    frontend = given or checker.frontend_of(config)
    findings = checker.check(config, frontend)
    if all(finding.kept for finding in findings[:2]):
        try:
            from pipeline.deploy import student_contract
        except ImportError as error:
            console.print(f"not looked at: ONNX and int8 ({error.name} is not installed: 'ossicle[deploy]')")
        else:
            findings += student_contract.check(config, frontend)
    return print_findings(f"student {config.name}", findings, console)


def declared(reference: str, overrides: list[str]) -> tuple[StudentConfig, LogMelConfig | None]:
    """Return the student that ``reference`` names, and the frontend where a recipe file or ``--set`` says it."""
    if reference.endswith(".toml"):
        recipe = recipes.load(reference, overrides)
        return recipe.student, recipe.embed.frontend
    recipe = recipes.overridden([f"student.name={reference}", *overrides])
    told = any(override.strip().startswith("embed.frontend") for override in overrides)
    return recipe.student, recipe.embed.frontend if told else None

"""The ``ossicle students`` commands. The stage is imported when called, so that ``--help`` costs no torch."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated

import typer

students_app = typer.Typer(
    help="List the students: parameters, MACs, embedding width, paper, options.",
    invoke_without_command=True,
)


@students_app.callback()
def list_students(
    context: typer.Context,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="print the tables of docs/students.md instead")
    ] = False,
) -> None:
    """List the students: parameters, MACs, embedding width, paper, options."""
    if context.invoked_subcommand is None:
        from rich.console import Console

        module = importlib.import_module("stages.students")
        # A listing is output, not progress: it goes where a pipe reads it.
        width = None if sys.stdout.isatty() else 200
        typer.echo(module.run(console=Console(highlight=False, width=width), markdown=markdown), nl=markdown)


@students_app.command(name="show")
def show_student(
    name: Annotated[str, typer.Argument(help="a student of the list", metavar="NAME")],
) -> None:
    """Print a student's paper, published counts, the checkpoints it can start from and its own options."""
    from rich.console import Console

    importlib.import_module("stages.students").show(name, console=Console(highlight=False))


@students_app.command(name="check")
def check_student(
    name: Annotated[
        str, typer.Argument(help="a student, or a recipe file that declares one", metavar="NAME")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="change one key, e.g. student.width=0.5"),
    ] = None,
) -> None:
    """Feed dummy log-mels to a student; say which part of the contract it breaks, exit 1 if any."""
    from rich.console import Console

    module = importlib.import_module("stages.students")
    if not module.check(name, set_, console=Console(highlight=False)):
        raise typer.Exit(1)

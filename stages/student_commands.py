"""The ``ossicle students`` commands."""

from __future__ import annotations

from typing import Annotated

import typer

from stages import catalogue_commands

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
    catalogue_commands.list_all("students", context, markdown)


@students_app.command(name="show")
def show_student(
    name: Annotated[str, typer.Argument(help="a student of the list", metavar="NAME")],
) -> None:
    """Print a student's paper, published counts, the checkpoints it can start from and its own options."""
    catalogue_commands.show("students", name)


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
    catalogue_commands.check("students", name, set_)

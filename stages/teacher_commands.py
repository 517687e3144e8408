"""The ``ossicle teachers`` commands."""

from __future__ import annotations

from typing import Annotated

import typer

from stages import catalogue_commands
from stages.command_options import SetOption

teachers_app = typer.Typer(
    help="List the teachers: what each hears and gives, its licence, where its weights are.",
    invoke_without_command=True,
)


@teachers_app.callback()
def list_teachers(
    context: typer.Context,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="print the tables of docs/teachers.md instead")
    ] = False,
) -> None:
    """List the teachers: what each hears and gives, its licence, where its weights are."""
    catalogue_commands.list_all("teachers", context, markdown)


@teachers_app.command(name="show")
def show_teacher(
    name: Annotated[str, typer.Argument(help="a teacher of the list", metavar="NAME")],
) -> None:
    """Print a teacher's files, who publishes them, licence, citation and own options."""
    catalogue_commands.show("teachers", name)


@teachers_app.command(name="check")
def check_teacher(
    name: Annotated[
        str,
        typer.Argument(help="a teacher, run:FOLDER, or a recipe file that declares one", metavar="NAME"),
    ],
    set_: SetOption = None,
) -> None:
    """Feed dummy clips to a teacher; say which part of the contract it breaks, exit 1 if any."""
    catalogue_commands.check("teachers", name, set_)

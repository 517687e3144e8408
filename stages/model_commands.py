"""``ossicle package`` and ``ossicle compare``: commands over models, not over a recipe's stages."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from stages.console import console


def package(
    run: Annotated[str, typer.Argument(help="a run's or an export's folder", metavar="RUN")],
    to: Annotated[
        Path | None,
        typer.Option(help="a folder, or a file ending in .zip or .tar.gz", metavar="FOLDER|FILE"),
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="the run's store, where it is not among the artifacts")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="of the weights; default the teacher's")] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="also upload to this repository of a model hub")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="a repository made by --push is private")
    ] = False,
) -> None:
    """Write one folder or archive of a run: models, frontend, card, licences, examples in Python and C."""
    module = importlib.import_module("stages.package")
    target = module.run(
        run, console=console(), to=to, store=store, licence=licence, push=push, private=private
    )
    typer.echo(target)


def register(app: typer.Typer) -> None:
    """Add the commands to the ``ossicle`` command."""
    app.command()(package)

"""What ``ossicle teachers`` and ``ossicle students`` do alike: list, show, check.

``stage`` is the module of ``stages`` that does it; it is imported when called, so that ``--help`` costs no torch.
"""

from __future__ import annotations

import importlib
import sys

import typer


def list_all(stage: str, context: typer.Context, markdown: bool) -> None:
    """Print the list, unless a command of its own was called; with ``markdown`` the tables of the docs."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    # A listing is output, not progress: it goes where a pipe reads it.
    width = None if sys.stdout.isatty() else 200
    module = importlib.import_module(f"stages.{stage}")
    typer.echo(module.run(console=Console(highlight=False, width=width), markdown=markdown), nl=markdown)


def show(stage: str, name: str) -> None:
    """Print what is known of one."""
    from rich.console import Console

    importlib.import_module(f"stages.{stage}").show(name, console=Console(highlight=False))


def check(stage: str, name: str, overrides: list[str] | None) -> None:
    """Print which parts of the contract one keeps; exit 1 where it breaks any."""
    from rich.console import Console

    module = importlib.import_module(f"stages.{stage}")
    if not module.check(name, overrides, console=Console(highlight=False)):
        raise typer.Exit(1)

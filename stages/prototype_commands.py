"""``ossicle prototypes``: a command over a model and clips, not over a recipe's stages."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from stages.console import console


def prototypes(
    model: Annotated[
        str,
        typer.Argument(
            help="a run's or export's folder, an ONNX file, or log-mel: no encoder", metavar="MODEL"
        ),
    ],
    classes: Annotated[
        str, typer.Option(help="a folder with a folder a class, a CSV or Parquet table, or a task's name")
    ],
    label: Annotated[str, typer.Option(help="the table's label column")] = "label",
    group: Annotated[
        str | None, typer.Option(help="its column of recordings, never both taught and asked for")
    ] = None,
    shots: Annotated[int, typer.Option(help="clips that a class is taught")] = 5,
    metric: Annotated[str, typer.Option(help="cosine or euclidean")] = "cosine",
    features: Annotated[
        str | None,
        typer.Option(
            help="raw, centred or standardised; default raw, and centred for the log-mel",
        ),
    ] = None,
    neighbours: Annotated[
        int, typer.Option(help="0: a prototype a class; k: all taught clips are kept and k vote")
    ] = 0,
    slots: Annotated[int, typer.Option(help="classes (with --neighbours clips) to be learnt later")] = 4,
    episodes: Annotated[int, typer.Option(help="draws of taught clips that are scored")] = 500,
    seed: Annotated[int, typer.Option(help="of those draws")] = 0,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL", help="also score teacher:NAME, a run's folder or an ONNX file (may repeat)"
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="default artifacts/prototypes/...")
    ] = None,
    recipe: Annotated[str, typer.Option(help="whose windows, audio roots and teacher options")] = "demo",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="change one key, e.g. evaluate.audio_roots.esc10=DIR"
        ),
    ] = None,
) -> None:
    """Write files in which a device learns classes from a few clips; score them over seeded episodes."""
    from pipeline import recipe as recipes

    module = importlib.import_module("stages.prototypes")
    options = module.Options(shots, metric, features, neighbours, slots, episodes, seed)
    folder = module.run(
        model, classes, recipe=recipes.load(recipe, set_ or ()), options=options, console=console(),
        label=label, group=group, beside=beside or (), to=to,
    )  # fmt: skip
    typer.echo(folder)


def register(app: typer.Typer) -> None:
    """Add the command to the ``ossicle`` command."""
    app.command()(prototypes)

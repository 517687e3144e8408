"""The ``ossicle store`` commands. Stages are imported when called, so that ``--help`` costs no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from stages.command_options import SetOption
from stages.console import console

store_app = typer.Typer(
    help="Look into a store, check it, re-run its teacher; merge, join, export and import.",
    no_args_is_help=True,
)

StoreArgument = Annotated[
    str, typer.Argument(help="a recipe, or a store's folder or s3:// URL", metavar="RECIPE")
]


@store_app.command()
def inspect(recipe: StoreArgument = "demo", set_: SetOption = None) -> None:
    """Print what a store holds: rows, arrays, digests, rejects."""
    _store("inspect", recipe, set_)


@store_app.command()
def verify(
    recipe: StoreArgument = "demo",
    set_: SetOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="discard damaged shards; ossicle embed makes them anew")
    ] = False,
) -> None:
    """Check every checksum, digest and row; exit 1 if anything is wrong."""
    _store("verify", recipe, set_, repair=repair)


@store_app.command()
def audit(
    recipe: StoreArgument = "demo",
    set_: SetOption = None,
    sample: Annotated[
        str, typer.Option(help="rows to embed again, at least one of every shard; all = every row")
    ] = "32",
    seed: Annotated[int, typer.Option(help="of the draw")] = 0,
    min_cosine: Annotated[float, typer.Option(help="a row below disagrees")] = 0.99,
    max_difference: Annotated[
        float | None,
        typer.Option(help="a row with a larger one in any value disagrees; default 1/20 of the row's norm"),
    ] = None,
) -> None:
    """Re-run the teachers on some rows and name those that disagree; exit 1 if any does."""
    if sample != "all" and not sample.isdigit():
        raise typer.BadParameter("a number, or all", param_hint="--sample")
    rows = None if sample == "all" else int(sample)
    _store(
        "audit", recipe, set_, sample=rows, seed=seed, min_cosine=min_cosine, max_difference=max_difference
    )


@store_app.command()
def merge(
    stores: Annotated[list[str], typer.Argument(help="two stores or more, folders or URLs", metavar="STORE")],
    out: Annotated[str, typer.Option("--out", help="a new folder or URL, or one to go on with")],
) -> None:
    """Make one store of several: shards of one plan from several machines, or other plans end to end."""
    _transfer("merge", stores=stores, out=out)


@store_app.command()
def join(
    recipe: StoreArgument,
    file: Annotated[Path, typer.Argument(help="logits: .npy (clips, classes), or CED's top-k .h5")],
    teacher: Annotated[str, typer.Option(help="what to call it: stage 2 asks for TEACHER:logits")],
    names: Annotated[
        Path | None,
        typer.Option(help="clips of the file's rows: .csv, .json, .npz or .parquet; .h5: its .parquet"),
    ] = None,
    ids: Annotated[
        str, typer.Option(help="column of clips.parquet with the clips' ids, or a CSV of clip_id,id")
    ] = "group",
    activation: Annotated[
        str | None, typer.Option(help="logits, sigmoid or softmax; default logits, of .h5 sigmoid")
    ] = None,
    classes: Annotated[int, typer.Option(help="of a top-k file, which does not say")] = 527,
    dtype: Annotated[str, typer.Option(help="float16 or float32, as stored")] = "float16",
    licence: Annotated[str, typer.Option(help="of the logits")] = "",
    citation: Annotated[str, typer.Option(help="of their teacher")] = "",
    set_: SetOption = None,
) -> None:
    """Add published logits to a store, by clip id; rows that the file does not cover are missing."""
    place, _ = _place(recipe, set_)
    _transfer(
        "join", place=place, file=file, names=names, teacher=teacher, ids=ids, activation=activation,
        classes=classes, dtype=dtype, licence=licence, citation=citation,
    )  # fmt: skip


@store_app.command(name="export-hdf5")
def export_hdf5(
    recipe: StoreArgument,
    file: Annotated[Path, typer.Argument(help="a new file")],
    set_: SetOption = None,
) -> None:
    """Write a whole store to one HDF5 file, checksums and digests with it."""
    _transfer("export_file", place=_place(recipe, set_)[0], file=file)


@store_app.command(name="import-hdf5")
def import_hdf5(
    file: Annotated[Path, typer.Argument(help="what export-hdf5 wrote")],
    out: Annotated[str, typer.Argument(help="a new folder or URL", metavar="STORE")],
) -> None:
    """Make a store of an HDF5 file, byte for byte the exported one; what was tampered with is refused."""
    _transfer("import_file", file=file, out=out)


def _place(reference: str, overrides: list[str] | None) -> tuple[Any, Any]:
    """Return the store that ``reference`` means, and the recipe if it is one."""
    if "://" in reference:
        return reference, None
    if Path(reference).is_dir():
        return Path(reference), None
    from pipeline import recipe as recipes
    from stages import locations

    loaded = recipes.load(reference, overrides or ())
    return locations.store_folder(loaded), loaded


def _store(action: str, reference: str, overrides: list[str] | None, **options: Any) -> None:
    place, recipe = _place(reference, overrides)
    call: Callable[..., bool] = getattr(importlib.import_module("stages.store"), action)
    if not call(place, console=console(), recipe=recipe, **options):
        raise typer.Exit(1)


def _transfer(action: str, **options: Any) -> None:
    getattr(importlib.import_module("stages.store_transfer"), action)(console=console(), **options)

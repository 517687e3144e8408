"""``ossicle package``, ``convert``, ``c`` and ``compare``: commands over models, not over a recipe's stages."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import typer

from stages.command_options import GroupOption, LabelOption, RunArgument, RunStoreOption
from stages.console import console


def package(
    run: RunArgument,
    to: Annotated[
        Path | None,
        typer.Option(help="a folder, or a file ending in .zip or .tar.gz", metavar="FOLDER|FILE"),
    ] = None,
    store: RunStoreOption = None,
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


def convert(
    run: Annotated[str | None, typer.Argument(help="a run's or an export's folder", metavar="RUN")] = None,
    to: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TARGET", help="litert (the default), ethos-u55-128, executorch, ...; may repeat"
        ),
    ] = None,
    store: RunStoreOption = None,
    held_out_clips: Annotated[
        int, typer.Option(min=2, help="rows of the store that each file is compared with float32 on")
    ] = 256,
    system_config: Annotated[
        str | None, typer.Option(help="Vela's name of clock and memories; default Arm's of the family")
    ] = None,
    memory_mode: Annotated[
        str | None, typer.Option(help="Vela's memory mode, e.g. Sram_Only; default the family's")
    ] = None,
    environments_only: Annotated[
        bool, typer.Option("--environments-only", help="build the environments that --to needs, and stop")
    ] = False,
) -> None:
    """Write an exported run for LiteRT, Ethos-U NPUs or ExecuTorch, compared with float32 on stored rows."""
    module = importlib.import_module("stages.convert")
    targets = tuple(to or ("litert",))
    if environments_only:
        typer.echo(module.build_environments(targets, console=console()))
        return
    if run is None:
        raise typer.BadParameter("which run? a run's or an export's folder")
    chosen = {
        "held_out_clips": held_out_clips, "system_config": system_config, "memory_mode": memory_mode,
    }  # fmt: skip
    typer.echo(module.run(run, console=console(), to=targets, store=store, **chosen))


def quantise(
    run: RunArgument,
    store: Annotated[
        str | None, typer.Option(help="rows are read from it; default the store that the run learnt from")
    ] = None,
    sensitivity: Annotated[bool, typer.Option("--sensitivity", help="only: what each layer costs")] = False,
    methods: Annotated[
        bool, typer.Option("--methods", help="only: calibrations, equalisation, bias correction side by side")
    ] = False,
    sizes: Annotated[
        bool, typer.Option("--sizes", help="only: files with their weights in 8 and 4 bits")
    ] = False,
) -> None:
    """Say what int8 costs an exported run: layer by layer, method by method, and how small weights get."""
    from pipeline.deploy.int8_study import chosen_parts

    module = importlib.import_module("stages.quantise")
    parts = chosen_parts(sensitivity, methods, sizes)
    typer.echo(module.run(run, console=console(), parts=parts, store=store))


def compare(
    models: Annotated[
        list[str],
        typer.Argument(help="ONNX files of anyone's, runs, exports, teacher:NAME", metavar="MODEL..."),
    ],
    recipe: Annotated[
        str | None, typer.Option(help="its tasks, windows and probes; default demo, where its manifest is")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change one key of the recipe")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="[FILE:]KEY=VALUE", help="what an ONNX file of others hears (docs/compare.md)"),
    ] = None,
    contract: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the same as TOML, a table a file")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="CSV or Parquet of your own clips, instead of the recipe's tasks")
    ] = None,
    label: LabelOption = "label",
    group: GroupOption = None,
    store: Annotated[
        str | None, typer.Option(help="compare neighbours with the teacher's embeddings in this store")
    ] = None,
    teacher: Annotated[str | None, typer.Option(help="whose, where the store holds several")] = None,
    arm: Annotated[bool, typer.Option("--arm", help="count executed ARM instructions too")] = False,
) -> None:
    """Put models side by side: scores, paired differences with intervals, agreement, costs."""
    from pipeline import recipe as recipes
    from stages import preflight
    from stages.compare_models import declared

    loaded = recipes.load(recipe or "demo", set_ or ())
    preflight.check(loaded, "compare")
    module = importlib.import_module("stages.compare")
    folder = module.run(
        loaded, models, console=console(), declared=declared(option or (), contract),
        tasks_wanted=recipe is not None, manifest=manifest, label=label, group=group, store=store,
        teacher=teacher, arm=arm,
    )  # fmt: skip
    typer.echo(folder / "compare.html")


def c(
    run: RunArgument,
    store: RunStoreOption = None,
    max_frames: Annotated[
        int | None, typer.Option(min=1, help="the longest clip it takes; default that of the store's rows")
    ] = None,
    held_out_clips: Annotated[
        int, typer.Option(min=2, help="rows of the store that it is compared with the int8 file on")
    ] = 256,
    arm: Annotated[
        bool, typer.Option("--arm", help="also count executed instructions on emulated Cortex-A processors")
    ] = False,
) -> None:
    """Write an exported run as C99 headers without dependencies, compiled and compared with its int8 file."""
    module = importlib.import_module("stages.c_export")
    chosen = {"store": store, "max_frames": max_frames, "held_out_clips": held_out_clips, "arm": arm}
    typer.echo(module.run(run, console=console(), **chosen))


def register(app: typer.Typer) -> None:
    """Add the commands to the ``ossicle`` command."""
    app.command()(compare)
    app.command()(package)
    app.command()(convert)
    app.command()(c)
    app.command()(quantise)

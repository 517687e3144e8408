"""The ``ossicle`` command. Thin: it parses, calls one stage, and prints errors as a few lines.

Stages are imported when called, so that ``--help`` costs no torch.
"""

from __future__ import annotations

import enum
import importlib
import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stages import model_commands, prototype_commands
from stages.command_options import GroupOption, LabelOption, SetOption
from stages.console import console as _console
from stages.store_commands import store_app
from stages.student_commands import students_app
from stages.teacher_commands import teachers_app

app = typer.Typer(
    name="ossicle",
    help="Distil heavy audio models into networks small enough for a hearing device.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(store_app, name="store")
app.add_typer(teachers_app, name="teachers")
app.add_typer(students_app, name="students")

# Which extra of the distribution brings a library that the core does without.
EXTRAS = {"soundfile": "audio", "soxr": "audio", "torchaudio": "audio"}
EXTRAS |= {"onnx": "deploy", "onnxruntime": "deploy", "onnxscript": "deploy", "onnx_ir": "deploy"}
EXTRAS |= {"matplotlib": "report", "jinja2": "report", "zarrs": "speed", "h5py": "hdf5", "obstore": "s3"}
EXTRAS |= {"optuna": "search", "huggingface_hub": "hub"}
EXTRAS |= {
    "pyroomacoustics": "rooms",
    "ray": "ray",
    "ai_edge_litert": "tflite",
    "flatbuffers": "tflite",
    "transformers": "wav2vec2",
}

RecipeArgument = Annotated[
    str, typer.Argument(help="a recipe file, or the name of a shipped one", metavar="RECIPE")
]
OnlyOption = Annotated[
    list[str] | None, typer.Option("--only", metavar="RUN", help="only these runs of the recipe (may repeat)")
]
VariedOption = Annotated[
    str | None, typer.Option("--only", metavar="RUN", help="the run that is varied; default the headline")
]
StorageOption = Annotated[
    str | None,
    typer.Option(metavar="PLACE", help="a journal file or database URL that several machines share"),
]


class Engine(enum.StrEnum):
    """What runs the workers of stage 1."""

    local = "local"
    ray = "ray"


def _call(stage: str, recipe: str, overrides: list[str] | None, **options: Any) -> Path:
    from pipeline import recipe as recipes
    from stages import preflight

    loaded = recipes.load(recipe, overrides or ())
    preflight.check(loaded, stage)
    module = importlib.import_module(f"stages.{stage}")
    folder: Path = module.run(loaded, console=_console(), **options)
    return folder


@app.command()
def fetch(
    recipe: Annotated[
        str, typer.Argument(help="a recipe, or the word teacher", metavar="RECIPE|teacher")
    ] = "demo",
    name: Annotated[
        str | None, typer.Argument(help="after the word teacher: which one's weights", metavar="NAME")
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option("--from", metavar="FILE_OR_URL", help="the weights, where no registry serves them"),
    ] = None,
    trust_sha256: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="accept a file of this SHA-256 though it is not a known one"),
    ] = None,
    set_: SetOption = None,
) -> None:
    """Fetch the recipe's audio packages and the teacher's weights; or one teacher's: fetch teacher NAME."""
    if recipe == "teacher":
        module = importlib.import_module("stages.teachers")
        typer.echo(module.fetch(name, from_, trust_sha256, set_ or [], console=_console()))
        return
    if name is not None or from_ is not None or trust_sha256 is not None:
        raise typer.BadParameter("NAME, --from and --trust-sha256 are of: ossicle fetch teacher NAME")
    _call("fetch", recipe, set_)


@app.command()
def manifest(recipe: RecipeArgument = "demo", set_: SetOption = None) -> None:
    """List the clips: decoded once, deduplicated by content, labelled, split without leakage."""
    typer.echo(_call("manifest", recipe, set_))


@app.command()
def finetune(recipe: RecipeArgument, set_: SetOption = None, only: OnlyOption = None) -> None:
    """Train a teacher, or a classifier on one, on the manifest's labels before it embeds."""
    typer.echo(_call("finetune", recipe, set_, only=tuple(only or ())))


@app.command()
def embed(
    recipe: RecipeArgument = "demo",
    set_: SetOption = None,
    engine: Annotated[
        Engine,
        typer.Option(help="local: processes of this machine; ray: actors of the cluster at RAY_ADDRESS"),
    ] = Engine.local,
) -> None:
    """Stage 1: run the teacher once and write the store of embeddings and spectrograms."""
    typer.echo(_call("embed", recipe, set_, engine=engine.value))


@app.command()
def distill(recipe: RecipeArgument = "demo", set_: SetOption = None, only: OnlyOption = None) -> None:
    """Stage 2: train the recipe's runs from the store alone."""
    folder = _call("distill", recipe, set_, only=tuple(only or ()))
    from pipeline.ranks import Rank

    if Rank.of_environment().rank == 0:
        typer.echo(folder)


@app.command()
def sweep(
    recipe: RecipeArgument = "demo",
    set_: SetOption = None,
    space: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML: which keys vary, over what (docs/search.md)")
    ] = None,
    only: VariedOption = None,
    trials: Annotated[int | None, typer.Option(help="of the whole study")] = None,
    storage: StorageOption = None,
) -> None:
    """Search the recipe's keys for the best run; --set KEY={low=0,high=4} or {choices=[...]} varies one."""
    from pipeline.search.space import divided

    single, dimensions = divided(set_ or ())
    options = {"space": space, "dimensions": dimensions, "only": only, "trials": trials, "storage": storage}
    typer.echo(_call("sweep", recipe, single, **options))


@app.command()
def search(
    recipe: RecipeArgument = "demo",
    set_: SetOption = None,
    space: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML: further keys that vary (docs/search.md)")
    ] = None,
    only: VariedOption = None,
    candidates: Annotated[int | None, typer.Option(help="trained; those over the budget are free")] = None,
    max_parameters: Annotated[int | None, typer.Option(help="budget: parameters")] = None,
    max_macs: Annotated[int | None, typer.Option(help="budget: multiply-accumulates of one window")] = None,
    max_flash_kb: Annotated[float | None, typer.Option(help="budget: ONNX file, in 1,024 bytes")] = None,
    max_ram_kb: Annotated[
        float | None, typer.Option(help="budget: activations' peak, in 1,024 bytes")
    ] = None,
    max_arm_instructions_per_second: Annotated[
        float | None, typer.Option(help="budget: executed on an emulated Cortex-A per second of audio")
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Search family, width, depth and input for the students that keep most under a budget: a Pareto set."""
    from pipeline.search.space import divided

    single, dimensions = divided(set_ or ())
    limits = {
        "candidates": candidates, "max_parameters": max_parameters, "max_macs": max_macs,
        "max_flash_kb": max_flash_kb, "max_ram_kb": max_ram_kb,
        "max_arm_instructions_per_second": max_arm_instructions_per_second,
    }  # fmt: skip
    single += [f"search.{name}={value}" for name, value in limits.items() if value is not None]
    options = {"space": space, "dimensions": dimensions, "only": only, "storage": storage}
    typer.echo(_call("search", recipe, single, **options))


@app.command()
def qat(recipe: RecipeArgument = "demo", set_: SetOption = None, only: OnlyOption = None) -> None:
    """Fine-tune the trained runs through int8's rounding, on the store's cached targets alone."""
    typer.echo(_call("qat", recipe, set_, only=tuple(only or ())))


@app.command()
def export(recipe: RecipeArgument = "demo", set_: SetOption = None, only: OnlyOption = None) -> None:
    """Write ONNX and int8 files of the trained students, checked against torch."""
    typer.echo(_call("export", recipe, set_, only=tuple(only or ())))


@app.command()
def scenes(recipe: RecipeArgument = "scenes", set_: SetOption = None) -> None:
    """Generate spatial scenes in DEAR's layout from speech and background clips, their labels measured."""
    typer.echo(_call("scenes", recipe, set_))


@app.command()
def evaluate(
    recipe: RecipeArgument = "demo",
    set_: SetOption = None,
    model: Annotated[
        str | None,
        typer.Option(help="a run folder, an ONNX file, or teacher:NAME, instead of the recipe's runs"),
    ] = None,
    manifest_: Annotated[
        Path | None,
        typer.Option("--manifest", help="CSV or Parquet of your own clips, instead of the recipe's tasks"),
    ] = None,
    label: LabelOption = "label",
    group: GroupOption = None,
) -> None:
    """Score frozen embeddings with k-NN and linear probes, teacher and floors beside them."""
    typer.echo(_call("evaluate", recipe, set_, model=model, manifest=manifest_, label=label, group=group))


@app.command()
def benchmark(
    recipe: RecipeArgument = "demo",
    set_: SetOption = None,
    host: Annotated[str | None, typer.Option(help="user@board to time on, by ssh")] = None,
) -> None:
    """Count parameters, MACs and executed ARM instructions; time on x86, or on a board."""
    typer.echo(_call("benchmark", recipe, set_, host=host))


@app.command()
def report(recipe: RecipeArgument = "demo", set_: SetOption = None) -> None:
    """Write a static site of everything measured: overview, runs, tasks; nothing is fetched."""
    typer.echo(_call("report", recipe, set_))


model_commands.register(app)
prototype_commands.register(app)


@app.command()
def demo(recipe: RecipeArgument = "demo", set_: SetOption = None) -> None:
    """Every stage in order; finished artifacts are reused."""
    from pipeline import recipe as recipes

    trained = recipes.load(recipe, set_ or ()).export.int8_method == "qat"
    stages = ("fetch", "manifest", "embed", "distill", *(("qat",) if trained else ()), "export", "evaluate",
              "benchmark", "report")  # fmt: skip
    for stage in stages:
        folder = _call(stage, recipe, set_)
    typer.echo(folder / "index.html")


@app.command()
def doctor() -> None:
    """Say what this machine has and what each stage would do about it."""
    importlib.import_module("stages.doctor").run(console=_console())


@app.command(name="recipe")
def show_recipe(
    recipe: RecipeArgument = "demo",
    set_: SetOption = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="list every key, its default and meaning instead")
    ] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="list the shipped recipes, a line each, instead")
    ] = False,
) -> None:
    """Print a recipe as the stages see it, defaults filled in; or --list the shipped ones."""
    module = importlib.import_module("stages.recipe_reference")
    if list_:
        typer.echo(module.shipped())
    else:
        typer.echo(module.keys() if keys else module.resolved(recipe, set_ or ()))


def main() -> None:
    """Run the command; errors that a user can mend are a few lines on stderr and exit status 1."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # torch's exporter reports every shape inequality that it leaves open, as warnings about nothing a user can do.
    for noisy in (
        "torch.utils._sympy",
        "torch.fx.experimental",
        "torch.onnx",
        "onnxscript",
        "onnxruntime.tools",
    ):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        app()
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on where it stopped", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        from pipeline.errors import OssicleError

        shown = _missing_extra(error) or error
        if not isinstance(shown, OssicleError):
            raise
        print(f"error: {shown}", file=sys.stderr)
        sys.exit(1)


def _missing_extra(error: Exception) -> Exception | None:
    """Return what to tell a user who lacks an extra of the distribution, if that is what ``error`` is about."""
    from pipeline.errors import MissingDependencyError

    library = (getattr(error, "name", None) or "").split(".")[0]
    if not isinstance(error, ImportError) or library not in EXTRAS:
        return None
    return MissingDependencyError(
        f"{library} is not installed", run=f"pip install 'ossicle[{EXTRAS[library]}]'"
    )


if __name__ == "__main__":
    main()

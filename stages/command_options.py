"""Arguments and options that several commands of ``ossicle`` take."""

from __future__ import annotations

from typing import Annotated

import typer

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="change one key, e.g. student.name=micronet_m0"),
]
RunArgument = Annotated[str, typer.Argument(help="a run's or an export's folder", metavar="RUN")]
RunStoreOption = Annotated[
    str | None, typer.Option(help="the run's store, where it is not among the artifacts")
]
LabelOption = Annotated[str, typer.Option(help="its label column")]
GroupOption = Annotated[str | None, typer.Option(help="its column of groups that folds must not split")]

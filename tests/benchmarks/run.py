"""Speed goals as ratios measured in one run: ``python -m tests.benchmarks.run [--only NAME]``.

Prints a table and writes ``build/bench.json``: a list of ``{name, value, unit, goal, met, detail}``.
Exit status: 0 if every measured goal is met, 1 if one is missed or a row broke, 2 for an unknown name.

To add rows, write ``tests/benchmarks/bench_<what>.py`` with

    NAMES = ("loader_vs_memmap", "loader_vs_zarr_rows")      # the rows that it can make

    def rows(names: Collection[str]) -> Iterable[Row]:        # make those of NAMES that are in ``names``
        seconds = fastest_seconds({"ours": ours, "reference": reference}, repeats=5)
        yield Row.at_least("loader_vs_memmap", seconds["reference"] / seconds["ours"], 0.5, detail="...")

It is found by its file name. Import ``Row, CannotRunError, fastest_seconds, peak_growth_bytes`` from
``tests.benchmarks.rows``, and what is heavy (torch, zarr) inside ``rows``. A value is a ratio of two things
measured in this run, or a time; ``fastest_seconds`` interleaves repetitions and keeps the fastest. What
cannot be measured here raises ``CannotRunError("why")`` (all rows left of the module) or yields
``Row.not_run(name, "why")``; the table shows the reason.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import traceback
from collections.abc import Collection, Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.table import Table

from pipeline.errors import OssicleError, near_matches
from tests.benchmarks.rows import REPOSITORY, CannotRunError, Row


def modules() -> list[ModuleType]:
    """Return every benchmark module, in the order of its file name."""
    files = sorted(Path(__file__).parent.glob("bench_*.py"))
    return [importlib.import_module(f"tests.benchmarks.{file.stem}") for file in files]


def measured(module: ModuleType, wanted: Collection[str]) -> Iterator[Row]:
    """Yield one row for each wanted name of ``module``, whatever happens."""
    names = [name for name in module.NAMES if name in wanted]
    done: set[str] = set()
    problem: Row | None = None
    try:
        for row in module.rows(names) if names else ():
            done.add(row.name)
            yield row
        reason = "its module gave no such row"
    except (CannotRunError, OssicleError) as error:
        reason = " ".join(str(error).split())
    except Exception as error:
        # One broken benchmark is shown as a missed goal and must not hide the others.
        traceback.print_exc(file=sys.stderr)
        reason = ""
        problem = Row("", None, "", "", False, f"broke: {type(error).__name__}: {error}")
    for name in names:
        if name not in done:
            yield Row(**(asdict(problem) | {"name": name})) if problem else Row.not_run(name, reason)


def shown(row: Row) -> str:
    """Return the value with its unit, or a dash."""
    return "-" if row.value is None else f"{row.value:.3g} {row.unit}"


def table(rows: Collection[Row]) -> Table:
    """Return the printed table."""
    out = Table("row", "value", "goal", "met", "detail", title="Benchmarks")
    words = {True: "[green]yes", False: "[red]no", None: "[yellow]-"}
    for row in rows:
        out.add_row(row.name, shown(row), f"{row.goal} {row.unit}".strip(), words[row.met], row.detail)
    return out


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.run", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="make this row alone (repeatable)")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build" / "bench.json")
    options = parser.parse_args(arguments)
    found = modules()
    known = [name for module in found for name in module.NAMES]
    wanted = options.only or known
    for name in wanted:
        if name not in known:
            print(f"no benchmark row is called {name!r}: {near_matches(name, known)}", file=sys.stderr)
            return 2
    rows: list[Row] = []
    for module in found:
        for row in measured(module, wanted):
            print(
                f"{row.name}: {'-' if row.value is None else f'{row.value:.3g} {row.unit}'}", file=sys.stderr
            )
            rows.append(row)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table(rows))
    console.print(f"written to {options.output}")
    return 1 if any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

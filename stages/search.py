"""``ossicle search``: find the students that keep most under a budget, as a Pareto set of ready recipes.

The search's folder holds::

    journal.log        the study, unless search.storage names a place that machines share
    costs/*.json       what each candidate that was drawn would cost
    trials.parquet     one row a draw, refused ones with their reason
    search.json        the candidates, the Pareto set, the hand-made students beside it, the hypervolume
    recipes/*.toml     the members, to be trained at full length by `ossicle distill`
    pareto.png, .svg   score against cost
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline import artifact
from pipeline import recipe as recipes
from pipeline.config import Recipe, StudentConfig
from pipeline.errors import ConfigError, MissingDependencyError, TrainingError, near_matches
from pipeline.search import crew, families, frontend_arrays, pareto_set, results, space_check, toml_text
from pipeline.search import space as spaces
from pipeline.search.budget import COST, BudgetSearch
from pipeline.search.cost import Budget, CostMeter
from pipeline.search.metric import metric_of
from pipeline.search.pareto_set import Point
from pipeline.search.study import Sampling, SharedStudy, counted, shown
from pipeline.students.registry import students
from pipeline.training.job import Job
from pipeline.training.pool import limit_of, train_all
from stages import locations, trial_jobs
from stages.trial_display import TrialDisplay

RESULT, RECIPES, COSTS_FOLDER, PICTURE = "search.json", "recipes", "costs", "pareto"


def run(
    recipe: Recipe,
    *,
    console: Console,
    space: Path | None = None,
    dimensions: dict[str, Any] | None = None,
    only: str | None = None,
    storage: str | None = None,
) -> Path:
    """Do what is left of the search of ``recipe``; any number of processes may do so together.

    Args:
        recipe: its ``search`` and ``selection`` sections say how.
        console: for bars and the table.
        space: TOML file of further keys that vary.
        dimensions: of the command line; added to it.
        only: the run of the recipe that is varied; default its headline, or its first.
        storage: in place of ``search.storage``.

    Returns:
        The search's folder.

    Raises:
        ConfigError: an unknown student, key or value; nothing was done.
        MissingArtifactError: the store lacks an input that is searched; the message holds the command.
        MissingDependencyError: what measures a cost is not installed.
        OssicleError: next to nothing fits the budget.
        TrainingError: no candidate has a result.
        KeyboardInterrupt: stopped; running candidates have their checkpoints and are queued again.
    """
    options, where = recipe.search, str(space) if space is not None else "search.space"
    more = {**(spaces.read_table(space) if space is not None else {}), **(dimensions or {})}
    found = families.search_space(options, more, where)
    base = spaces.applied(trial_jobs.base_of(recipe, only), found.fixed)
    _references(recipe)
    _require_arm(recipe)
    place = locations.store_folder(base)
    heard = [changed.embed.frontend for changed in families.frontends(found, base)]
    for added in frontend_arrays.provide(place, heard, recipe.name):
        console.print(
            f"search: {added.mels} mels at hop {added.hop_length} derived from the store's log-mels"
        )
    space_check.check(found, base, check_data=_check_data, where=where)
    job = trial_jobs.job_of(base)
    metric = metric_of(recipe.selection, base, found, [job])
    counted_keys = options.model_dump(
        mode="json", include={"steps", "rungs", "reduction", "costs", "precision", "arm_cpu"}
    )
    limits = dict(Budget.of(options).limits)
    work = trial_jobs.identity(
        "search",
        {"space": found.to_json(), "selection": recipe.selection.model_dump(mode="json"), "search": counted_keys,
         "limits": limits}, base,
    )  # fmt: skip
    folder = artifact.folder_for(locations.root(recipe), "search", recipe.name, work)
    kept_in = trial_jobs.storage_of(storage or options.storage, folder)
    study = SharedStudy(
        kept_in, folder.name, [metric.direction, *(["minimize"] * len(options.costs))],  # type: ignore[list-item]
        Sampling(options.sampler, options.startup_trials, options.seed),
    )  # fmt: skip
    study.requeue_failed()
    so_far = counted(study.trials())
    trial_jobs.announce(console, "search", study, shown(kept_in), options.candidates, so_far)
    slots = limit_of(recipe.jobs, base.train.threads)
    meter = CostMeter(folder / COSTS_FOLDER, options, recipe.paths.cache)
    try:
        with TrialDisplay(console, "search", options.candidates, so_far) as display:
            searched = BudgetSearch(
                study, found, base, options, metric, meter, trial_jobs.job_of, display.report
            )
            crew.work(
                study, budget=options.candidates, slots=slots, suggest=found.suggest, body=searched.body
            )
            hand_made = _train_references(recipe, searched, slots, console)
    except KeyboardInterrupt:
        console.print(f"search: stopped; the same command goes on with study {study.name}", markup=False)
        raise
    finally:
        results.write(folder, _frame(study, metric.name, options.costs))
    return _finish(folder, recipe, searched, hand_made, work, job, console)


def _check_data(key: str, recipe: Recipe) -> None:
    # All combinations of the inputs were looked up; one of them beside the recipe's own may have no array.
    if key not in families.FRONTEND:
        trial_jobs.job_of(recipe)


def _references(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Return name to ``student`` section of each hand-made student: runs of the recipe, or students at width 1.

    Raises:
        ConfigError: a name is neither.
    """
    runs = {
        run.name: run.recipe.student.model_dump()
        for run in recipes.expand(recipe)
        if run.recipe.train.control == "none"
    }
    if recipe.search.references is None:
        return runs
    known = students.names()
    for name in recipe.search.references:
        if name not in runs and name not in known:
            raise ConfigError(
                f"search.references: neither a run nor a student is called {name!r}",
                expected=near_matches(name, [*runs, *known]), got=name,
            )  # fmt: skip
    return {name: runs.get(name, StudentConfig(name=name).model_dump()) for name in recipe.search.references}


def _require_arm(recipe: Recipe) -> None:
    search = recipe.search
    if "arm_instructions_per_second" in search.costs or search.max_arm_instructions_per_second is not None:
        from pipeline.measure import arm_root

        arm_root.prepare(recipe.paths.cache)


def _frame(study: SharedStudy, metric: str, costs: tuple[str, ...]) -> Any:
    trials = study.trials()
    frame = results.table(trials, [metric, *(f"log10_{name}" for name in costs)])
    for name in dict.fromkeys(key for trial in trials for key in trial.user_attrs.get(COST, ())):
        frame[name] = [trial.user_attrs.get(COST, {}).get(name) for trial in trials]
    return frame


def _train_references(
    recipe: Recipe, searched: BudgetSearch, slots: int, console: Console
) -> list[tuple[str, Job, dict[str, float]]]:
    found = []
    for name, section in _references(recipe).items():
        student = {f"student.{key}": value for key, value in section.items()}
        brief = searched.brief(spaces.applied(searched.base, student))
        found.append((name, searched.job_of(brief), searched.meter.costs(brief, searched.cost_names)))
    todo = {job.folder: job for _, job, _ in found if not artifact.is_finished(job.folder, job.work)}
    if todo:
        console.print(f"search: {len(todo)} hand-made students are trained alike")
    _train_apart(list(todo.values()), slots)
    return found


def _train_apart(jobs: list[Job], slots: int) -> None:
    # The pool tells runs apart by their label, which two hand-made students of one family share.
    unique: dict[str, Job] = {}
    rest = []
    for job in jobs:
        if job.run.label in unique:
            rest.append(job)
        else:
            unique[job.run.label] = job
    for label, outcome in train_all(list(unique.values()), slots).items():
        if outcome.state != "done":
            raise TrainingError(
                f"the hand-made student {label} was not trained", got=outcome.error or outcome.state,
                run="the same command goes on",
            )  # fmt: skip
    if rest:
        _train_apart(rest, slots)


def _finish(
    folder: Path,
    recipe: Recipe,
    searched: BudgetSearch,
    hand_made: list[tuple[str, Job, dict[str, float]]],
    work: str,
    job: Job,
    console: Console,
) -> Path:
    options, metric, study = recipe.search, searched.metric, searched.study
    student = searched.base.student
    points = pareto_set.with_members(
        pareto_set.points_of(study.trials(), student.name, student.width), options.costs, metric.direction
    )
    if not any(point.member for point in points):
        raise TrainingError(
            "no candidate of the search has a result", expected=f"a {metric.name}",
            run=f"see {folder / results.TABLE}",
        )  # fmt: skip
    references = []
    for name, made, costs in hand_made:
        summary = artifact.read(made.folder).summary
        own = made.run.recipe.student
        point = Point(
            name, None, "done", own.name, own.width, metric.of_run(made, summary), summary["steps"], costs,
            folder=made.folder.name,
        )  # fmt: skip
        references.append(pareto_set.beaten(point, points, options.costs[0], metric.direction))
    limits = dict(Budget.of(options).limits)
    record = {
        "schema": pareto_set.SCHEMA, "recipe": recipe.name, "study": study.name, "metric": metric.name,
        "direction": metric.direction, "costs": list(options.costs), "limits": limits, "steps": options.steps,
        "rungs": searched.rungs, "precision": options.precision, "arm_cpu": options.arm_cpu,
        "refused": sum(results.outcome_of(trial) == "refused" for trial in study.trials()),
        "candidates": [point.to_json() for point in points],
        "references": [point.to_json() for point in references],
        **pareto_set.volume(points, options.costs, limits, metric.direction),
    }  # fmt: skip
    artifact.write_json(folder / RESULT, record)
    _write_recipes(folder, searched, points, metric.name)
    _draw(folder, record, console)
    console.print(_table(record))
    for point in references:
        better = f"trials {', '.join(map(str, point.beaten_by))}" if point.beaten_by else "no member"
        console.print(f"search: {point.name} is beaten by {better}", markup=False)
    summary = {
        "metric": metric.name, "candidates": len(points), "members": sum(point.member for point in points),
        "hypervolume": record["hypervolume"],
    }  # fmt: skip
    inputs = {**job.inputs, "result": artifact.file_digest(folder / RESULT)}
    artifact.finish(folder, kind="search", config={"study": work}, inputs=inputs, summary=summary)
    console.print(
        f"search: {summary['members']} of {len(points)} candidates are Pareto-optimal, hypervolume "
        f"{record['hypervolume']:.4f}; recipes in {folder / RECIPES}", markup=False,
    )  # fmt: skip
    return folder


def members_in_order(points: list[Point], cost: str) -> list[Point]:
    """Return the members, the cheapest first."""
    return sorted(
        (point for point in points if point.member), key=lambda point: (point.costs[cost], point.name)
    )


def _write_recipes(folder: Path, searched: BudgetSearch, points: list[Point], metric: str) -> None:
    from optuna.trial import FixedTrial

    target = folder / RECIPES
    if target.exists():
        shutil.rmtree(target)  # members of an earlier state of the study
    for place, point in enumerate(members_in_order(points, searched.search.costs[0]), start=1):
        values = searched.space.suggest(FixedTrial(point.values))
        name = f"{searched.base.name}_{place:02d}_{point.student}"
        ready = recipes.change(spaces.applied(searched.base, values), {"name": name})
        costs = ", ".join(f"{cost} {value:,.0f}" for cost, value in point.costs.items())
        comments = (
            f"Trial {point.trial} of {searched.study.name}: {metric} {point.score:.6g} after {point.step} steps.",
            f"Costs: {costs}. Its brief run: {point.folder}",
        )
        artifact.write_bytes(target / f"{name}.toml", toml_text.recipe_text(ready, comments).encode())


def _draw(folder: Path, record: dict[str, Any], console: Console) -> None:
    try:
        from stages.report_page.search_figure import picture
    except ModuleNotFoundError as error:
        missing = MissingDependencyError(f"no picture of the Pareto set: {error.name} is not installed")
        console.print(f"search: {missing.problem}; pip install 'ossicle[report]', then ossicle search again")
        return
    for form in ("png", "svg"):
        artifact.write_bytes(folder / f"{PICTURE}.{form}", picture(record, form))


def _table(record: dict[str, Any]) -> Table:
    names = list(next(iter(record["candidates"]))["costs"])
    table = Table(
        "trial",
        "student",
        "width",
        record["metric"],
        *names,
        "beats",
        title="Pareto set",
        title_justify="left",
    )
    first = record["costs"][0]
    members = [point for point in record["candidates"] if point["member"]]
    for point in sorted(members, key=lambda point: (point["costs"][first], point["name"])):
        beats = [ref["name"] for ref in record["references"] if point["trial"] in ref["beaten_by"]]
        table.add_row(
            str(point["trial"]), point["student"], f"{point['width']:.3g}", f"{point['score']:.4f}",
            *(f"{point['costs'][name]:,.0f}" for name in names), ", ".join(beats) or "-",
        )  # fmt: skip
    for ref in record["references"]:
        costs = (f"{ref['costs'][name]:,.0f}" for name in names)
        table.add_row(
            "hand-made", ref["name"], f"{ref['width']:.3g}", f"{ref['score']:.4f}", *costs, "", style="dim"
        )
    return table

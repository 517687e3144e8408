"""Where each artifact of a recipe lies: names from content, so that the same work is found and never redone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import artifact
from pipeline.config import Recipe
from pipeline.errors import DigestMismatchError, MissingArtifactError
from pipeline.export_config import DEPLOY_FORMS
from pipeline.recipe import Run
from pipeline.run_folder import folder_of
from pipeline.store import choice, schema
from pipeline.store.combination import Combination
from pipeline.store.commits import finished_arrays, read_marker
from pipeline.store.location import Place, below, is_url
from pipeline.students.checkpoint_file import content_digest

# Revision of how int8 files are written: those of before are made again.
INT8_CODE = 2
# What of ``[export]`` the trained int8 graph depends on.
QAT_EXPORT_KEYS = frozenset({
    "opset", "calibration_clips", "calibration", "calibration_draw", "calibration_clusters", "calibration_seed",
    "per_channel", "int8_ops", "equalisation", "bias_correction", "deploy_form", "classifier",
})  # fmt: skip


def root(recipe: Recipe) -> Path:
    """Return the folder of all artifacts."""
    return recipe.paths.artifacts


def manifest_config(recipe: Recipe) -> dict[str, Any]:
    """Return what the manifest depends on, the audio's own content apart."""
    fetch = recipe.fetch.model_dump(mode="json", exclude={"teacher_weights"})
    keys = {"validation_share", "seed", "min_seconds"}
    # Keys that came later count only where they are used, so that older manifests and stores keep their names.
    keys |= {"inputs"} if recipe.manifest.inputs else set()
    keys |= {"near_duplicates"} if recipe.manifest.near_duplicates != "off" else set()
    return {"fetch": fetch, "manifest": recipe.manifest.model_dump(mode="json", include=keys), "code": 1}


def manifest_folder(recipe: Recipe) -> Path:
    """Return the manifest's folder, made or not."""
    work = artifact.identity("manifest", manifest_config(recipe), {})
    return artifact.folder_for(root(recipe), "manifest", "clips", work)


def store_config(recipe: Recipe) -> dict[str, Any]:
    """Return the windowing and views that name the store; teachers and frontends add arrays inside it."""
    embed = recipe.embed.model_dump(mode="json", include={"window_seconds", "seed", "shard_rows"})
    embed["views"] = recipe.embed.views.content()
    keys = {"max_windows_per_clip", "caps", "peak_floor"}
    keys |= {"weights", "total_windows"} if recipe.manifest.weights else set()
    windows = recipe.manifest.model_dump(mode="json", include=keys)
    return {"embed": embed, "windows": windows, "code": 1}


def store_inputs(recipe: Recipe) -> dict[str, str]:
    """Return the digest of the manifest that the store was made from (the manifest must be there)."""
    record = artifact.read(manifest_folder(recipe), run=f"make manifest RECIPE={recipe.name}")
    return {"manifest": record.summary["content"]}


def store_folder(recipe: Recipe) -> Place:
    """Return the store's folder or URL, made or not; the manifest must be there, its audio need not.

    Not named after the recipe: recipes that cut the same windows of the same clips share one store.
    """
    if recipe.paths.store is not None:
        return place_of(recipe.paths.store)
    work = artifact.identity("store", store_config(recipe), store_inputs(recipe))
    if recipe.paths.stores is None:
        return artifact.folder_for(root(recipe), "store", "windows", work)
    return below(recipe.paths.stores, artifact.folder_for(Path(), "store", "windows", work).name)


def place_of(text: str) -> Place:
    """Return what a recipe or a command line calls a place: a folder or a URL."""
    return text if is_url(text) else Path(text)


def run_config(run: Run) -> dict[str, Any]:
    """Return what a run's weights depend on, its inputs apart."""
    recipe = run.recipe
    sections = {"student": recipe.student.counted(), "loss": recipe.loss.counted()}
    sections["targets"] = recipe.targets.counted()
    related = recipe.relations.counted(
        anchor=recipe.loss.uses("anchor"), neighbour=recipe.loss.uses("neighbour")
    )
    if related:
        sections["relations"] = related
    sections |= {
        name: counted
        for name, counted in (("sampling", recipe.sampling.counted()), ("augment", recipe.augment.counted()))
        if counted
    }
    train = recipe.train.counted()
    labelled = recipe.train.control in ("labels", "teacher_lr") or recipe.targets.compression != "none"
    if not labelled and not recipe.loss.needs_labels:
        del train["label_column"]
    train.pop("start_from", None)
    return {**sections, "train": train, "code": 1}


def run_inputs(run: Run) -> dict[str, str]:
    """Return the digests of the store's rows, its frontend array and its teacher array.

    Where ``targets.teachers`` names several arrays: of their combination, and ``teacher.0``, ``teacher.1``, ...
    Where ``student.weights`` is given: also ``weights``, the content that training starts from; where
    ``train.start_from`` is: also ``start``, that run; where the loss looks at logits: also ``logits``, their
    array, and ``classes``, the file that names them.

    Raises:
        MissingArtifactError: the store, or the array asked for, is not there yet.
        DigestMismatchError: the store was made with another frontend, teacher or weights.
        WeightsError: ``student.weights`` is not there.
    """
    recipe = run.recipe
    place = store_folder(recipe)
    meta = schema.read_meta(place)
    if recipe.paths.store is None:
        work = artifact.identity("store", store_config(recipe), store_inputs(recipe))
    else:
        work = read_marker(place, run=f"make embed RECIPE={recipe.name}").digest
    finished = finished_arrays(place)
    frontend = schema.frontend_digest(recipe.embed.frontend)
    # An array that an interrupted run left unfinished is no candidate, once another is complete.
    there = [spec for spec in meta.arrays if spec.path in finished] or list(meta.arrays)
    choice.choose(there, "spectrogram", frontend, str(place))
    inputs = {"store": work, "frontend": frontend}
    if recipe.student.weights is not None and recipe.train.control != "random":
        inputs["weights"] = content_digest(recipe.student.weights)
    if recipe.train.start_from is not None:
        inputs["start"] = artifact.read(folder_of(recipe.train.start_from)).digest
    if not recipe.targets.teachers:
        inputs["teacher"] = teacher_digest(meta, there, recipe)
        return {**inputs, **_class_inputs(recipe, there, [inputs["teacher"]], place)}
    chosen = [choice.choose(there, "embedding", name, str(place)) for name in recipe.targets.teachers]
    inputs |= {f"teacher.{number}": spec.digest for number, spec in enumerate(chosen)}
    inputs["teacher"] = Combination.of(recipe.targets, inputs).spec(chosen).digest
    return {**inputs, **_class_inputs(recipe, there, [spec.teacher_digest for spec in chosen], place)}


def _class_inputs(
    recipe: Recipe, there: Sequence[schema.ArraySpec], followed: Sequence[str], place: Place
) -> dict[str, str]:
    """Return the digests of the logits array and of the class names' file, where the loss looks at logits."""
    if recipe.train.control != "none" or not recipe.loss.needs_logits:
        return {}
    inputs = {"logits": choice.choose_logits(there, recipe.loss.logits, followed, str(place)).digest}
    if recipe.loss.classes is not None:
        if not recipe.loss.classes.is_file():
            raise MissingArtifactError("loss.classes names no file", got=recipe.loss.classes)
        inputs["classes"] = artifact.file_digest(recipe.loss.classes)
    return inputs


def teacher_digest(meta: schema.StoreMeta, there: Sequence[schema.ArraySpec], recipe: Recipe) -> str:
    """Return the digest of the one embedding array that was made for the recipe's teacher.

    Raises:
        MissingArtifactError: the teacher has written none.
        DigestMismatchError: the store was made with other weights, options or number format.
    """
    teacher = recipe.embed.teacher
    asked = schema.asked_digest(teacher)
    embeddings = [spec for spec in there if spec.kind == "embedding"]
    made_for = [spec for spec in embeddings if spec.digest == meta.asked.get(asked)]
    if made_for:
        return made_for[0].digest
    named = [spec for spec in embeddings if spec.name == teacher.name]
    if not named:
        raise MissingArtifactError(
            f"the store holds no embedding of {teacher.name}", run=f"make embed RECIPE={recipe.name}"
        )
    listed = ", ".join(f"{spec.name} {spec.digest}" for spec in named)
    if asked in meta.asked:
        got = listed
    elif not meta.asked and len(named) == 1:  # a store that says nothing of recipes: imported, or joined
        return named[0].digest
    else:
        of_recipes = [key for key, made in meta.asked.items() if any(made == spec.digest for spec in named)]
        got = f"recipes {', '.join(of_recipes) or 'unknown'}: {listed}"
    raise DigestMismatchError(
        f"the store's embedding of {teacher.name} was made with other weights, options or number format",
        expected=f"recipe {asked}" + (f": {teacher.name} {meta.asked[asked]}" if asked in meta.asked else ""),
        got=got,
        run=f"ossicle embed {recipe.name}, with the same --set: it adds this teacher beside the others",
    )


def run_folder(run: Run) -> Path:
    """Return the folder of one training run, made or not."""
    work = artifact.identity("run", run_config(run), run_inputs(run))
    return artifact.folder_for(root(run.recipe), "run", run.label, work)


def qat_config(run: Run) -> dict[str, Any]:
    """Return what a run's quantisation-aware fine-tuning depends on, its inputs apart."""
    recipe = run.recipe
    export = {name: value for name, value in recipe.export.counted().items() if name in QAT_EXPORT_KEYS}
    code = INT8_CODE + _deploy_form(recipe)
    return {"qat": recipe.qat.counted(), "export": export, "augment": recipe.augment.counted(), "code": code}


def qat_inputs(run: Run) -> dict[str, str]:
    """Return the digests of the run and of what it was trained on."""
    done = artifact.read(run_folder(run), run=f"make distill RECIPE={run.recipe.name}")
    return {**run_inputs(run), "run": done.digest}


def qat_folder(run: Run) -> Path:
    """Return the folder of one run's quantisation-aware fine-tuning, made or not."""
    work = artifact.identity("qat", qat_config(run), qat_inputs(run))
    return artifact.folder_for(root(run.recipe), "qat", run.label, work)


def export_config(run: Run) -> dict[str, Any]:
    """Return what an export depends on, its run apart."""
    export = run.recipe.export
    code = (INT8_CODE if export.int8 else 1) + _deploy_form(run.recipe)
    return {"export": export.counted(), "code": code}


def _deploy_form(recipe: Recipe) -> int:
    """Return the revision of the graph that int8 is made from, 0 for the student's own."""
    export = recipe.export
    return DEPLOY_FORMS.get(recipe.student.name, 0) if export.int8 and export.deploy_form else 0


def export_inputs(run: Run) -> dict[str, str]:
    """Return the digest of the run that is exported; with ``export.int8_method = "qat"`` also of its int8 training."""
    made = {"run": artifact.read(run_folder(run), run=f"make distill RECIPE={run.recipe.name}").digest}
    if run.recipe.export.int8 and run.recipe.export.int8_method == "qat":
        made["qat"] = artifact.read(qat_folder(run), run=f"ossicle qat {run.recipe.name}").digest
    return made


def export_folder(run: Run) -> Path:
    """Return the folder of one run's exported files, made or not."""
    work = artifact.identity("export", export_config(run), export_inputs(run))
    return artifact.folder_for(root(run.recipe), "export", run.label, work)


def evaluation_folder(recipe: Recipe) -> Path:
    """Return the folder of the recipe's scores; what is inside says which runs they are of."""
    return root(recipe) / "evaluation" / recipe.name


def benchmark_folder(recipe: Recipe) -> Path:
    """Return the folder of the recipe's cost figures."""
    return root(recipe) / "benchmark" / recipe.name


def search_folders(recipe: Recipe) -> list[Path]:
    """Return the folders of the recipe's budget searches, finished or not; the names end in their digests."""
    folders = sorted((root(recipe) / "search").glob(f"{recipe.name}-*"))
    return [folder for folder in folders if folder.name.rpartition("-")[0] == recipe.name]


def report_folder(recipe: Recipe) -> Path:
    """Return the folder of the recipe's report."""
    return root(recipe) / "report" / recipe.name

"""What ``ossicle compare`` puts side by side: runs, exports, ONNX files of ours and of others, teachers."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import artifact
from pipeline.audio.windows import frame_count
from pipeline.config import EmbedConfig, LogMelConfig
from pipeline.errors import ConfigError, MissingArtifactError, WeightsError
from pipeline.evaluation.comparison import file_key
from pipeline.evaluation.embedders import TEACHER_PREFIX, Embedder, OnnxEmbedder, run_embedder
from pipeline.evaluation.foreign import WaveformEmbedder, is_own, open_graph
from pipeline.evaluation.scoring import STUDENT, TEACHER, Model
from pipeline.measure.model_cost import example_log_mel, example_waveform
from pipeline.students.saved import read_description
from pipeline.teachers.base import Teacher
from pipeline.teachers.registry import build_teacher
from stages import run_records

FP32 = "student_fp32.onnx"
RUN, EXPORT, OWN, FOREIGN = "run", "export", "ONNX of ossicle", "ONNX"


@dataclass(frozen=True)
class CostInput:
    """What a file is measured on: one forward pass's input, and how many passes a window takes."""

    path: Path
    value: np.ndarray
    passes: int = 1


@dataclass
class Compared:
    """One model.

    Attributes:
        reference: what the user wrote.
        label: shown; unique.
        kind: what it is.
        embedder: windows to embeddings.
        licence: of its weights, as far as its file says.
        hears: its input in words.
        frontend: log-mel that it hears; None for one that hears samples or that has its own.
        cost: the file to measure; None for a teacher, and for a run that is not exported.
        frontend_cost: of the log-mel's own file, where one lies beside the model.
        teacher: where it is one.
        no_cost: why there is no cost, where there is none.
    """

    reference: str
    label: str
    kind: str
    embedder: Embedder
    licence: str
    hears: str
    frontend: LogMelConfig | None = None
    cost: CostInput | None = None
    frontend_cost: CostInput | None = None
    teacher: Teacher | None = None
    no_cost: str = ""
    model: Model = field(init=False)

    def __post_init__(self) -> None:
        self.identify(self.label)

    def identify(self, label: str) -> None:
        """Give the model its label, and with it its key."""
        digest = self.embedder.digest()
        role = TEACHER if self.kind == "teacher" else STUDENT
        self.label = label
        self.model = Model(file_key(f"{label}-{digest[:12]}"), role, label, source=digest)


@dataclass(frozen=True)
class Declared:
    """What the user says of foreign files: for every file, and by the file's name."""

    everywhere: Mapping[str, Any]
    by_file: Mapping[str, Mapping[str, Any]]

    def of(self, path: Path) -> dict[str, Any]:
        """Return the keys of one file: those beside it (``NAME.toml``), the table's, then the options."""
        beside = path.with_suffix(".toml")
        found = _toml(beside) if beside.is_file() else {}
        for name in (path.stem, path.name, str(path)):
            found |= self.by_file.get(name, {})
        return {**found, **self.everywhere}


def declared(options: Sequence[str], table: Path | None) -> Declared:
    """Return what ``--option`` and ``--contract`` say.

    Args:
        options: ``KEY=VALUE`` for all foreign files, ``FILE:KEY=VALUE`` for one.
        table: TOML of one table a file's name.

    Raises:
        ConfigError: no ``=``, or the table is no TOML of tables.
    """
    by_file: dict[str, dict[str, Any]] = {}
    if table is not None:
        for name, keys in _toml(table).items():
            if not isinstance(keys, dict):
                raise ConfigError(
                    f"{table}: {name!r} is no table", expected='["model.onnx"] and its keys below', got=keys
                )
            by_file[name] = dict(keys)
    everywhere: dict[str, Any] = {}
    for option in options:
        left, sign, text = option.partition("=")
        if not sign:
            raise ConfigError("no option of a model", expected="KEY=VALUE or FILE.onnx:KEY=VALUE", got=option)
        name, colon, key = left.rpartition(":")
        target = by_file.setdefault(name, {}) if colon else everywhere
        _assign(target, key, _value(text))
    return Declared(everywhere, by_file)


def open_models(
    references: Sequence[str], embed: EmbedConfig, cache: Path | None, given: Declared
) -> list[Compared]:
    """Return the models in the order they were named.

    Raises:
        ConfigError: a reference is no model, or a foreign file's declaration does not fit it.
        MissingArtifactError: a file or folder is not there.
        WeightsError: a file is no ONNX file, or gives no embedding.
    """
    found = [_open(reference, embed, cache, given) for reference in references]
    sources: dict[str, str] = {}
    for one in found:
        if one.model.source in sources:
            raise ConfigError(
                "the same model is named twice", expected="different models",
                got=f"{sources[one.model.source]} and {one.reference}",
            )  # fmt: skip
        sources[one.model.source] = one.reference
    labels = [one.label for one in found]
    for one in found:
        if labels.count(one.label) > 1:
            one.identify(one.reference)
    return found


def _open(reference: str, embed: EmbedConfig, cache: Path | None, given: Declared) -> Compared:
    if reference.startswith(TEACHER_PREFIX):
        name = reference.removeprefix(TEACHER_PREFIX)
        settings = embed.teacher if embed.teacher.name == name else embed.teacher.model_copy(
            update={"name": name, "weights": None, "trust_sha256": None, "options": {}}
        )  # fmt: skip
        teacher = build_teacher(settings, cache=cache)
        hears = f"{teacher.sample_rate_hz:,} Hz"
        return Compared(
            reference, teacher.name, "teacher", WaveformEmbedder(teacher), teacher.licence, hears, teacher=teacher
        )  # fmt: skip
    path = Path(reference)
    if path.is_dir():
        return _folder(reference, path, embed.window_seconds)
    if not path.is_file():
        raise MissingArtifactError(
            f"no model is at {reference}", expected="teacher:NAME, a run's or export's folder, or an ONNX file",
            got="no such file",
        )  # fmt: skip
    if is_own(path):
        return _own(reference, path, embed.window_seconds)
    return _foreign(reference, path, embed.window_seconds, given)


def _folder(reference: str, folder: Path, window_seconds: float) -> Compared:
    record = artifact.read(folder, run="ossicle distill RECIPE")
    if record.kind not in (RUN, EXPORT):
        raise ConfigError(f"{folder} is no model", expected="a run's or an export's folder", got=record.kind)
    saved = read_description(folder)
    exports = [folder]
    if record.kind == RUN:
        exports = [e.folder for e in run_records.exports_of(folder.absolute().parent.parent, record)]
    files = [export / FP32 for export in exports if (export / FP32).is_file()]
    made = Compared(
        reference, folder.resolve().name, record.kind, run_embedder(folder),
        saved.teacher.licence if saved.teacher else "", _log_mel(saved.frontend), saved.frontend,
        no_cost="" if files else "the run is not exported: ossicle export RECIPE",
    )  # fmt: skip
    if files:
        _measured_on(made, files[0], saved.frontend, saved.mean, saved.std, window_seconds)
    return made


def _own(reference: str, path: Path, window_seconds: float) -> Compared:
    embedder = OnnxEmbedder(path)
    session, properties = embedder.session, embedder.session.get_modelmeta().custom_metadata_map
    inputs, outputs = session.get_inputs(), session.get_outputs()
    shown = ", ".join(f"{tensor.name} {tensor.shape}" for tensor in (*inputs, *outputs))
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or len(outputs[0].shape) != 2:
        raise WeightsError(
            f"{path.name} gives no embedding of a log-mel",
            expected="one input (batch, 1, mels, time) and a first output (batch, dim)", got=shown,
        )  # fmt: skip
    normalisation = json.loads(properties.get("ossicle.normalisation", '{"mean": 0.0, "std": 1.0}'))
    frontend = embedder.frontend.config
    label = f"{path.absolute().parent.name}/{path.stem}" if path.stem.startswith("student_") else path.stem
    licence = properties.get("ossicle.teacher_licence", "")
    made = Compared(reference, label, OWN, embedder, licence, _log_mel(frontend), frontend)
    _measured_on(made, path, frontend, normalisation["mean"], normalisation["std"], window_seconds)
    return made


def _foreign(reference: str, path: Path, window_seconds: float, given: Declared) -> Compared:
    keys = given.of(path)
    embedder, teacher = open_graph(path, keys, window_seconds)
    shape, passes = teacher.cost_input(frame_count(window_seconds, teacher.sample_rate_hz))
    samples = example_waveform(int(np.prod(shape)))
    hears = f"{teacher.own.input.replace('_', '-')} at {teacher.sample_rate_hz:,} Hz"
    cost = CostInput(path, samples.reshape(shape), passes)
    return Compared(reference, path.stem, FOREIGN, embedder, teacher.licence, hears, cost=cost)


def _measured_on(
    made: Compared, path: Path, frontend: LogMelConfig, mean: float, std: float, window_seconds: float
) -> None:
    samples = frame_count(window_seconds, frontend.sample_rate_hz)
    shape = (1, 1, frontend.mels, frontend.frames(samples))
    made.cost = CostInput(path, example_log_mel(shape, mean, std))
    beside = path.parent / "frontend.onnx"
    if beside.is_file():
        made.frontend_cost = CostInput(beside, example_waveform(samples))


def _log_mel(frontend: LogMelConfig) -> str:
    return f"{frontend.mels} mels at {frontend.sample_rate_hz:,} Hz"


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingArtifactError("no table of contracts", expected=path, got="no such file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _assign(table: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
    table[leaf] = value

"""A teacher with a classifier of one's own on it, and, trained whole, with weights of one's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import artifact
from pipeline.config import Section, TeacherConfig, digest
from pipeline.errors import ConfigError, DigestMismatchError, WeightsError, near_matches
from pipeline.students.classifier import read_classes
from pipeline.teachers.base import EMBEDDING_ONLY, Teacher
from pipeline.teachers.network import NetworkTeacher

DESCRIPTION_FILE = "teacher.json"
WEIGHTS_FILE = "teacher.safetensors"
CLASSES_FILE = "classes.json"
# How the run is executed, not what it computes: the one who embeds chooses.
EXECUTION = ("device", "dtype", "batch_size")


class SavedTeacher(Section):
    """The content of ``teacher.json``."""

    schema_version: Literal["ossicle-teacher/1"] = "ossicle-teacher/1"
    teacher: TeacherConfig = Field(description="what was fine-tuned: name, weights, options")
    base_digest: str = Field(description="of that teacher's code, weights and options, before any step")
    trained: Literal["whole", "head"]
    window_samples: int = Field(gt=0, description="length of the clips it was trained on, at its own rate")
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of teacher.safetensors")


def modules_of(teacher: Teacher) -> dict[str, nn.Module]:
    """Return the networks that a teacher holds as attributes, by name; each network once."""
    found: dict[str, nn.Module] = {}
    for name, value in vars(teacher).items():
        if isinstance(value, nn.Module) and all(value is not other for other in found.values()):
            found[name] = value
    return found


def base_digest(teacher: Teacher) -> str:
    """Return the digest of what a teacher computes, whatever number format it runs in."""
    if isinstance(teacher, NetworkTeacher):
        own = {"code": teacher.code_version, "weights_sha256": teacher.weights_sha256}
        return digest({**own, "options": teacher.options})
    return teacher.digest()


def save_finetuned(
    folder: Path,
    teacher: Teacher,
    config: TeacherConfig,
    base: str,
    classifier: nn.Linear,
    *,
    trained: Literal["whole", "head"],
    window_samples: int,
) -> SavedTeacher:
    """Write what ``run:FOLDER`` reads; the description is written last.

    Args:
        teacher: the trained one; with ``head`` its weights are not written.
        config: what it was built from.
        base: its ``base_digest`` before training.
        classifier: from embedding to logits.
        window_samples: length of the clips it was trained on.
    """
    tensors = {
        "classifier.weight": classifier.weight.detach().cpu().contiguous(),
        "classifier.bias": classifier.bias.detach().cpu().contiguous(),
    }
    if trained == "whole":
        for part, module in modules_of(teacher).items():
            for name, value in module.state_dict().items():
                # Clones: safetensors refuses tensors that share memory.
                tensors[f"{part}.{name}"] = value.detach().cpu().contiguous().clone()
    content = save_tensors(tensors)
    saved = SavedTeacher(
        teacher=config,
        base_digest=base,
        trained=trained,
        window_samples=window_samples,
        weights_sha256=hashlib.sha256(content).hexdigest(),
    )
    artifact.write_bytes(folder / WEIGHTS_FILE, content)
    artifact.write_json(folder / DESCRIPTION_FILE, saved.model_dump(mode="json"))
    return saved


class FinetunedTeacher:
    """The teacher of a fine-tuned run: its outputs, and ``logits`` of the run's own classes.

    Args:
        folder: of the run.
        config: dtype, device and batch size; ``options`` are the base teacher's, set when it was fine-tuned.
        cache: folder of downloads; the base teacher's published weights must be there.

    Raises:
        WeightsError: the base teacher's weights are absent, or the run's files are damaged.
        DigestMismatchError: the base teacher is not the one that was fine-tuned.
        ConfigError: options were given.
    """

    def __init__(self, folder: Path, config: TeacherConfig, cache: Path | None = None) -> None:
        from pipeline.teachers.registry import build_teacher

        if config.options:
            raise ConfigError(
                f"a fine-tuned teacher takes no options: {folder.name}",
                expected="those it was fine-tuned with",
                got=", ".join(config.options),
            )
        saved, tensors = _read(folder)
        execution = {name: getattr(config, name) for name in EXECUTION}
        base = build_teacher(saved.teacher.model_copy(update=execution), cache=cache)
        if (found := base_digest(base)) != saved.base_digest:
            raise DigestMismatchError(
                f"the teacher that {folder.name} was fine-tuned from is another one now",
                expected=saved.base_digest,
                got=found,
                run=f"put the same weights of {saved.teacher.name} back, or run ossicle finetune RECIPE again",
            )
        self.weight, self.bias = tensors.pop("classifier.weight"), tensors.pop("classifier.bias")
        _overlay(base, tensors, folder)
        self.base = base
        self.name = folder.resolve().name
        self.sample_rate_hz = base.sample_rate_hz
        self.window_samples = saved.window_samples
        self.embedding_dim = base.embedding_dim
        self.outputs = (*(name for name in base.outputs if name != "logits"), "logits")
        self.classes = read_classes(folder)
        self.licence = base.licence
        self.citation = f"run {self.name}, fine-tuned from {base.name}: {base.citation}"
        self._sha256 = saved.weights_sha256

    def digest(self) -> str:
        """Return the digest of the base teacher, as it runs here, and of the run's weights."""
        own = {"code": "finetuned/1", "base": self.base.digest(), "weights_sha256": self._sha256}
        return digest({**own, "window_samples": self.window_samples})

    def embed(
        self, waveforms: Float[Tensor, "batch samples"], outputs: Sequence[str] = EMBEDDING_ONLY
    ) -> dict[str, Tensor]:
        """Return the asked outputs; ``logits`` (batch, classes) are those of the classes in ``classes.json``.

        Raises:
            ConfigError: an output that this teacher does not have.
        """
        for name in outputs:
            if name not in self.outputs:
                raise ConfigError(
                    f"teacher {self.name!r} has no output {name!r}",
                    expected=near_matches(name, self.outputs),
                    got=name,
                )
        asked = tuple(dict.fromkeys(["embedding", *(n for n in outputs if n != "logits")]))
        made = self.base.embed(waveforms, asked)
        if "logits" in outputs:
            made["logits"] = F.linear(made["embedding"], self.weight, self.bias)
        return {name: made[name] for name in outputs}


def _read(folder: Path) -> tuple[SavedTeacher, dict[str, Tensor]]:
    again = "ossicle finetune RECIPE (after removing this run's folder)"
    try:
        record: Any = json.loads((folder / DESCRIPTION_FILE).read_bytes())
        saved = SavedTeacher.model_validate(record)
        content = (folder / WEIGHTS_FILE).read_bytes()
        if (got := hashlib.sha256(content).hexdigest()) != saved.weights_sha256:
            raise WeightsError(
                f"{folder / WEIGHTS_FILE} is not the file that {DESCRIPTION_FILE} describes",
                expected=f"SHA-256 {saved.weights_sha256}",
                got=got,
                run=again,
            )
        tensors = dict(load_tensors(content))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, ValidationError, SafetensorError) as error:
        raise WeightsError(
            f"{folder} holds no whole fine-tuned teacher", got=str(error).splitlines()[0], run=again
        ) from error
    if not {"classifier.weight", "classifier.bias"} <= tensors.keys():
        raise WeightsError(f"{folder / WEIGHTS_FILE} holds no classifier", run=again)
    return saved, tensors


def _overlay(teacher: Teacher, tensors: dict[str, Tensor], folder: Path) -> None:
    """Put the trained weights in place of the published ones, in whatever number format those run in."""
    modules = modules_of(teacher)
    with torch.no_grad():
        for part, module in modules.items():
            prefix = f"{part}."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if not state:
                continue
            try:
                module.load_state_dict(state)
            except RuntimeError as error:
                raise WeightsError(
                    f"{folder / WEIGHTS_FILE} does not fit {teacher.name}", got=str(error)[:300]
                ) from error
    strange = sorted({key.split(".", 1)[0] for key in tensors} - modules.keys())
    if strange:
        raise WeightsError(f"{folder / WEIGHTS_FILE} has parts that {teacher.name} has not", got=strange)

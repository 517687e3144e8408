"""A finished run of one's own as a teacher: born-again students, teacher assistants, sweeps over teacher sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from pipeline import artifact
from pipeline.config import EmbedConfig, Section, TeacherConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.frontends.log_mel import LogMel
from pipeline.run_folder import PREFIX as PREFIX
from pipeline.run_folder import folder_of as folder_of
from pipeline.students.classifier import read_classes
from pipeline.students.saved import SavedStudent, load_student, read_description
from pipeline.teachers import finetuned
from pipeline.teachers import options as teacher_options
from pipeline.teachers.base import Teacher
from pipeline.teachers.network import NetworkTeacher

OWN_LICENCE = "your own run; no teacher's licence applies"


class RunOptions(Section):
    """``[embed.teacher.options]`` of ``run:FOLDER``."""

    name: str = Field(
        "", pattern=r"^[A-Za-z0-9_.-]*$", description="how the store calls it; default the folder's name"
    )
    embedding: Literal["embedding", "projection"] = Field(
        "embedding", description="projection = what the run's head made of it: its guess of its own target"
    )
    window_seconds: float = Field(
        EmbedConfig().window_seconds, gt=0, description="length of the windows it was trained on"
    )


class RunTeacher(NetworkTeacher):
    """A trained student, heard through its own log-mel.

    A clip of any length is heard whole; one shorter than a frame is followed by silence. ``logits`` are those of
    a run trained on labels.
    """

    code_version = "run/1"

    def __init__(self, folder: Path, config: TeacherConfig) -> None:
        own = teacher_options.parse(RunOptions, f"{PREFIX}{folder.name}", config.options)
        saved = read_description(folder)
        heads = {name: _head(folder / f"{name}.safetensors", saved) for name in ("projector", "classifier")}
        identity = {
            **own.model_dump(mode="json", exclude={"name"}),
            "frontend": saved.frontend.model_dump(mode="json"),
            # The student's digest does not cover the heads, which lie in files of their own.
            "heads": {
                name: artifact.file_digest(folder / f"{name}.safetensors") for name in heads if heads[name]
            },
        }
        super().__init__(config, saved.weights_sha256, identity)
        self.student = load_student(folder).to(self.device)
        self.log_mel = LogMel(saved.frontend).eval().to(self.device)
        self.projector, self.classifier = (self._on_device(head) for head in heads.values())
        if own.embedding == "projection" and self.projector is None:
            raise ConfigError(
                f"run {folder.name} has no projection", expected='embed.teacher.options.embedding = "embedding"',
                got="no projector.safetensors",
            )  # fmt: skip
        self.projects = own.embedding == "projection"
        self.name = own.name or folder.resolve().name
        self.sample_rate_hz = saved.frontend.sample_rate_hz
        self.window_samples = round(own.window_seconds * self.sample_rate_hz)
        self.embedding_dim = saved.embedding_dim
        if self.projects and self.projector is not None:
            self.embedding_dim = len(self.projector[1])
        self.outputs = ("embedding", "logits") if self.classifier is not None else ("embedding",)
        self.classes = read_classes(folder)
        taught = saved.teacher
        self.licence = taught.licence if taught is not None else OWN_LICENCE
        self.citation = f"run {self.name}"
        if taught is not None:
            self.citation += f", distilled from {taught.name}" + f": {taught.citation}" * bool(
                taught.citation
            )

    def compute(
        self, waveforms: Float[Tensor, "batch samples"], outputs: frozenset[str]
    ) -> dict[str, Tensor]:
        """Return ``embedding`` (batch, dim) and, of a run trained on labels, ``logits`` (batch, classes)."""
        frontend = self.log_mel.config
        least = frontend.n_fft // 2 + 1 if frontend.center else frontend.n_fft
        padded = F.pad(waveforms, (0, max(0, least - waveforms.shape[1])))
        level = self.log_mel(padded)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            embedding = self.student(level).float()
        made = {"embedding": embedding}
        if self.classifier is not None:
            made["logits"] = F.linear(embedding, *self.classifier)
        if self.projects and self.projector is not None:
            made["embedding"] = F.linear(embedding, *self.projector)
        return made

    def _on_device(self, head: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor] | None:
        return None if head is None else (head[0].to(self.device), head[1].to(self.device))


def _head(path: Path, saved: SavedStudent) -> tuple[Tensor, Tensor] | None:
    """Return weight (outputs, dim) and bias of a run's linear head, or None where it has none."""
    if not path.is_file():
        return None
    try:
        state = {name.rpartition(".")[2]: value for name, value in load_file(path).items()}
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} is damaged", got=str(error), run="ossicle distill RECIPE") from error
    weight, bias = state.get("weight"), state.get("bias")
    fits = weight is not None and bias is not None and weight.shape == (len(bias), saved.embedding_dim)
    if not fits or weight is None or bias is None:
        got = ", ".join(f"{name} {tuple(value.shape)}" for name, value in state.items())
        raise WeightsError(
            f"{path} is not this run's head", expected=f"(outputs, {saved.embedding_dim})", got=got
        )
    return weight.float(), bias.float()


def build_run(config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None) -> Teacher:
    """Return the teacher of the run that ``config.name`` (``run:FOLDER``) names.

    Raises:
        MissingArtifactError: no finished run is there.
        WeightsError: its files are damaged, or a weights file was given beside it.
        ConfigError: an option is unknown, or the run has no projection.
    """
    if weights is not None:
        raise WeightsError(f"{config.name} has its own weights", got=str(weights))
    folder = folder_of(config.name)
    if (folder / finetuned.DESCRIPTION_FILE).is_file():
        return finetuned.FinetunedTeacher(folder, config, cache)
    return RunTeacher(folder, config)

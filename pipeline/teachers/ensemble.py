"""Several teachers as one: their logits averaged, their embeddings side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soxr
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from pipeline.config import Section, TeacherConfig, digest
from pipeline.errors import ConfigError, WeightsError, near_matches
from pipeline.students.classifier import read_classes
from pipeline.teachers import options
from pipeline.teachers.base import EMBEDDING_ONLY, Teacher


class EnsembleOptions(Section):
    """Keys of ``embed.teacher.options`` of teacher ``ensemble``."""

    members: tuple[TeacherConfig, ...] = Field(
        min_length=2, description='[{name = "run:FOLDER"}, {name = "passt_s"}, ...]: keys of [embed.teacher]'
    )
    weights: tuple[float, ...] = Field((), description="of the members' logits, relative; default equal")
    name: str = Field("ensemble", pattern=r"^[A-Za-z0-9_.-]+$", description="how the store calls it")


class EnsembleTeacher:
    """Members that hear the same clips. ``logits`` is their (weighted) mean, where all have the same classes.

    ``embedding`` is the members' embeddings side by side, each divided by the root of its width, so that none
    counts more for being wide. The ensemble hears the highest of its members' sample rates; others get it
    resampled. Members run on the ensemble's device, in its number format and batches.

    Args:
        members: built teachers.
        weights: one a member, or none.
        classes: names of each member's classes, None where it does not say.
        name: of the ensemble.

    Raises:
        ConfigError: members' classes differ, or the weights are not one a member.
    """

    def __init__(
        self,
        members: Sequence[Teacher],
        weights: Sequence[float],
        classes: Sequence[list[str] | None],
        name: str = "ensemble",
    ) -> None:
        if weights and (len(weights) != len(members) or min(weights) < 0 or sum(weights) == 0):
            raise ConfigError(
                "teacher 'ensemble' has impossible weights",
                expected=f"{len(members)} numbers, none below 0, not all 0",
                got=list(weights),
            )
        said = [names for names in classes if names is not None]
        for names in said[1:]:
            if names != said[0]:
                raise ConfigError(
                    "members of the ensemble have other classes: their logits have no common mean",
                    expected=", ".join(said[0][:8]),
                    got=", ".join(names[:8]),
                )
        self.members, self.name = tuple(members), name
        self.classes = said[0] if said else None
        total = sum(weights) or 1.0
        self.shares = [w / total for w in weights] or [1.0 / len(members)] * len(members)
        self.sample_rate_hz = max(member.sample_rate_hz for member in members)
        seconds = max(member.window_samples / member.sample_rate_hz for member in members)
        self.window_samples = round(seconds * self.sample_rate_hz)
        self.embedding_dim = sum(member.embedding_dim for member in members)
        has_logits = all("logits" in member.outputs for member in members)
        self.outputs = ("embedding", "logits") if has_logits else EMBEDDING_ONLY
        self.licence = " + ".join(dict.fromkeys(member.licence for member in members))
        self.citation = "; ".join(dict.fromkeys(member.citation for member in members))

    def digest(self) -> str:
        """Return the digest of the members' digests and shares."""
        return digest(
            {"code": "ensemble/1", "members": [m.digest() for m in self.members], "shares": self.shares}
        )

    def embed(
        self, waveforms: Float[Tensor, "batch samples"], outputs: Sequence[str] = EMBEDDING_ONLY
    ) -> dict[str, Tensor]:
        """Return the asked outputs, ``embedding`` (batch, sum of widths) and ``logits`` (batch, classes).

        Raises:
            ConfigError: an output that not every member has, or logits of different widths.
        """
        for name in outputs:
            if name not in self.outputs:
                lacking = [m.name for m in self.members if name not in m.outputs] or ["the ensemble"]
                raise ConfigError(
                    f"teacher {self.name!r} has no output {name!r}: {', '.join(lacking)} gives none",
                    expected=near_matches(name, self.outputs),
                    got=name,
                )
        made = [member.embed(self._heard_by(member, waveforms), outputs) for member in self.members]
        result: dict[str, Tensor] = {}
        if "embedding" in outputs:
            scaled = [one["embedding"] / one["embedding"].shape[1] ** 0.5 for one in made]
            result["embedding"] = torch.cat(scaled, dim=1)
        if "logits" in outputs:
            widths = {one["logits"].shape[1] for one in made}
            if len(widths) > 1:
                raise ConfigError(
                    "members of the ensemble have different numbers of classes", got=sorted(widths)
                )
            parts = [share * one["logits"] for share, one in zip(self.shares, made, strict=True)]
            result["logits"] = torch.stack(parts).sum(dim=0)
        return result

    def _heard_by(self, member: Teacher, waveforms: Tensor) -> Tensor:
        if member.sample_rate_hz == self.sample_rate_hz:
            return waveforms
        if not waveforms.numel():
            return waveforms
        # soxr takes (samples, channels): the clips of a batch are its channels.
        rows = waveforms.T.contiguous().numpy()
        resampled = soxr.resample(rows, self.sample_rate_hz, member.sample_rate_hz, quality="HQ")
        return torch.from_numpy(resampled.T.copy())


def build_ensemble(
    config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None
) -> EnsembleTeacher:
    """Return the ensemble of ``config.options``.

    Raises:
        WeightsError: a weights file was given; members have their own.
        ConfigError: fewer than two members, or members that do not fit together.
    """
    from pipeline.teachers.registry import RUN_PREFIX, build_teacher
    from pipeline.teachers.run_teacher import folder_of

    if weights is not None:
        raise WeightsError(
            "teacher 'ensemble' has no weights of its own",
            expected="options.members[].weights",
            got=str(weights),
        )
    own = options.parse(EnsembleOptions, "ensemble", config.options)
    execution: dict[str, Any] = {name: getattr(config, name) for name in ("device", "dtype", "batch_size")}
    members = [build_teacher(member.model_copy(update=execution), cache=cache) for member in own.members]
    classes = [
        read_classes(folder_of(member.name)) if member.name.startswith(RUN_PREFIX) else None
        for member in own.members
    ]
    return EnsembleTeacher(members, own.weights, classes, own.name)

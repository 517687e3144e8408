"""Several teachers read as one: their rows side by side, or their weighted mean (an ensemble's logits)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy

from pipeline.config import TargetsConfig, digest
from pipeline.errors import ConfigError
from pipeline.store.schema import ArraySpec


@dataclass(frozen=True)
class Combination:
    """Which arrays of a store are read together, and how.

    Attributes:
        teachers: each as ``choice.choose`` takes it: ``NAME``, ``NAME:OUTPUT`` or a digest.
        how: ``concat``: rows side by side, as stored (weights come after the targets' transform, which would
            undo them); ``mean``: the weighted mean of equally wide rows.
        weights: one a teacher, any positive numbers; empty = equal.
    """

    teachers: tuple[str, ...]
    how: Literal["concat", "mean"] = "concat"
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.teachers or len(set(self.teachers)) < len(self.teachers):
            raise ConfigError("a combination needs teachers, each once", got=self.teachers)
        if self.weights and (len(self.weights) != len(self.teachers) or min(self.weights) <= 0):
            raise ConfigError(
                "a combination's weights do not fit its teachers",
                expected=f"{len(self.teachers)} numbers above 0",
                got=self.weights,
            )

    @classmethod
    def of(cls, config: TargetsConfig, inputs: Mapping[str, str]) -> Combination:
        """Return what ``config`` asks for, of the arrays that a run's ``inputs`` pin by digest."""
        names = [f"teacher.{number}" for number in range(len(config.teachers))]
        # Teachers with heads of their own are stored side by side too; only their targets are kept apart.
        how: Literal["concat", "mean"] = "mean" if config.fusion == "mean" else "concat"
        return cls(tuple(inputs[name] for name in names), how, config.teacher_weights)

    @property
    def shares(self) -> numpy.ndarray:
        """Each part's share; they sum to 1."""
        weights = numpy.array(self.weights or [1.0] * len(self.teachers))
        return numpy.asarray(weights / weights.sum())

    def spec(self, parts: Sequence[ArraySpec]) -> ArraySpec:
        """Return what the combined rows are, as if they were one array.

        Raises:
            ConfigError: a part whose rows are no vectors, or a mean of different widths.
        """
        if any(len(part.row_shape) != 1 for part in parts):
            wrong = next(part for part in parts if len(part.row_shape) != 1)
            raise ConfigError(
                f"{wrong.name}:{wrong.output} cannot be combined", expected="vectors", got=wrong.row_shape
            )
        widths = [part.row_shape[0] for part in parts]
        if self.how == "mean" and len(set(widths)) > 1:
            raise ConfigError(
                "only arrays of one width have a mean",
                expected="equal widths",
                got=dict(zip(self.teachers, widths, strict=True)),
                run="--set targets.fusion=concat",
            )
        listed = [
            {"name": part.name, "output": part.output, "digest": part.digest, "dim": part.row_shape[0]}
            for part in parts
        ]
        shares = [float(share) for share in self.shares]
        citations = dict.fromkeys(str(part.config.get("citation", "")) for part in parts)
        return ArraySpec(
            kind="embedding",
            digest=digest(
                {"combination": listed, "how": self.how, "shares": shares if self.how == "mean" else []}
            ),
            name=" + ".join(dict.fromkeys(part.name for part in parts)),
            dtype="float32",
            row_shape=(sum(widths) if self.how == "concat" else widths[0],),
            config={
                "combination": listed,
                "how": self.how,
                "shares": shares,
                "citation": "; ".join(citation for citation in citations if citation),
            },
            licence=" + ".join(dict.fromkeys(part.licence for part in parts if part.licence)),
        )

    def combine(self, parts: Sequence[numpy.ndarray], out: numpy.ndarray | None = None) -> numpy.ndarray:
        """Return the combined rows (rows, width) float32, in ``out`` where it is given."""
        width = sum(part.shape[1] for part in parts) if self.how == "concat" else parts[0].shape[1]
        if out is None:
            out = numpy.empty((len(parts[0]), width), dtype=numpy.float32)
        if self.how == "mean":
            exact = sum(
                share * part.astype(numpy.float64) for share, part in zip(self.shares, parts, strict=True)
            )
            out[...] = exact
            return out
        return numpy.concatenate(parts, axis=1, out=out, casting="same_kind")

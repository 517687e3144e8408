"""The keys of ``[evaluate.grid]``: what probes of tasks with a development and a test split may choose from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.section import Section

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class ProbeGridConfig(Section):
    """Chosen by cross-validation on the development split alone, tracks kept whole."""

    logistic_c: tuple[Positive, ...] = Field(
        (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0),
        min_length=1,
        description="inverse strengths of logistic regression",
    )
    ridge_alpha: tuple[Positive, ...] = Field(
        (0.1, 1.0, 10.0, 1e2, 1e3, 1e4, 1e5), min_length=1, description="strengths of ridge regression"
    )
    neighbours: tuple[Count, ...] = Field(
        (1, 3, 5, 10, 20, 50),
        min_length=1,
        description="k of k-NN; those above the training rows are left out",
    )
    folds: int = Field(5, ge=2, description="of the cross-validation")

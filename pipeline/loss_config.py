"""The keys of the objective: ``[loss]``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.section import Section
from pipeline.weight_schedule import Weight, is_used, turns_of, weight_at

# Terms that compare embeddings, those that see pairs of rows first; terms over classes.
RELATIONAL_TERMS = ("distance", "angle", "cosine", "distance_correlation", "similarity", "kernel")
EMBEDDING_TERMS = (*RELATIONAL_TERMS, "feature", "contrastive")
CLASS_TERMS = ("hinton", "tags", "labels")
# Terms that see the teacher's space beyond the batch (``[relations]``).
BEYOND_TERMS = ("anchor", "neighbour")
TERMS = (*EMBEDDING_TERMS, *BEYOND_TERMS, *CLASS_TERMS)
# Keys that runs had before the others came; the others name a run only where they are used.
FIRST_KEYS = (
    "distance", "angle", "cosine", "feature", "cosine_kind", "feature_kind", "relational_on",
)  # fmt: skip


class LossConfig(Section):
    """Weights of the loss terms: numbers, or schedules like {kind = "linear", start = 0, end = 1, last_step = 500};
    a term whose weight is always 0 is not computed."""

    distance: Weight = Field(0.0, description="distance-wise: RKD-D, Park et al., CVPR 2019")
    angle: Weight = Field(0.0, description="angle-wise: RKD-A, Park et al., CVPR 2019")
    cosine: Weight = Field(0.0, description="cosine-wise: the two cosine-similarity matrices")
    feature: Weight = Field(
        1.0, description="feature-wise: projected embedding against its target, row by row"
    )
    distance_correlation: Weight = Field(
        0.0, description="1 - squared distance correlation: EAsT, Ding and Lerch, ISMIR 2023"
    )
    similarity: Weight = Field(
        0.0, description="similarity-preserving: row-normalised Gram matrices, Tung and Mori, ICCV 2019"
    )
    kernel: Weight = Field(0.0, description="1 - centred kernel alignment (CKA), Kornblith et al., ICML 2019")
    contrastive: Weight = Field(
        0.0,
        description="each projection finds its own target among the batch's: CLAP-style, and S-SONDO's others",
    )
    anchor: Weight = Field(
        0.0, description="distances to anchors of the whole store follow the teacher's (relations.anchors)"
    )
    neighbour: Weight = Field(
        0.0, description="the teacher's nearest neighbours are drawn near (relations.neighbours)"
    )
    hinton: Weight = Field(
        0.0, description="KD on the teacher's logits (and labels): Hinton et al., 2015; needs them cached"
    )
    tags: Weight = Field(
        0.0, description="BCE on the teacher's tag probabilities (multi-label KD); needs its logits cached"
    )
    labels: Weight = Field(
        0.0, description="the store's own labels (train.label_column), where a row has any"
    )
    cosine_kind: Literal["mse", "smooth_l1", "l1"] = "mse"
    feature_kind: Literal["cosine", "mse", "l1", "smooth_l1"] = "cosine"
    relational_on: Literal["embedding", "projection"] = Field(
        "embedding", description="where the relational terms look: the student's embedding or its projection"
    )
    angle_triplets: int | None = Field(
        None, ge=1, description="angle-wise over so many triplets, drawn anew each step; default all batch^3"
    )
    distance_correlation_kind: Literal["published", "scale_free"] = Field(
        "published",
        description="scale_free = without the published constant, which small embeddings drown in",
    )
    kernel_kind: Literal["linear", "rbf"] = Field(
        "linear", description="rbf = Gaussian of kernel_bandwidth medians"
    )
    kernel_bandwidth: float = Field(1.0, gt=0, description="of rbf, in units of the median distance")
    kernel_unbiased: bool = Field(
        False, description="the estimator that a batch's size does not bias (Song et al., JMLR 2012)"
    )
    contrastive_kind: Literal["clap", "decoupled", "cluster_negatives", "cluster_aware"] = Field(
        "clap", description="what repels and what attracts; see docs/objectives.md"
    )
    contrastive_temperature: float = Field(
        0.07, gt=0, description="divides the cosines; the lower, the more the nearest count"
    )
    contrastive_masked: Literal["published", "excluded"] = Field(
        "published",
        description="masked pairs of the cluster kinds: exp(0) in the sums as published, or left out",
    )
    contrastive_clusters: int = Field(50, ge=2, description="k-means clusters of the teacher's embeddings")
    logits: str | None = Field(
        None, description="logits array for hinton and tags: NAME or a digest; default the followed teacher's"
    )
    classes: Path | None = Field(
        None,
        description="JSON list of the teacher's class names in the order of its logits, where the store has none; "
        "labels share its head where it knows all of them",
    )
    hinton_temperature: float = Field(
        1.0, gt=0, description="T: both sides' logits are divided by it, and the term multiplied by T^2"
    )
    hinton_alpha: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the part that hinton_alpha_weighs names; the other has 1 - alpha",
    )
    hinton_alpha_weighs: Literal["labels", "teacher"] | None = Field(
        None,
        description="labels = alpha CE + (1 - alpha) KD; teacher = (1 - alpha) CE + alpha KD; hinton needs it",
    )
    hinton_reduction: Literal["batchmean", "mean"] = Field(
        "batchmean", description="KL summed over classes; or averaged over them too (S-SONDO, CPJKU)"
    )
    tags_kind: Literal["bce", "binary_kl"] = Field(
        "bce", description="bce = EfficientAT's; binary_kl = EAsT's, T^2 times the KL of both sides over T"
    )
    tags_temperature: float = Field(
        1.0, gt=0, description="T: the teacher's logits are divided by it; of binary_kl the student's too"
    )

    @model_validator(mode="after")
    def _possible(self) -> LossConfig:
        weights = self.weights
        for step in sorted({step for weight in weights.values() for step in turns_of(weight)}):
            if sum(self.at(step).values()) == 0:
                when = (
                    ""
                    if all(isinstance(weight, float) for weight in weights.values())
                    else f" at step {step}"
                )
                raise ValueError(f"every loss weight is 0{when}: give at least one of {', '.join(TERMS)}")
        if self.uses("hinton") and self.hinton_alpha_weighs is None:
            raise ValueError(
                "hinton needs hinton_alpha_weighs: 'labels' (torchdistill, CPJKU, EfficientAT) or 'teacher' (EAsT)"
            )
        return self

    @property
    def weights(self) -> dict[str, Weight]:
        """Every term's weight, by name."""
        return {name: getattr(self, name) for name in TERMS}

    def uses(self, *terms: str) -> bool:
        """Whether any of ``terms`` has a weight above 0 at any step."""
        return any(is_used(getattr(self, name)) for name in terms)

    def at(self, step: int | None) -> dict[str, float]:
        """Return the weight of each term at update ``step`` (None = in the end)."""
        return {name: weight_at(weight, step) for name, weight in self.weights.items()}

    @property
    def hinton_labels_share(self) -> float:
        """Share of the hard labels in the Hinton term; the teacher has the rest."""
        return self.hinton_alpha if self.hinton_alpha_weighs == "labels" else 1.0 - self.hinton_alpha

    @property
    def needs_logits(self) -> bool:
        """Whether a term looks at the teacher's logits."""
        return self.uses("tags") or (self.uses("hinton") and self.hinton_labels_share < 1.0)

    @property
    def needs_labels(self) -> bool:
        """Whether a term looks at the store's labels."""
        return self.uses("labels") or (self.uses("hinton") and self.hinton_labels_share > 0.0)

    @property
    def needs_clusters(self) -> bool:
        """Whether a term asks which cluster of the teacher's space a row is in."""
        return self.uses("contrastive") and self.contrastive_kind.startswith("cluster")

    def counted(self) -> dict[str, Any]:
        """Return what a run's identity depends on: keys that came later only where they are used and set."""
        values = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            term = max((one for one in TERMS if f"{name}_".startswith(f"{one}_")), key=len, default=None)
            unused = term is not None and not self.uses(term)
            # Which logits, and the names of their classes, are inputs of a run: their content counts.
            elsewhere = name in ("logits", "classes")
            if name not in FIRST_KEYS and (unused or elsewhere or getattr(self, name) == field.default):
                del values[name]
        return values

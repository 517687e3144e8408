"""The recipe's ``export`` section: ONNX, int8 and how int8 is kept close to float32."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.section import Section

# Came after the first exports: counted only where they differ from these, what they were before.
LATER: dict[str, Any] = {
    "classifier": False,
    "int8_method": "ptq",
    "calibration_draw": "stored",
    "calibration_clusters": 32,
    "calibration_seed": 0,
    "deploy_form": True,
    "equalisation": "none",
    "bias_correction": False,
    "int8_max_overlap_loss": None,
    "int8_min_macs_share": None,
    "int8_fallback": "float",
    "weight_only_bits": [],
    "probe_column": "label",
}

# Students whose int8 files are made from a deploy form, with its revision: exports from before it are made again.
DEPLOY_FORMS = {"micronet_m0": 1, "micronet_m1": 1, "micronet_m2": 1, "micronet_m3": 1}


class ExportConfig(Section):
    """ONNX and int8."""

    opset: int = Field(20, ge=17)
    classifier: bool = Field(
        False, description="the run's class logits as a second output beside the embedding"
    )
    int8: bool = True
    int8_method: Literal["ptq", "qat"] = Field(
        "ptq",
        description="ptq = ranges and layers chosen after training; qat = the files of `ossicle qat`, all layers int8",
    )
    calibration_clips: int = Field(256, ge=1)
    calibration: Literal["minmax", "percentile", "entropy"] = "minmax"
    calibration_draw: Literal["stored", "cluster_nearest", "cluster_random"] = Field(
        "stored",
        description="which training rows calibrate: the store's first, or an equal share of each cluster of teacher "
        "embeddings, those nearest to its centre or a seeded draw",
    )
    calibration_clusters: int = Field(
        32, ge=2, description="clusters of teacher embeddings that calibration rows are drawn from"
    )
    calibration_seed: int = Field(0, ge=0, description="of those clusters and of the draw within them")
    per_channel: bool = True
    int8_ops: Literal["all", "conv_matmul"] = "all"
    int8_min_cosine: float = Field(
        0.99, ge=-1, le=1, description="centred cosine to float32 below which layers are left in float"
    )
    int8_max_overlap_loss: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of a row's 10 nearest neighbours in float32 that int8 may lose before layers are left in "
        "float",
    )
    int8_min_macs_share: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the MACs that stay int8 whatever is lost; default half of the layers",
    )
    int8_fallback: Literal["float", "int16"] = Field(
        "float",
        description="what a layer gets that int8 hurts: float32, or int8 weights and 16-bit activations (for NPUs: "
        "ONNX Runtime's CPU computes those in float32)",
    )
    deploy_form: bool = Field(
        True,
        description="int8 from the student's deploy form, equal in output and faster in int8, where it has one "
        "(docs/int8.md)",
    )
    equalisation: Literal["none", "weights", "activations"] = Field(
        "none",
        description="scales moved between neighbouring layers before quantising: by their weights' ranges, or by the "
        "calibrated activations' (docs/int8.md)",
    )
    bias_correction: bool = Field(
        True, description="mean error of each int8 layer on the calibration rows taken off its bias"
    )
    weight_only_bits: tuple[Literal[8, 4], ...] = Field(
        (), description="also write student_w8.onnx, student_w4.onnx: small weights, float32 arithmetic"
    )
    probe_column: str = Field(
        "label", description="column of the store whose classes a probe tells apart, float32 against int8"
    )
    parity_atol: float = Field(1e-4, gt=0, description="of the largest output; torch against ONNX Runtime")

    @model_validator(mode="after")
    def _possible(self) -> ExportConfig:
        if len(set(self.weight_only_bits)) != len(self.weight_only_bits):
            raise ValueError("weight_only_bits names a width twice")
        return self

    def counted(self) -> dict[str, Any]:
        """Return what an export's identity depends on: keys that came later only where they are used."""
        found = self.model_dump(mode="json")
        return {key: value for key, value in found.items() if key not in LATER or value != LATER[key]}

"""The log-mel frontend as its own ONNX file: a device may replace it, and it is never quantised."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline import artifact
from pipeline.config import LogMelConfig
from pipeline.deploy import metadata as metadata_props
from pipeline.deploy.metadata import ExportMetadata
from pipeline.deploy.onnx_export import export_module
from pipeline.frontends.log_mel import LogMel

INPUT, OUTPUT = "waveform", "log_mel"


class FrontendGraph(nn.Module):
    """The frontend with the channel axis that students take: (batch, samples) to (batch, 1, mels, time)."""

    def __init__(self, config: LogMelConfig) -> None:
        super().__init__()
        self.log_mel = LogMel(config)

    def forward(self, waveform: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch 1 mels time"]:
        """Return the log-mel with a channel axis."""
        frames: Tensor = self.log_mel(waveform)
        return frames.unsqueeze(1)


def export_frontend(config: LogMelConfig, path: Path, *, opset: int = 20) -> None:
    """Write the frontend: ``waveform`` float32 (batch, samples) to ``log_mel`` (batch, 1, mels, time).

    Raises:
        OssicleError: the exporter refuses the frontend.
    """
    samples = config.sample_rate_hz + 7 * config.hop_length + 3
    graph = FrontendGraph(config).eval()
    with artifact.replacing(path) as temporary:
        export_module(
            graph,
            (torch.zeros(2, samples),),
            temporary,
            input_name=INPUT,
            output_names=(OUTPUT,),
            dynamic={0: "batch", 1: "samples"},
            opset=opset,
        )
        metadata_props.embed(temporary, ExportMetadata(frontend=config).properties())

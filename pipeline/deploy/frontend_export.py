"""The log-mel frontend as its own ONNX file: a device may replace it, and it is never quantised."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline import artifact
from pipeline.config import LogMelConfig
from pipeline.deploy import metadata as metadata_props
from pipeline.deploy.frontend_stream import STREAM_INPUT
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


class FrontendBlock(FrontendGraph):
    """A block of samples that is padded already, as a stream hands it on."""

    def forward(self, block: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch 1 mels time"]:
        """Return the log-mel of the block's whole frames with a channel axis."""
        frames: Tensor = self.log_mel.levels(block)
        return frames.unsqueeze(1)


def export_frontend(config: LogMelConfig, path: Path, *, opset: int = 20) -> None:
    """Write the frontend: ``waveform`` float32 (batch, samples) to ``log_mel`` (batch, 1, mels, time).

    The DFT is split in two stages of matrix products (:class:`pipeline.frontends.split_spectrum.SplitPower`).

    Raises:
        OssicleError: the exporter refuses the frontend.
    """
    _export(FrontendGraph(config), INPUT, path, opset)


def export_frontend_stream(config: LogMelConfig, path: Path, *, opset: int = 20) -> None:
    """Write a stream's frontend: ``block`` (batch, samples) to ``log_mel``, padding left to the stream.

    :class:`pipeline.deploy.frontend_stream.OnnxLogMelStream` runs it.

    Raises:
        OssicleError: the exporter refuses the frontend.
    """
    _export(FrontendBlock(config), STREAM_INPUT, path, opset)


def _export(graph: FrontendGraph, name: str, path: Path, opset: int) -> None:
    config = graph.log_mel.config
    samples = config.sample_rate_hz + 7 * config.hop_length + 3
    with artifact.replacing(path) as temporary:
        export_module(
            graph.eval(),
            (torch.zeros(2, samples),),
            temporary,
            input_name=name,
            output_names=(OUTPUT,),
            dynamic={0: "batch", 1: "samples"},
            opset=opset,
        )
        metadata_props.embed(temporary, ExportMetadata(frontend=config).properties())

"""Which encoders a bank is put behind: an export's float and int8 files, any exported ONNX file, or none at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from pipeline.config import LogMelConfig
from pipeline.deploy import metadata as metadata_props
from pipeline.errors import ConfigError
from pipeline.evaluation.embedders import Embedder, LogMelEmbedder, OnnxEmbedder
from pipeline.measure.graph_profile import executed_graph
from pipeline.measure.int8_share import share_of
from pipeline.prototypes.log_mel_encoder import log_mel_encoder

LOG_MEL = "log-mel"


@dataclass(frozen=True, eq=False)
class Encoder:
    """What gives embeddings, and what they cost.

    Attributes:
        key: short name, in files and tables.
        file: the ONNX file or model that a bank goes behind; None: it is compared only.
        embedder: what gives the clips' embeddings.
        frontend: the log-mel it hears; None where it is no file's.
        int8: whether its bank is 8-bit too.
        scaling: how its embeddings become features unless the user says otherwise.
        step: of a causal student, the step of its stream: its embeddings are of the same space.
    """

    key: str
    file: Path | onnx.ModelProto | None
    embedder: Embedder
    frontend: LogMelConfig | None = None
    int8: bool = False
    scaling: str = "raw"
    step: Path | None = None

    @property
    def file_bytes(self) -> int | None:
        """Size of the encoder's file; of the time-averaged log-mel what a device keeps: nothing but the bank."""
        if isinstance(self.file, Path):
            return self.file.stat().st_size
        return 0 if self.file is not None else None

    def macs(self, frames: int) -> int | None:
        """Multiply-accumulates of one window of ``frames``; of the log-mel's statistics two a cell."""
        if self.file is None or self.frontend is None:
            return None
        if not isinstance(self.file, Path):
            return 2 * self.frontend.mels * frames
        value = np.zeros((1, 1, self.frontend.mels, frames), np.float32)
        return share_of(executed_graph(self.file, value)).macs


def of_file(path: Path, key: str | None = None) -> Encoder:
    """Return an exported student's file; where it is int8 its bank is, too.

    Raises:
        MissingArtifactError: no such file.
        WeightsError: it does not run, or names no frontend.
        ConfigError: it is one block of a stream, not of whole windows.
    """
    embedder = OnnxEmbedder(path)
    properties = metadata_props.read(path)
    if "stream" in properties:
        raise ConfigError(
            f"{path.name} hears blocks of a stream",
            expected="student_fp32.onnx or student_s8s8.onnx beside it",
        )
    int8 = properties.get("precision", "fp32") != "fp32"
    step = path.with_name(path.name.replace("student_", "student_stream_", 1))
    found = step if step != path and step.is_file() else None
    return Encoder(key or path.stem, path, embedder, embedder.frontend.config, int8, step=found)


def of_log_mel(frontend: LogMelConfig) -> list[Encoder]:
    """Return mean and deviation over time as the embedding, its bank in float32 and in 8 bits."""
    model, embedder = log_mel_encoder(frontend), LogMelEmbedder(frontend, deviation=True)
    return [
        Encoder(f"log_mel_{name}", model, embedder, frontend, int8, "centred")
        for name, int8 in (("fp32", False), ("int8", True))
    ]

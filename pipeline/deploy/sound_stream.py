"""Sound in, embeddings out: the streaming frontend before an exported step, numpy and ONNX Runtime alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pipeline.config import LogMelConfig
from pipeline.deploy.metadata import PREFIX
from pipeline.deploy.onnx_stream import OnnxStream
from pipeline.frontends.log_mel_numpy import NumpyLogMel, NumpyLogMelStream


class SoundStream:
    """Samples in, in any portions (a device's: one hop), an embedding out after every block of frames.

    Args:
        path: ``student_stream_fp32.onnx`` or an int8 one; the file names its frontend.
        batch: streams side by side.

    Attributes:
        frontend: the log-mel's constants.
        stream: the student's part.

    Example:
        >>> stream = SoundStream(Path("student_stream_fp32.onnx"))
        >>> for samples in microphone:               # (1, 320): one hop of 20 ms
        ...     for embedding in stream.push(samples):
        ...         act_on(embedding)                # (1, dim)

    Raises:
        ConfigError: the file is no exported step of a stream.
    """

    def __init__(self, path: Path, batch: int = 1) -> None:
        self.stream = OnnxStream(path, batch)
        properties = self.stream.session.get_modelmeta().custom_metadata_map
        self.frontend = LogMelConfig.model_validate(json.loads(properties[f"{PREFIX}frontend"]))
        self.log_mel = NumpyLogMelStream(NumpyLogMel(self.frontend), batch)

    def push(self, samples: Float[np.ndarray, "batch samples"]) -> list[Float[np.ndarray, "batch dim"]]:
        """Hear the next samples; return the embeddings after each block that they complete, perhaps none.

        Raises:
            AudioError: another number of streams.
        """
        return self._heard(self.log_mel.push(samples))

    def finish(self) -> Float[np.ndarray, "batch dim"]:
        """End the sound and return the whole sound's embedding.

        Raises:
            AudioError: it was too short for one frame.
        """
        self._heard(self.log_mel.finish())
        return self.stream.finish()

    def _heard(self, frames: np.ndarray) -> list[np.ndarray]:
        return self.stream.push(frames) if frames.shape[2] else []

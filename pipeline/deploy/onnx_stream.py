"""A stream through an exported step: numpy and ONNX Runtime alone, as on a board."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pipeline.deploy.sessions import open_session
from pipeline.errors import ConfigError

NEXT = ".next"
PROPERTY = "stream"


class OnnxStream:
    """Frames in, in any portions, an embedding out after every ``step_frames`` of them; of an exported file.

    Args:
        path: what ``ossicle export`` wrote for a causal student: ``student_stream.onnx``.
        batch: streams side by side.

    Raises:
        ConfigError: the file is no exported step of a stream.
    """

    def __init__(self, path: Path, batch: int = 1) -> None:
        self.session = open_session(path)
        properties = self.session.get_modelmeta().custom_metadata_map
        if f"ossicle.{PROPERTY}" not in properties:
            raise ConfigError(
                f"{path} is no step of a stream",
                expected="student_stream.onnx of a causal student",
                run="ossicle export, of a student trained with student.causal = true",
            )
        described: dict[str, Any] = json.loads(properties[f"ossicle.{PROPERTY}"])
        self.step_frames: int = described["step_frames"]
        self.padding: float = described["padding"]
        self._described: list[dict[str, Any]] = described["carried"]
        self.batch = batch
        self.mels = int(self.session.get_inputs()[0].shape[2])
        self.reset()

    def reset(self) -> None:
        """Start anew, as if nothing had been heard."""
        self._carried = {
            d["name"]: np.full(
                [self.batch if n is None else n for n in d["shape"]], float(d["initial"]), np.float32
            )
            for d in self._described
        }
        self._waiting = np.zeros((self.batch, self.mels, 0), np.float32)
        self._last: np.ndarray | None = None

    def push(self, log_mel: Float[np.ndarray, "batch mels frames"]) -> list[Float[np.ndarray, "batch dim"]]:
        """Hear the next frames and return the embeddings after each block that they complete, perhaps none.

        Raises:
            ConfigError: another number of streams or mels.
        """
        if log_mel.ndim != 3 or log_mel.shape[:2] != (self.batch, self.mels):
            raise ConfigError(
                "these frames are of another stream",
                expected=f"(batch {self.batch}, mels {self.mels}, frames)",
                got=log_mel.shape,
            )
        heard = np.concatenate([self._waiting, log_mel.astype(np.float32)], axis=2)
        embeddings = []
        while heard.shape[2] >= self.step_frames:
            block, heard = heard[..., : self.step_frames], heard[..., self.step_frames :]
            embeddings.append(self._hear(block))
        self._waiting = heard
        return embeddings

    def finish(self) -> Float[np.ndarray, "batch dim"]:
        """End the stream: return the whole signal's embedding, a last incomplete block followed by silence.

        Raises:
            ConfigError: no frame was heard.
        """
        missing = -self._waiting.shape[2] % self.step_frames
        if missing:
            padding = ((0, 0), (0, 0), (0, missing))
            self._hear(np.pad(self._waiting, padding, constant_values=self.padding))
        if self._last is None:
            raise ConfigError("the stream ended before its first frame", expected="at least one frame", got=0)
        last = self._last
        self.reset()
        return last

    def _hear(self, block: np.ndarray) -> np.ndarray:
        feeds = {self.session.get_inputs()[0].name: block[:, None], **self._carried}
        embedding, *carried = self.session.run(None, feeds)
        self._carried = dict(zip(self._carried, carried, strict=True))
        self._last = embedding
        return np.asarray(embedding)

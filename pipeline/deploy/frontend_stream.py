"""The log-mel of a stream through an exported file: numpy and ONNX Runtime alone, as on a board."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pipeline.deploy.sessions import open_session, run_session
from pipeline.errors import AudioError, ConfigError
from pipeline.frontends.constants import PlainLogMelConstants
from pipeline.frontends.sample_queue import SampleQueue

STREAM_INPUT = "block"


class OnnxLogMelStream:
    """Samples in, in any portions; frames out as soon as they are whole: equal to those of the whole signal.

    Args:
        path: ``frontend_stream.onnx`` of an export: blocks of samples to their frames, without padding.
        batch: streams side by side.

    Raises:
        ConfigError: the file is no stream's frontend.
    """

    def __init__(self, path: Path, batch: int = 1) -> None:
        self.session, self.batch = open_session(path), batch
        properties = self.session.get_modelmeta().custom_metadata_map
        if self.session.get_inputs()[0].name != STREAM_INPUT or "ossicle.frontend" not in properties:
            raise ConfigError(
                f"{path} is no frontend of a stream",
                expected="frontend_stream.onnx",
                run="ossicle export",
            )
        self.config = PlainLogMelConstants.read(json.loads(properties["ossicle.frontend"]))
        self.queue = SampleQueue[np.ndarray](
            self.config,
            join=lambda parts: np.concatenate(list(parts), axis=1),
            turned=lambda samples: samples[:, ::-1],
            silence=lambda number: np.zeros((batch, number), np.float32),
        )

    def push(self, samples: Float[np.ndarray, "batch samples"]) -> Float[np.ndarray, "batch mels frames"]:
        """Hear any number of samples and return the frames that they complete, perhaps none.

        Raises:
            AudioError: another number of streams.
        """
        heard = np.asarray(samples, np.float32)
        if heard.ndim != 2 or heard.shape[0] != self.batch:
            raise AudioError(
                "shape",
                "these samples are of another stream",
                expected=f"({self.batch}, samples)",
                got=heard.shape,
            )
        return self._levels(self.queue.push(heard))

    def finish(self) -> Float[np.ndarray, "batch mels frames"]:
        """End the signal and return its last frames, perhaps none.

        Raises:
            AudioError: the whole signal was too short for one frame, or for reflection padding.
        """
        return self._levels(self.queue.finish())

    def _levels(self, block: np.ndarray | None) -> np.ndarray:
        if block is None:
            return np.zeros((self.batch, self.config.mels, 0), np.float32)
        return run_session(self.session, np.ascontiguousarray(block))[:, 0]

"""A stream through an exported step: numpy and ONNX Runtime alone, as on a board."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pipeline.deploy.sessions import open_session
from pipeline.errors import ConfigError

OUTPUT, NEXT = "embedding", ".next"
PROPERTY = "stream"


@dataclass(frozen=True)
class Carried:
    """One tensor that a stream carries from block to block.

    Attributes:
        name: of the input; the output is ``name`` + ``.next``.
        shape: its dimensions, -1 for the number of streams.
        initial: the value everywhere before the first block.
        dtype: numpy's name of its type; int8 files carry what their convolutions look back on in 8 bits.
    """

    name: str
    shape: tuple[int, ...]
    initial: float
    dtype: str = "float32"

    def first(self, batch: int) -> np.ndarray:
        """Return what is carried before the first block of ``batch`` streams."""
        shape = [batch if size < 0 else size for size in self.shape]
        return np.full(shape, self.initial, np.dtype(self.dtype))

    @property
    def size_bytes(self) -> int:
        """Bytes of one stream's."""
        return self.first(1).nbytes

    def as_json(self) -> dict[str, Any]:
        """Return plain values for the file's property; minus infinity as text, for JSON has none."""
        plain: dict[str, Any] = {
            "name": self.name,
            "shape": [None if size < 0 else size for size in self.shape],
            "initial": self.initial if np.isfinite(self.initial) else str(self.initial),
        }
        return plain if self.dtype == "float32" else {**plain, "dtype": self.dtype}

    @classmethod
    def of_json(cls, plain: dict[str, Any]) -> Carried:
        """Return what :meth:`as_json` wrote."""
        shape = tuple(-1 if size is None else int(size) for size in plain["shape"])
        return cls(plain["name"], shape, float(plain["initial"]), plain.get("dtype", "float32"))


class OnnxStream:
    """Frames in, in any portions, an embedding out after every ``step_frames`` of them; of an exported file.

    Args:
        path: what ``ossicle export`` wrote for a causal student: ``student_stream_fp32.onnx`` or an int8 one.
        batch: streams side by side.
        exact_int8: compute signed int8 on x86 as ARM does; False = as x86 does by itself, for timing.

    Attributes:
        step_frames: frames of a block.
        carried: what the layers carry from block to block.
        described: the whole property: also the algorithmic latency of what was exported.

    Raises:
        ConfigError: the file is no exported step of a stream.
    """

    def __init__(self, path: Path, batch: int = 1, *, exact_int8: bool = True) -> None:
        self.session = open_session(path, exact_int8=exact_int8)
        properties = self.session.get_modelmeta().custom_metadata_map
        if f"ossicle.{PROPERTY}" not in properties:
            raise ConfigError(
                f"{path} is no step of a stream",
                expected="student_stream_fp32.onnx of a causal student",
                run="ossicle export, of a student trained with student.causal = true",
            )
        self.described: dict[str, Any] = json.loads(properties[f"ossicle.{PROPERTY}"])
        self.step_frames: int = self.described["step_frames"]
        self.padding: float = self.described["padding"]
        self.carried = [Carried.of_json(plain) for plain in self.described["carried"]]
        self.batch = batch
        block = self.session.get_inputs()[0]
        self.input, self.mels = block.name, int(block.shape[2])
        # By name: a file with a bank of classes behind its embedding has other outputs too.
        self.outputs = [OUTPUT, *(f"{carried.name}{NEXT}" for carried in self.carried)]
        self.reset()

    @property
    def state_bytes(self) -> int:
        """Bytes that one stream carries from block to block."""
        return sum(carried.size_bytes for carried in self.carried)

    def reset(self) -> None:
        """Start anew, as if nothing had been heard."""
        self._state = {carried.name: carried.first(self.batch) for carried in self.carried}
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
            embeddings.append(self.hear(block))
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
            self.hear(np.pad(self._waiting, padding, constant_values=self.padding))
        if self._last is None:
            raise ConfigError("the stream ended before its first frame", expected="at least one frame", got=0)
        last = self._last
        self.reset()
        return last

    def feeds(self, block: Float[np.ndarray, "batch mels step_frames"]) -> dict[str, np.ndarray]:
        """Return what the session is given for the next block."""
        return {self.input: block[:, None], **self._state}

    def hear(self, block: Float[np.ndarray, "batch mels step_frames"]) -> Float[np.ndarray, "batch dim"]:
        """Hear exactly one block, past what waits; :meth:`push` cuts frames into blocks."""
        embedding, *state = self.session.run(self.outputs, self.feeds(block))
        self._state = dict(zip(self._state, state, strict=True))
        self._last = np.asarray(embedding)
        return self._last

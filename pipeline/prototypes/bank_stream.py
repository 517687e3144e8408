"""A stream that decides after every block, and learns a class while it listens: numpy and ONNX Runtime alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from pipeline.deploy.metadata import PREFIX
from pipeline.deploy.onnx_stream import NEXT, OnnxStream
from pipeline.errors import ConfigError
from pipeline.prototypes.bank import UNKNOWN
from pipeline.prototypes.onnx_bank import CLASS, CONFIDENCE, ENROL, PROPERTY


@dataclass(frozen=True, eq=False)
class Decision:
    """After one block: the class of each stream, -1 for none that is known, and how sure."""

    classes: Int[np.ndarray, " batch"]
    confidence: Float[np.ndarray, " batch"]


class BankStream(OnnxStream):
    """Frames in, a decision after every block; what a block teaches is in the bank from the next block on.

    Args:
        path: ``prototypes_stream_fp32.onnx`` or an int8 one, with prototypes.
        batch: streams side by side; they share one bank.

    Attributes:
        bank: ``prototypes``, ``counts`` (and ``scales``): what a device stores; empty until something was taught.
        decisions: of every block so far.

    Example:
        >>> stream = BankStream(Path("prototypes_stream_fp32.onnx"))
        >>> stream.teaching = 3                      # the blocks that follow are of class 3
        >>> stream.push(log_mel)
        >>> stream.teaching = -1

    Raises:
        ConfigError: the file is no step of a stream, or has no bank of prototypes.
    """

    def __init__(self, path: Path, batch: int = 1) -> None:
        super().__init__(path, batch)
        names = [given.name for given in self.session.get_outputs()]
        properties = self.session.get_modelmeta().custom_metadata_map
        if f"{PREFIX}{PROPERTY}" not in properties or f"counts{NEXT}" not in names:
            raise ConfigError(
                f"{path} has no bank of prototypes", expected="prototypes_stream_fp32.onnx of a causal run",
                run="ossicle prototypes RUN --classes FOLDER",
            )  # fmt: skip
        carried = {f"{one.name}{NEXT}" for one in self.carried}
        self._bank_outputs = [name for name in names if name.endswith(NEXT) and name not in carried]
        self.teaching = UNKNOWN
        self.bank: dict[str, np.ndarray] = {}

    def reset(self) -> None:
        """Start the sound anew; what was learnt stays."""
        super().reset()
        self.decisions: list[Decision] = []

    def hear(self, block: Float[np.ndarray, "batch mels step_frames"]) -> Float[np.ndarray, "batch dim"]:
        """Hear exactly one block, decide, and learn where :attr:`teaching` says so."""
        feeds = {**self.feeds(block), **self.bank, ENROL: np.full(self.batch, self.teaching, np.int64)}
        classes, confidence, *rest = self.session.run(
            [CLASS, CONFIDENCE, *self._bank_outputs, *self.outputs], feeds
        )
        learnt, (embedding, *state) = rest[: len(self._bank_outputs)], rest[len(self._bank_outputs) :]
        if self.teaching != UNKNOWN:
            names = [name.removesuffix(NEXT) for name in self._bank_outputs]
            self.bank = dict(zip(names, learnt, strict=True))
        self._state = dict(zip(self._state, state, strict=True))
        self._last = np.asarray(embedding)
        self.decisions.append(Decision(np.asarray(classes), np.asarray(confidence)))
        return self._last

"""A causal student on a stream: blocks of frames in, an embedding after each, what the layers need carried over.

After every block the embedding equals that of the whole signal so far, and costs one block's work.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.students.base import Student
from pipeline.students.causal import CausalForm
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.running import Carrying


def causal_form_of(student: Student | NormalisedStudent) -> CausalForm:
    """Return how a student listens to a stream.

    Raises:
        ConfigError: it is not causal.
    """
    backbone = student.backbone if isinstance(student, NormalisedStudent) else student
    if backbone.causal is None:
        raise ConfigError(
            f"this {type(backbone).__name__} hears whole clips, so it cannot listen to a stream",
            expected="a causal student",
            got=f"a family without one: {backbone.not_causal}" if backbone.not_causal else "causal = false",
            run="train it with --set student.causal=true",
        )
    return backbone.causal


class StreamingStep(nn.Module):
    """One step as a function: ``(block, *carried) -> (embedding, *carried)``; also what is exported.

    Args:
        student: causal; put in evaluation mode, for a stream has no batch statistics.
        mels: mel bands that it hears.

    Attributes:
        step_frames: frames of a block; a block may be any whole number of those.
        names: of the carried tensors: the layer's name and what it is (``in_c.0.0.past``).

    A student streams in one thread: while a step runs, its layers hold the carried tensors.

    Raises:
        ConfigError: ``student`` is not causal.
    """

    def __init__(self, student: Student | NormalisedStudent, mels: int) -> None:
        super().__init__()
        self.step_frames = causal_form_of(student).step_frames
        self.student, self.mels = student.eval(), mels
        self._first = self._initial()
        self.names = [name for name, _ in self._first]

    def initial(self, batch: int = 1) -> list[Tensor]:
        """Return what is carried before the first block, for ``batch`` streams side by side."""
        return [value.clone() if value.ndim == 1 else value.expand(batch, *value.shape[1:]).clone()
                for _, value in self._first]  # fmt: skip

    def forward(self, block: Float[Tensor, "batch 1 mels frames"], *carried: Tensor) -> tuple[Tensor, ...]:
        """Return the embedding ``(batch, dim)`` after the block and what the next step carries."""
        given = iter(carried)
        layers = [layer for _, layer in self._layers()]
        for layer in layers:
            layer.carried = tuple(next(given) for _ in layer.carries)
        try:
            embedding = self.student(block)
            left = [tensor for layer in layers for tensor in layer.carried or ()]
        finally:
            for layer in layers:
                layer.carried = None
        return embedding, *left

    def _layers(self) -> list[tuple[str, Carrying]]:
        return [
            (name, layer)
            for name, layer in self.student.named_modules()
            if isinstance(layer, Carrying) and layer.carries
        ]

    def _initial(self) -> list[tuple[str, Tensor]]:
        found: dict[str, tuple[Tensor, ...]] = {}
        handles = []
        for name, layer in self._layers():

            def note(module: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                assert isinstance(module, Carrying)
                found[name] = module.initial(inputs[0])

            handles.append(layer.register_forward_pre_hook(note))
        device = next(self.student.parameters()).device
        with torch.no_grad():
            self.student(torch.zeros(1, 1, self.mels, self.step_frames, device=device))
        for handle in handles:
            handle.remove()
        return [
            (f"{name.removeprefix('backbone.')}.{part}", value)
            for name, layer in self._layers()
            for part, value in zip(layer.carries, found[name], strict=True)
        ]


class Stream:
    """Frames in, in any portions, an embedding out after every ``step_frames`` of them.

    Args:
        student: causal.
        mels: mel bands that it hears.
        batch: streams side by side (two ears).

    Example:
        >>> stream = Stream(student, mels=64)
        >>> for log_mel in frontend_blocks:          # (1, 64, any number of frames)
        ...     for embedding in stream.push(log_mel).unbind(1):
        ...         act_on(embedding)                # (1, dim)

    Raises:
        ConfigError: ``student`` is not causal.
    """

    def __init__(self, student: Student | NormalisedStudent, mels: int, batch: int = 1) -> None:
        self.step = StreamingStep(student, mels)
        self.batch = batch
        self.embedding_dim = student.embedding_dim
        self.reset()

    def reset(self) -> None:
        """Start anew, as if nothing had been heard."""
        self._carried = self.step.initial(self.batch)
        self._waiting = torch.zeros(self.batch, self.step.mels, 0, device=self._carried[0].device)
        self._last: Tensor | None = None

    @torch.no_grad()
    def push(self, log_mel: Float[Tensor, "batch mels frames"]) -> Float[Tensor, "batch steps dim"]:
        """Hear the next frames and return the embeddings after each block that they complete, perhaps none.

        Raises:
            ConfigError: another number of streams or mels.
        """
        if log_mel.ndim != 3 or tuple(log_mel.shape[:2]) != (self.batch, self.step.mels):
            raise ConfigError(
                "these frames are of another stream",
                expected=f"(batch {self.batch}, mels {self.step.mels}, frames)",
                got=tuple(log_mel.shape),
            )
        heard = torch.cat([self._waiting, log_mel], dim=2)
        embeddings = []
        while heard.shape[2] >= self.step.step_frames:
            block, heard = heard.tensor_split([self.step.step_frames], dim=2)
            embeddings.append(self._hear(block))
        self._waiting = heard
        if not embeddings:
            return torch.zeros(self.batch, 0, self.embedding_dim, device=log_mel.device)
        return torch.stack(embeddings, dim=1)

    @torch.no_grad()
    def finish(self) -> Float[Tensor, "batch dim"]:
        """End the stream: return the whole signal's embedding, a last incomplete block followed by zeros.

        Raises:
            ConfigError: no frame was heard.
        """
        if self._waiting.shape[2]:
            self._hear(self._waiting)
        if self._last is None:
            raise ConfigError("the stream ended before its first frame", expected="at least one frame", got=0)
        last = self._last
        self.reset()
        return last

    def _hear(self, block: Tensor) -> Tensor:
        self._last, *self._carried = self.step(block[:, None], *self._carried)
        return self._last

"""What is fine-tuned: a student from scratch, a whole teacher, or nothing but a classifier on a frozen teacher."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.frontends.log_mel import LogMel
from pipeline.frontends.preemphasis_mel import PreemphasisMel
from pipeline.teachers.base import Teacher
from pipeline.teachers.finetuned import modules_of
from pipeline.teachers.network import NetworkTeacher

FORWARD_OUTPUTS = frozenset({"embedding"})


class LogMelChange(Protocol):
    """A change of normalised log-mel, (batch, mels, frames) to the same shape."""

    def __call__(self, log_mel: Tensor) -> Tensor: ...


class WholeTeacher(nn.Module):
    """A teacher whose networks are trained, as they run in stage 1: batch norms folded or frozen, no dropout.

    Input ``(batch, 1, samples)`` at the teacher's sample rate; output ``(batch, dim)`` float32.

    Args:
        teacher: built in float32; only a ``NetworkTeacher`` lets gradients through.

    Raises:
        ConfigError: another kind of teacher (ONNX, TFLite, synthetic), or one without trainable weights.
    """

    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        modules = modules_of(teacher)
        if not isinstance(teacher, NetworkTeacher) or not any(
            True for m in modules.values() for _ in m.parameters()
        ):
            raise ConfigError(
                f"teacher {teacher.name!r} cannot be trained whole",
                expected="a torch network",
                got=type(teacher).__name__,
                run="--set finetune.trained=head",
            )
        self.teacher = teacher
        self.parts = nn.ModuleDict(modules)
        self.embedding_dim = teacher.embedding_dim
        for parameter in self.parts.parameters():
            parameter.requires_grad_(True)
        self.log_mel_change: LogMelChange | None = None

    def train(self, mode: bool = True) -> WholeTeacher:
        """Keep evaluation mode: the statistics of pre-training stand, and the graph is the one that embeds."""
        return super().train(False)

    def change_log_mel(self, change: LogMelChange) -> None:
        """Let ``change`` act on the frontend's output while gradients are taken.

        Raises:
            ConfigError: the teacher hears waveforms, or a log-mel of another layout.
        """
        frontends = [m for m in self.parts.modules() if isinstance(m, PreemphasisMel | LogMel)]
        if not frontends:
            raise ConfigError(
                f"teacher {self.teacher.name!r} has no log-mel that Freq-MixStyle could change",
                run="--set finetune.freq_mixstyle_probability=0",
            )

        def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
            return change(output) if torch.is_grad_enabled() else output

        for frontend in frontends:
            frontend.register_forward_hook(hook)

    def forward(self, waveforms: Float[Tensor, "batch 1 samples"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding of every clip."""
        return self.teacher.compute(waveforms[:, 0], FORWARD_OUTPUTS)["embedding"].float()


class FrozenTeacher(nn.Module):
    """A teacher that is asked for embeddings and never changes; its weights are no part of checkpoints.

    Input ``(batch, 1, samples)``, or ``(batch, 1, dim)`` where embeddings were made before; output
    ``(batch, dim)``.
    """

    def __init__(self, teacher: Teacher | None, embedding_dim: int) -> None:
        super().__init__()
        # In a list, for a module among the attributes would enter the state dict.
        self._teacher = [teacher]
        self.embedding_dim = embedding_dim

    def forward(self, given: Float[Tensor, "batch 1 width"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding of every clip."""
        (teacher,) = self._teacher
        if teacher is None:
            return given[:, 0]
        # Out of inference mode, whose tensors no later layer may save for its gradient.
        return teacher.embed(given[:, 0].cpu())["embedding"].to(given.device).clone()


class StandardisedClassifier(nn.Module):
    """Batch norm without gain, then a linear layer: the published heads' norm, on the embedding.

    Args:
        embedding_dim: width of the embedding.
        classes: outputs.
    """

    def __init__(self, embedding_dim: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(embedding_dim, affine=False)
        self.linear = nn.Linear(embedding_dim, classes)

    def forward(self, embedding: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        return self.linear(self.norm(embedding))  # type: ignore[no-any-return]

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """Return one linear layer that gives the same logits in evaluation mode."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert variance is not None
        scale = torch.rsqrt(variance.double() + self.norm.eps)
        made = nn.Linear(self.linear.in_features, self.linear.out_features)
        weight = self.linear.weight.double() * scale
        made.weight.copy_(weight)
        made.bias.copy_(self.linear.bias.double() - weight @ mean.double())
        return made

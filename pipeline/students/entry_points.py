"""Students of other distributions: Python entry points of the group ``ossicle.students``.

An entry point names either a builder, called as ours are: ``build(config, mels)`` and giving a Student or a torch
module; or a ``torch.nn.Module`` class, called with the recipe's ``student.options`` and with those of ``mels``,
``width`` and ``embedding_dim`` that its constructor names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any

import torch
from jaxtyping import Float
from pydantic import ConfigDict
from torch import Tensor, nn

from pipeline.config import Section, StudentConfig
from pipeline.errors import ConfigError
from pipeline.registry import loaded
from pipeline.students.base import Student
from pipeline.students.options import NoOptions

TRIED_FRAMES = 100


class ModuleOptions(Section):
    """The keyword arguments of somebody's module class: it alone knows which there are."""

    model_config = ConfigDict(extra="allow")


class ModuleStudent(Student):
    """Somebody's torch module: log-mel ``(batch, 1, mels, frames)`` in, ``(batch, dim)`` back.

    Args:
        module: gives the pooled features.
        pooled_dim: their width.
        embedding_dim: width wanted; a linear layer follows where it is another.
    """

    def __init__(self, module: nn.Module, pooled_dim: int, embedding_dim: int | None) -> None:
        super().__init__(pooled_dim, embedding_dim)
        self.module = module

    def forward(self, log_mel: Float[Tensor, "batch 1 mels frames"]) -> Float[Tensor, "batch dim"]:
        """Return the embedding."""
        embedding: Tensor = self.embedding(self.module(log_mel))
        return embedding.float()


def builder(entry: EntryPoint) -> Callable[..., Student]:
    """Return the builder of an entry point; what it names is imported here.

    Raises:
        ConfigError: it cannot be imported, or is no builder and no module class.
    """
    target, source = loaded(entry, "student", "build(config, mels), or a torch.nn.Module class")
    is_class = isinstance(target, type) and issubclass(target, nn.Module)

    def build(config: StudentConfig, mels: int) -> Student:
        made = _of_class(target, source, config, mels) if is_class else target(config, mels)
        if isinstance(made, Student):
            return made
        if isinstance(made, nn.Module):
            return ModuleStudent(made, _width_of(made, entry.name, mels), config.embedding_dim)
        raise ConfigError(
            f"student {entry.name!r} is no network", expected="pipeline.students.base.Student, or a torch module",
            got=type(made).__name__,
        )  # fmt: skip

    build.options = ModuleOptions if is_class else getattr(target, "options", NoOptions)  # type: ignore[attr-defined]
    return build


def _of_class(target: Any, source: str, config: StudentConfig, mels: int) -> nn.Module:
    given = {"mels": mels, "width": config.width, "embedding_dim": config.embedding_dim}
    named = inspect.signature(target).parameters
    keys = {key: value for key, value in given.items() if key in named and value is not None}
    try:
        made: nn.Module = target(**{**keys, **config.options})
    except TypeError as error:
        raise ConfigError(f"the options do not fit {source}", got=str(error)) from error
    return made


@torch.no_grad()
def _width_of(module: nn.Module, name: str, mels: int) -> int:
    """Return how many features ``module`` gives a clip."""
    was_training = module.training
    module.eval()
    example = torch.zeros(2, 1, mels, TRIED_FRAMES, device=next(module.parameters(), torch.zeros(0)).device)
    made = module(example)
    module.train(was_training)
    if not isinstance(made, Tensor) or made.ndim != 2 or len(made) != 2:
        got = f"shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise ConfigError(
            f"the module of student {name!r} gives no embedding",
            expected=f"(batch, dim) for log-mel (batch, 1, {mels}, frames)",
            got=got,
        )
    return made.shape[1]

"""Teachers of other distributions: Python entry points of the group ``ossicle.teachers``.

An entry point names either a builder, called as ours are: ``build(config, *, weights=None, cache=None)`` and
giving a Teacher or a torch module; or a ``torch.nn.Module`` class, called with the recipe's options.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.artifact import file_digest
from pipeline.checkpoints.safe_load import load_payload
from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError, WeightsError
from pipeline.registry import loaded
from pipeline.teachers.base import Teacher
from pipeline.teachers.network import NetworkTeacher
from pipeline.teachers.weights import plain

_FACTS = {"sample_rate_hz": int, "window_samples": int, "licence": str, "citation": str}


class ModuleTeacher(NetworkTeacher):
    """Somebody's torch module: waveforms (batch, samples) in; (batch, dim), or a dict of outputs, back.

    The module has the attributes ``sample_rate_hz``, ``window_samples``, ``licence`` and ``citation``. It hears
    windows of any length as they come; cutting and padding are its own.
    """

    code_version = "module/1"

    def __init__(self, name: str, source: str, module: nn.Module, config: TeacherConfig) -> None:
        for fact, kind in _FACTS.items():
            if not isinstance(getattr(module, fact, None), kind):
                raise ConfigError(
                    f"the module of teacher {name!r} ({source}) lacks {fact}",
                    expected=f"an attribute {fact}: {kind.__name__}",
                    got=repr(getattr(module, fact, None)),
                )
        digest = _load_weights(module, config) if config.weights is not None else _state_digest(module)
        super().__init__(config, digest, {"source": source, "options": config.options})
        self.name, self.licence, self.citation = name, str(module.licence), str(module.citation)
        self.sample_rate_hz = int(module.sample_rate_hz)  # type: ignore[arg-type]
        self.window_samples = int(module.window_samples)  # type: ignore[arg-type]
        self.module = module.eval().to(self.device)
        self.outputs = ()
        heard = self.compute(torch.zeros(1, self.window_samples, device=self.device), frozenset())
        if "embedding" not in heard or heard["embedding"].ndim != 2:
            got = ", ".join(f"{key} {tuple(value.shape)}" for key, value in heard.items())
            raise ConfigError(
                f"the module of teacher {name!r} gives no embedding", expected="(batch, dim)", got=got
            )
        self.outputs, self.embedding_dim = tuple(heard), heard["embedding"].shape[1]

    @torch.inference_mode()
    def compute(
        self, waveforms: Float[Tensor, "batch samples"], outputs: frozenset[str]
    ) -> dict[str, Tensor]:
        """Return what the module gives, a lone tensor as ``embedding``."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            made = self.module(waveforms)
        if isinstance(made, dict) and all(isinstance(value, Tensor) for value in made.values()):
            return made
        if isinstance(made, Tensor):
            return {"embedding": made}
        raise ConfigError(
            f"the module of teacher {self.name!r} gives a {type(made).__name__}",
            expected="a tensor (batch, dim), or a dict of tensors",
        )


def _load_weights(module: nn.Module, config: TeacherConfig) -> str:
    assert config.weights is not None
    path = config.weights
    if not path.is_file():
        raise WeightsError("the weights are not there", expected=path, got="no such file")
    digest = file_digest(path)
    if config.trust_sha256 != digest:
        raise WeightsError(
            f"{path.name} is not trusted by itself", expected=f"SHA-256 {config.trust_sha256}",
            got=f"SHA-256 {digest}",
            run=f"if you trust its source: --set embed.teacher.trust_sha256={digest}",
        )  # fmt: skip
    state, _ = plain(load_payload(path))
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path.name} does not fit the module", got=str(error)[:400]) from error
    return digest


def _state_digest(module: nn.Module) -> str:
    """Return the SHA-256 of the module's own state, for a module that brings its weights along."""
    state = {name: value.detach().cpu().contiguous().clone() for name, value in module.state_dict().items()}
    return hashlib.sha256(save(state)).hexdigest()


def builder(entry: EntryPoint) -> Callable[..., Teacher]:
    """Return the builder of an entry point; what it names is imported here.

    Raises:
        ConfigError: it cannot be imported, or is no builder and no module class.
    """
    target, source = loaded(
        entry, "teacher", "build(config, *, weights=None, cache=None), or a torch.nn.Module class"
    )
    is_module = isinstance(target, type) and issubclass(target, nn.Module)

    def build(config: TeacherConfig, *, weights: Path | None = None, cache: Path | None = None) -> Teacher:
        if weights is not None:
            config = config.model_copy(update={"weights": weights})
        if is_module:
            try:
                made = target(**config.options)
            except TypeError as error:
                raise ConfigError(f"the options do not fit {source}", got=str(error)) from error
        else:
            made = target(config, weights=weights, cache=cache)
        if isinstance(made, nn.Module) and not isinstance(made, Teacher):
            return ModuleTeacher(entry.name, source, made, config)
        if not isinstance(made, Teacher):
            raise ConfigError(
                f"teacher {entry.name!r} lacks part of the contract", expected="pipeline.teachers.base.Teacher",
                got=type(made).__name__, run=f"ossicle teachers check {entry.name}",
            )  # fmt: skip
        return made

    return build

"""Does a student keep the contract? Dummy log-mels go in; each part that it breaks is said in words.

As the teachers' checker (after X-ARES, Zhang et al., Interspeech 2025), for what training and export ask of a
student. What needs the exporter is in :mod:`pipeline.deploy.student_contract`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.config import LogMelConfig, StudentConfig
from pipeline.contract import Finding, tried
from pipeline.errors import ConfigError
from pipeline.students.base import Student
from pipeline.students.options import check_frontend
from pipeline.students.registry import build_student, students

FRAMES = 250
LENGTHS = (1, 2, 3, 7, 61, 100, 251, 1_000)
OTHER_WIDTH = 37
# Two orders of summation differ in the last bits; two different clips by far more.
RTOL, ATOL_OF_LARGEST = 1e-3, 1e-4


class Clips:
    """Noise, harmonics and onsets as standardised log-mels, each clip another: the same for every student."""

    def __init__(self, mels: int, seed: int = 0) -> None:
        self.mels, self.seed = mels, seed

    def __call__(self, batch: int = 3, frames: int = FRAMES) -> Float[Tensor, "batch 1 mels frames"]:
        """Return the first ``batch`` clips at ``frames`` frames, mean about 0, deviation about 1."""
        band, time = np.arange(self.mels)[:, None], np.arange(frames)[None]
        clips = []
        for number in range(batch):
            generator = np.random.default_rng([self.seed, number, frames])
            noise = generator.standard_normal((self.mels, frames))
            place = 3 + number % 7
            harmonics = 2.0 * (((band + 0.1 * time) % place) < 1.0) - 2.0 * band / self.mels
            onsets = 2.5 * np.exp(-((time + 5 * number) % (11 + 2 * place)) / 4.0) - 1.0
            parts = (noise - 0.5, 0.4 * noise + harmonics, 0.4 * noise + onsets)
            clips.append(parts[number % len(parts)])
        return torch.from_numpy(np.stack(clips)[:, None].astype(np.float32))


def frontend_of(config: StudentConfig) -> LogMelConfig:
    """Return the recipes' default log-mel, or the linear bands that the student asks for in its place.

    Raises:
        ConfigError: it hears neither.
    """
    offered = (LogMelConfig(), LogMelConfig(bands="linear", log="db", log_offset=0.0, log_floor=1e-10))
    refusals = []
    for frontend in offered:
        try:
            check_frontend(students.get(config.name), config, frontend)
        except ConfigError as error:
            refusals.append(error)
        else:
            return frontend
    raise refusals[0]


def check(config: StudentConfig, frontend: LogMelConfig, seed: int = 0) -> list[Finding]:
    """Feed dummy log-mels to the student that ``config`` names and return what was looked at, in order.

    Args:
        config: name, width, options.
        frontend: the log-mel it would hear; see :func:`frontend_of`.
        seed: of weights and clips.

    Raises:
        ConfigError: it cannot be built.

    Where the attributes are wrong or a plain batch cannot be embedded, the rest is not tried.
    """
    torch.manual_seed(seed)
    student = build_student(config, frontend.mels)
    clips = Clips(frontend.mels, seed)
    findings = [Finding("attributes", "; ".join(_attributes(student)))]
    if findings[0].kept:
        findings.append(tried("a batch, in training and in evaluation", lambda: _plain(student, clips)))
    if not findings[-1].kept:
        return findings
    measure_statistics(student, clips)
    parts: dict[str, Callable[[], Iterator[str]]] = {
        "any length": lambda: _lengths(student, clips),
        "silence, extremes": lambda: _levels(student, clips),
        "different sounds": lambda: _different(student, clips),
        "the same twice": lambda: _twice(student, clips),
        "clips apart from their batch": lambda: _batch(student, clips),
        "its input and torch's settings left alone": lambda: _side_effects(student, clips),
        "gradients everywhere": lambda: _gradients(student, clips, torch.float32),
        "gradients in bfloat16": lambda: _gradients(student, clips, torch.bfloat16),
        "the same weights from the same seed": lambda: _seeded(config, frontend.mels),
        "an embedding of another width": lambda: _width(config, student, clips),
        "saving and loading": lambda: _saved(config, student, clips),
    }
    return findings + [tried(part, look) for part, look in parts.items()]


@torch.no_grad()
def measure_statistics(student: nn.Module, clips: Clips) -> None:
    """Set the running statistics of every batch norm to those of one batch; leave the student in evaluation mode.

    At 0 and 1, where they start, a deep network gives the same embedding to all clips.
    """
    norms = [m for m in student.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    student.train()(clips(8))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    student.eval()


def _attributes(student: Student) -> Iterator[str]:
    width = getattr(student, "embedding_dim", None)
    if not isinstance(width, int) or isinstance(width, bool) or width <= 0:
        yield f"embedding_dim is {width!r}, not a whole number above 0"
    if not any(parameter.requires_grad for parameter in student.parameters()):
        yield "it has no parameters to train"
    other = {str(p.dtype).removeprefix("torch.") for p in student.parameters()} - {"float32"}
    if other:
        yield f"parameters are {', '.join(sorted(other))}, not float32"


def _form(student: Student, value: object, rows: int) -> Iterator[str]:
    """Yield what is wrong with an output's type, shape or values."""
    if not isinstance(value, Tensor):
        yield f"it gives a {type(value).__name__}, not a tensor"
    elif value.ndim != 2 or len(value) != rows:
        yield f"it gives shape {tuple(value.shape)} for {rows} clips, not (batch, dim)"
    elif value.shape[1] != student.embedding_dim:
        yield f"the embedding is {value.shape[1]} wide, embedding_dim says {student.embedding_dim}"
    elif value.dtype != torch.float32:
        yield f"the embedding is {value.dtype}, not float32"
    elif not torch.isfinite(value).all():
        yield "the embedding holds values that are not finite"


def _plain(student: Student, clips: Clips) -> Iterator[str]:
    for training in (True, False):
        with torch.no_grad():
            made = student.train(training)(clips(8))
        for problem in _form(student, made, 8):
            yield f"in {'training' if training else 'evaluation'}: {problem}"


def _lengths(student: Student, clips: Clips) -> Iterator[str]:
    for frames in LENGTHS:
        for problem in _one(student, clips(2, frames)):
            yield f"{frames} frames: {problem}"


def _levels(student: Student, clips: Clips) -> Iterator[str]:
    chirp = clips(2)
    for what, log_mel in {
        "silence": torch.full_like(chirp, -3.0),
        "zeros": torch.zeros_like(chirp),
        "very loud": chirp * 4.0 + 8.0,
        "far below silence": torch.full_like(chirp, -20.0),
    }.items():
        for problem in _one(student, log_mel):
            yield f"{what}: {problem}"


def _one(student: Student, log_mel: Tensor) -> list[str]:
    """Return what is wrong with one batch, whatever it raises included."""
    found = tried("", lambda: _form(student, _embed(student, log_mel), len(log_mel)))
    return [] if found.kept else [found.problem]


def _embed(student: Student, log_mel: Tensor) -> Tensor:
    with torch.no_grad():
        made: Tensor = student(log_mel)
    return made


def _different(student: Student, clips: Clips) -> Iterator[str]:
    made = _embed(student, clips())
    for one, other in ((0, 1), (0, 2), (1, 2)):
        if torch.allclose(made[one], made[other], rtol=1e-5, atol=1e-7):
            yield "noise, harmonics and onsets give the same embedding: it does not hear its input"


def _twice(student: Student, clips: Clips) -> Iterator[str]:
    first, second = (_embed(student, clips()) for _ in range(2))
    if not torch.equal(first, second):
        yield f"the same clips give other embeddings, up to {float((first - second).abs().max()):.2g} apart"


def _batch(student: Student, clips: Clips) -> Iterator[str]:
    together = _embed(student, clips(6))
    alone = torch.cat([_embed(student, clip[None]) for clip in clips(6)])
    if not _same(alone, together):
        yield f"a clip alone differs from the same clip in a batch by {_apart(alone, together):.2g} of the largest"
    turned = _embed(student, clips(6).flip(0)).flip(0)
    if not _same(turned, together):
        yield f"the order of the batch matters, by {_apart(turned, together):.2g} of the largest"


def _side_effects(student: Student, clips: Clips) -> Iterator[str]:
    given, state = clips(), torch.get_rng_state()
    weights = {name: value.clone() for name, value in student.state_dict().items()}
    before = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    student(given)
    if not torch.equal(given, clips()):
        yield "it writes into the log-mels that it is given"
    if not torch.equal(state, torch.get_rng_state()):
        yield "it draws from torch's global generator in evaluation"
    if before != (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()):
        yield "it changes torch's settings (gradients, default dtype, threads)"
    changed = [name for name, value in student.state_dict().items() if not torch.equal(value, weights[name])]
    if changed:
        yield f"evaluation changes its state: {', '.join(changed[:3])}"
    torch.set_rng_state(state)


def _gradients(student: Student, clips: Clips, dtype: torch.dtype) -> Iterator[str]:
    trained = copy.deepcopy(student).train()
    target = torch.randn(8, student.embedding_dim, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        made = trained(clips(8))
    yield from _form(student, made, 8)
    (made.float() - target).square().mean().backward()
    named = [(name, p.grad) for name, p in trained.named_parameters() if p.requires_grad]
    without = [name for name, gradient in named if gradient is None]
    spoilt = [name for name, gradient in named if gradient is not None and not gradient.isfinite().all()]
    zero = [name for name, gradient in named if gradient is not None and not gradient.any()]
    for names, what in (
        (without, "get no gradient: nothing in the output depends on them"),
        (spoilt, "get gradients that are not finite"),
        (zero if dtype == torch.float32 else [], "get a gradient of zeros alone"),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield f"{', '.join(names[:3])}{more} {what}"


def _seeded(config: StudentConfig, mels: int) -> Iterator[str]:
    states = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        states.append(build_student(config, mels).state_dict())
    if any(not torch.equal(value, states[1][name]) for name, value in states[0].items()):
        yield "two networks from one seed of torch's generator differ"
    if all(torch.equal(value, states[2][name]) for name, value in states[0].items()):
        yield "two seeds give the same weights: its initialisation is not drawn from torch's generator"


def _width(config: StudentConfig, student: Student, clips: Clips) -> Iterator[str]:
    wanted = OTHER_WIDTH if student.embedding_dim != OTHER_WIDTH else OTHER_WIDTH + 1
    other = build_student(config.model_copy(update={"embedding_dim": wanted}), clips.mels).eval()
    if other.embedding_dim != wanted:
        yield f"student.embedding_dim = {wanted} gives a network that says {other.embedding_dim}"
    yield from _form(other, _embed(other, clips()), 3)


def _saved(config: StudentConfig, student: Student, clips: Clips) -> Iterator[str]:
    state = {name: value.contiguous() for name, value in student.state_dict().items()}
    torch.manual_seed(1)
    again = build_student(config, clips.mels)
    again.load_state_dict(load(save(state)))
    if not torch.equal(_embed(again.eval(), clips()), _embed(student, clips())):
        yield "the network that its state dict is loaded into gives other embeddings: part of it is not saved"


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not torch.isfinite(one).all():
        return False
    return torch.allclose(one, other, rtol=RTOL, atol=ATOL_OF_LARGEST * float(other.abs().max()))


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())

"""Does a teacher keep the contract? Dummy clips go in; each part that it breaks is said in words.

After X-ARES's encoder check (Zhang et al., Interspeech 2025), for our contract: named outputs, any length, no
row that depends on its neighbours, no state.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from pipeline.contract import Finding, tried
from pipeline.errors import OssicleError
from pipeline.teachers.base import Teacher

# bfloat16 rows may differ in the last bits between batch sizes; this is far below two different clips.
SAME_COSINE = 0.9999
RANKS = {"embedding": 2, "logits": 2, "frames": 3, "layer": 2}


def check(teacher: Teacher, seed: int = 0) -> list[Finding]:
    """Feed dummy clips to ``teacher`` and return what was looked at, in order.

    Args:
        teacher: built, its weights loaded.
        seed: of the clips.

    About twenty forward passes of one to three windows. Where the attributes are wrong or a plain window
    cannot be embedded, the rest is not tried.
    """
    findings = [Finding("attributes", "; ".join(_attributes(teacher)))]
    if not findings[0].kept:
        return findings
    clips = _Clips(teacher, seed)
    plain = tried("a window", lambda: _plain(teacher, clips))
    findings.append(plain)
    if not plain.kept:
        return findings
    parts: dict[str, Callable[[], Iterator[str]]] = {
        "every output, alone and together": lambda: _outputs(teacher, clips),
        "an output it does not have": lambda: _unknown_output(teacher, clips),
        "an empty batch": lambda: _empty(teacher, clips),
        "the same twice": lambda: _twice(teacher, clips),
        "rows apart from their batch": lambda: _batch(teacher, clips),
        "its input and torch's settings left alone": lambda: _side_effects(teacher, clips),
        "shorter than a window": lambda: _lengths(teacher, clips, (1, 2, teacher.sample_rate_hz // 50)),
        "about a window": lambda: _lengths(teacher, clips, _about(teacher.window_samples)),
        "longer than a window": lambda: _lengths(teacher, clips, (int(2.5 * teacher.window_samples) + 1,)),
        "silence, full scale and gain": lambda: _levels(teacher, clips),
        "different sounds": lambda: _different(teacher, clips),
        "a row of NaN": lambda: _not_a_number(teacher, clips),
        "the digest": lambda: _digest(teacher),
    }
    findings += [tried(part, look) for part, look in parts.items()]
    return findings


class _Clips:
    """Noise, a chirp and clicks: three clips of any length, the same for every teacher."""

    def __init__(self, teacher: Teacher, seed: int) -> None:
        self.teacher, self.seed = teacher, seed

    def __call__(self, samples: int | None = None, batch: int = 3) -> Tensor:
        count = self.teacher.window_samples if samples is None else samples
        generator = np.random.default_rng([self.seed, count])
        time = np.arange(count) / self.teacher.sample_rate_hz
        noise = 0.1 * generator.standard_normal(count)
        chirp = 0.5 * np.sin(2 * np.pi * (200.0 + 300.0 * time) * time)
        clicks = 0.3 * np.sin(2 * np.pi * 1_000.0 * time) * ((time * 4.0) % 1.0 < 0.05) + 0.1 * noise
        return torch.from_numpy(np.stack([noise, chirp, clicks])[:batch].astype(np.float32))


def _attributes(teacher: Teacher) -> Iterator[str]:
    for name in ("sample_rate_hz", "window_samples", "embedding_dim"):
        value = getattr(teacher, name, None)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            yield f"{name} is {value!r}, not a whole number above 0"
    for name in ("name", "licence", "citation"):
        value = getattr(teacher, name, None)
        if not isinstance(value, str) or not value:
            yield f"{name} is {value!r}, not a text"
    outputs = getattr(teacher, "outputs", None)
    if not isinstance(outputs, tuple) or "embedding" not in outputs:
        yield f"outputs is {outputs!r}, not a tuple with 'embedding' in it"
    else:
        wrong = [o for o in outputs if not re.fullmatch(r"embedding|logits|frames|layer\.\d+", str(o))]
        if wrong:
            yield f"outputs {wrong} are none of embedding, logits, frames, layer.N"
    for name in ("embed", "digest"):
        if not callable(getattr(teacher, name, None)):
            yield f"it has no method {name}"


def _form(teacher: Teacher, name: str, value: object, rows: int, finite: bool = True) -> Iterator[str]:
    """Yield what is wrong with one output's type, shape or values."""
    if not isinstance(value, Tensor):
        yield f"{name} is a {type(value).__name__}, not a tensor"
        return
    if value.dtype != torch.float32 or value.device.type != "cpu":
        yield f"{name} is {value.dtype} on {value.device}, not float32 on the CPU"
    if value.requires_grad:
        yield f"{name} carries gradients"
    rank = RANKS[name.partition(".")[0]]
    if value.ndim != rank or value.shape[0] != rows:
        yield f"{name} has shape {tuple(value.shape)} for {rows} clips, not {rows} rows of {rank - 1} axes"
    elif name == "embedding" and value.shape[1] != teacher.embedding_dim:
        yield f"embedding is {value.shape[1]} wide, embedding_dim says {teacher.embedding_dim}"
    elif finite and not torch.isfinite(value).all():
        yield f"{name} holds values that are not finite"


def _plain(teacher: Teacher, clips: _Clips) -> Iterator[str]:
    made = teacher.embed(clips())
    if not isinstance(made, dict) or set(made) != {"embedding"}:
        yield f"embed gives {sorted(made) if isinstance(made, dict) else type(made).__name__}, not the embedding alone"
        return
    yield from _form(teacher, "embedding", made["embedding"], 3)


def _outputs(teacher: Teacher, clips: _Clips) -> Iterator[str]:
    together = teacher.embed(clips(batch=2), teacher.outputs)
    if set(together) != set(teacher.outputs):
        yield f"asked for {list(teacher.outputs)}, it gives {sorted(together)}"
        return
    for name in teacher.outputs:
        yield from _form(teacher, name, together[name], 2)
    shown = [name for name in teacher.outputs if not name.startswith("layer.")]
    layers = [name for name in teacher.outputs if name.startswith("layer.")]
    for name in [*shown, *layers[:1], *layers[-1:]]:
        alone = teacher.embed(clips(batch=2), [name])[name]
        if alone.shape != together[name].shape or not _same(alone, together[name]):
            yield f"{name} asked for alone differs from {name} asked for with the others"


def _unknown_output(teacher: Teacher, clips: _Clips) -> Iterator[str]:
    try:
        teacher.embed(clips(batch=1), ["no_such_output"])
    except OssicleError:
        return
    yield "it is given, or refused by something else than a ConfigError that lists the outputs"


def _empty(teacher: Teacher, clips: _Clips) -> Iterator[str]:
    made = teacher.embed(clips()[:0], teacher.outputs)
    for name in teacher.outputs:
        yield from _form(teacher, name, made.get(name), 0)


def _twice(teacher: Teacher, clips: _Clips) -> Iterator[str]:
    first, second = (teacher.embed(clips())["embedding"] for _ in range(2))
    if not torch.equal(first, second):
        yield f"the same clips give other embeddings, up to {float((first - second).abs().max()):.2g} apart"


def _batch(teacher: Teacher, clips: _Clips) -> Iterator[str]:
    together = teacher.embed(clips())["embedding"]
    alone = torch.cat([teacher.embed(row[None])["embedding"] for row in clips()])
    if not _same(alone, together):
        yield f"a clip alone differs from the same clip in a batch: cosine {_cosine(alone, together):.5f}"
    turned = teacher.embed(clips().flip(0))["embedding"].flip(0)
    if not _same(turned, together):
        yield f"the order of the batch matters: cosine {_cosine(turned, together):.5f}"


def _side_effects(teacher: Teacher, clips: _Clips) -> Iterator[str]:
    given, state = clips(), torch.get_rng_state()
    before = (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads())
    teacher.embed(given, teacher.outputs)
    if not torch.equal(given, clips()):
        yield "it writes into the waveforms that it is given"
    if not torch.equal(state, torch.get_rng_state()):
        yield "it draws from torch's global generator"
    if before != (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()):
        yield "it changes torch's settings (gradients, default dtype, threads)"
    torch.set_rng_state(state)


def _about(window: int) -> tuple[int, ...]:
    return (max(1, window // 2 + 1), max(1, window - 1), window + 1)


def _lengths(teacher: Teacher, clips: _Clips, lengths: tuple[int, ...]) -> Iterator[str]:
    for samples in lengths:
        seconds = samples / teacher.sample_rate_hz
        made = tried("", lambda n=samples: _of_length(teacher, clips, n))  # type: ignore[misc]
        if not made.kept:
            yield f"{samples} samples ({seconds:.4g} s): {made.problem}"


def _of_length(teacher: Teacher, clips: _Clips, samples: int) -> Iterator[str]:
    asked = [name for name in teacher.outputs if not name.startswith("layer.")]
    made = teacher.embed(clips(samples, batch=2), asked)
    for name in asked:
        yield from _form(teacher, name, made[name], 2)


def _levels(teacher: Teacher, clips: _Clips) -> Iterator[str]:
    chirp = clips()[1:2]
    for what, sound in {
        "silence": torch.zeros_like(chirp),
        "a full-scale square wave": torch.where(chirp < 0, -1.0, 1.0),
        "a constant": torch.full_like(chirp, 0.5),
        "sound at -80 dB": chirp * 1e-4,
        "sound past full scale": chirp * 8.0,
    }.items():
        made = teacher.embed(sound, ["embedding"])
        for problem in _form(teacher, "embedding", made["embedding"], 1):
            yield f"{what}: {problem}"


def _different(teacher: Teacher, clips: _Clips) -> Iterator[str]:
    made = teacher.embed(clips())["embedding"]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        if torch.allclose(made[one], made[other], rtol=1e-5, atol=1e-7):
            yield "noise, a chirp and clicks give the same embedding: it does not hear its input"


def _not_a_number(teacher: Teacher, clips: _Clips) -> Iterator[str]:
    clean, spoilt = clips(), clips()
    spoilt[1] = float("nan")
    try:
        made = teacher.embed(spoilt)["embedding"]
    except OssicleError:
        return  # to refuse the batch is as good
    if not _same(made[[0, 2]], teacher.embed(clean)["embedding"][[0, 2]]):
        yield "one clip of NaN spoils the other clips of its batch"


def _digest(teacher: Teacher) -> Iterator[str]:
    first, second = teacher.digest(), teacher.digest()
    if not isinstance(first, str) or not re.fullmatch(r"[0-9a-f]{64}", first):
        yield f"it is {first!r}, not 64 hex digits"
    elif first != second:
        yield "it differs from call to call"


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not torch.isfinite(one).all():
        return False
    return torch.allclose(one, other, rtol=1e-4, atol=1e-5) or _cosine(one, other) >= SAME_COSINE


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one.flatten(1), other.flatten(1)).min())

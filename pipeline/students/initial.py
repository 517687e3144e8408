"""The weights that a student starts from: ``student.weights``, a published checkpoint or a finished run."""

from __future__ import annotations

import functools
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from pipeline.artifact import file_digest
from pipeline.checkpoints.safe_load import load_payload
from pipeline.config import Section, StudentConfig
from pipeline.errors import OssicleError, WeightsError
from pipeline.students.base import Student
from pipeline.students.checkpoint_file import DESCRIPTION_FILE, checkpoint_file
from pipeline.students.options import kind_of, parse
from pipeline.students.published import StudentCheckpoint, identified
from pipeline.students.registry import build_student, students

log = logging.getLogger(__name__)

# What authors' training scripts call the part of a file that holds the network.
NESTING = 3
LISTED = 4
# Entries that no published file has: DyMN's softmax temperature.
UNPUBLISHED = ("temperature",)
# Widths that a refusal tries, to say which one a file fits.
WIDTHS = (0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75, 0.8, 1.0, 1.2, 1.4, 1.5, 2.0, 3.0, 4.0)


class StartedFrom(Section):
    """Which checkpoint a student started from, whom to credit, and what was not taken from it."""

    file: str
    sha256: str
    licence: str
    citation: str
    notes: tuple[str, ...] = Field(description="what was left out, changed or stays at random")


def load_initial(student: Student, config: StudentConfig, mels: int) -> StartedFrom | None:
    """Give ``student`` the weights that ``config.weights`` names and say what was taken; None where it names none.

    Entries are matched by their published names, under whatever prefix the file has. Classifiers and
    constants of other parts are left out; a first convolution of three channels is summed to one; an embedding
    layer that the file lacks, or has in another width, stays at random. Anything else that does not fit is
    refused. No code in the file is run.

    Raises:
        WeightsError: absent, of an unknown digest, unsafe, damaged, or of another network, width or mels.
    """
    if config.weights is None:
        return None
    path = checkpoint_file(config.weights)
    sha256 = file_digest(path)
    entry, known = identified(path.name, sha256)
    if not known and sha256 != config.trust_sha256 and sha256 != _own_digest(config.weights):
        raise WeightsError(
            f"no digest is known for {path.name}, so it is not trusted by itself",
            expected="a file whose SHA-256 is in data_manifests/checkpoints, a run's folder, or one that you trust",
            got=f"SHA-256 {sha256}",
            run=f"if you trust its source: --set student.trust_sha256={sha256}",
        )
    allow = {"numpy_scalars", "numpy_arrays", "namespace", *(entry.allow if entry else ())}
    payload = load_payload(path, allow=sorted(allow), stand_ins=None)
    notes = fit_state(student, payload, config, mels, path.name)
    if isinstance(entry, StudentCheckpoint):
        notes += _other_options(entry, config)
    for note in notes:
        log.info("%s: %s", path.name, note)
    return StartedFrom(
        file=path.name,
        sha256=sha256,
        licence=entry.licence if entry else "not known here",
        citation=entry.citation if entry else "",
        notes=tuple(notes),
    )


def _own_digest(weights: Path) -> str | None:
    """Return the digest that a run's folder states for its weights, None where it is no run's folder."""
    description = weights / DESCRIPTION_FILE
    if not description.is_file():
        return None
    try:
        return str(json.loads(description.read_text(encoding="utf-8"))["weights_sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{description} does not describe a student", expected="a finished run's folder", got=str(error)
        ) from error


def _other_options(entry: StudentCheckpoint, config: StudentConfig) -> list[str]:
    """Return a note for every option that its training had and this recipe has not."""
    kind = kind_of(students.get(config.name))
    own = parse(kind, config).model_dump()
    return [
        f"it was trained with student.options.{key} = {value}; this recipe has {own[key]}"
        for key, value in entry.options.items()
        if key in own and own[key] != value
    ]


def fit_state(student: Student, payload: Any, config: StudentConfig, mels: int, file: str) -> list[str]:
    """Load what ``payload`` holds of ``student`` into it, and return in words what was left out or changed.

    Raises:
        WeightsError: it holds another network, or numbers that are not finite.
    """
    fit = _fit(student, payload)
    if fit.problems:
        raise _misfit(config, mels, file, payload, fit.problems)
    bad = [name for name, value in fit.state.items() if not torch.isfinite(value).all()]
    if bad:
        raise WeightsError(
            f"{file} holds numbers that are not finite",
            expected="finite weights",
            got=", ".join(bad[:LISTED]),
        )
    student.load_state_dict(fit.state, strict=False)
    return fit.notes


@dataclass(frozen=True)
class _Fit:
    """What of a file fits a network's entries, what is worth saying about it, and why the rest does not."""

    state: dict[str, Tensor]
    notes: list[str]
    problems: list[str]


def _fit(student: Student, payload: Any) -> _Fit:
    own: Mapping[str, Tensor] = student.state_dict()
    found, prefix = _best(payload, own)
    if not found:
        return _Fit({}, [], ["none of its names is one of the network's"])
    inside = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}
    state, notes, problems = _matched(own, inside)
    roots = {name.partition(".")[0] for name in own}
    constants = [name for name in inside if name.startswith(student.published_constants)]
    notes += [f"{name} is the frontend's and was left out" for name in constants]
    left_out = [name for name in inside if name not in own and name not in constants]
    problems += [f"{name} is not in the network" for name in left_out if name.partition(".")[0] in roots]
    outside = [_beside(name, prefix) for name in found if not name.startswith(prefix)]
    return _Fit(state, notes + _dropped([*left_out, *outside]), problems)


def _beside(name: str, prefix: str) -> str:
    """Return ``name`` without the parents that it shares with ``prefix``."""
    parts = name.split(".")
    for shared in prefix.split("."):
        if len(parts) == 1 or parts[0] != shared:
            break
        parts = parts[1:]
    return ".".join(parts)


def _best(payload: Any, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Return the state dict inside ``payload`` and the prefix in it under which most of ``own``'s names are."""
    best: tuple[int, dict[str, Tensor], str] = (0, {}, "")
    for state in _state_dicts(payload, NESTING):
        counts: Counter[str] = Counter()
        for name in state:
            parts = name.split(".")
            for start in range(len(parts)):
                if ".".join(parts[start:]) in own:
                    counts["".join(part + "." for part in parts[:start])] += 1
        for prefix, count in counts.items():
            if count > best[0]:
                best = (count, state, prefix)
    return best[1], best[2]


def _state_dicts(payload: Any, depth: int) -> Iterator[dict[str, Tensor]]:
    if not isinstance(payload, dict):
        return
    tensors = {str(key): value for key, value in payload.items() if isinstance(value, Tensor)}
    if tensors:
        yield tensors
    if depth:
        for value in payload.values():
            yield from _state_dicts(value, depth - 1)


def _matched(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return what of ``given`` fits ``own``, notes on what was changed or stays, and problems."""
    state: dict[str, Tensor] = {}
    notes, problems = [], []
    for name, want in own.items():
        value = given.get(name)
        ours_alone = name.startswith("embedding.") or name in UNPUBLISHED
        if value is None:
            if name == "embedding.weight":
                notes.append("it has no embedding layer of this width: ours starts at random")
            elif not ours_alone and not name.endswith("num_batches_tracked"):
                problems.append(f"{name} is missing")
        elif value.shape == want.shape:
            state[name] = value.to(want.dtype)
        elif name.startswith("embedding."):
            if name == "embedding.weight":
                notes.append(
                    f"its embedding layer is {list(value.shape)}, ours {list(want.shape)}: ours starts at random"
                )
        elif _is_colour(value, want):
            state[name] = value.to(want.dtype).sum(dim=1, keepdim=True)
            notes.append(
                f"{name} takes 3 channels and was summed to 1, as if the log-mel were fed to all three"
            )
        else:
            problems.append(f"{name} is {list(value.shape)}, wanted {list(want.shape)}")
    return state, notes, problems


def _is_colour(value: Tensor, want: Tensor) -> bool:
    """Whether ``value`` is a convolution over red, green and blue where ``want`` is one over the log-mel."""
    expected = (want.shape[0], 3, *want.shape[2:])
    return want.ndim == 4 and want.shape[1] == 1 and tuple(value.shape) == expected


def _dropped(names: list[str]) -> list[str]:
    """Return one note a module (``classifier``, ``classification_head.mlp``) on what was not taken."""
    counts = Counter(name.rpartition(".")[0].split(".")[0] or name for name in names)
    return [
        f"{root} is no part of the student and was left out ({count} entries)"
        for root, count in counts.items()
        if root not in ("mean", "std")  # a run's own normalisation, made anew from this store's rows
    ]


def _misfit(config: StudentConfig, mels: int, file: str, payload: Any, problems: list[str]) -> WeightsError:
    more = f" and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    fits = _fitting(config, mels, payload)
    return WeightsError(
        f"{file} does not fit student {config.name!r} at width {config.width:g} with {mels} mels",
        expected="the published names and shapes of this network",
        got="; ".join(problems[:LISTED]) + more,
        run=f"it fits --set student.name={fits[0]} --set student.width={fits[1]:g}" if fits else None,
    )


def _fitting(config: StudentConfig, mels: int, payload: Any) -> tuple[str, float] | None:
    """Return the name and width of a student that ``payload`` fits, trying this one's widths first."""
    own = _skeleton(config.name, 1.0, mels)
    widths = WIDTHS if own is not None and _best(payload, own.state_dict())[0] else ()
    tried = [(config.name, width) for width in widths] + [(name, 1.0) for name in students.own_names()]
    for name, width in tried:
        network = _skeleton(name, width, mels)
        if network is not None and not _fit(network, payload).problems:
            return name, width
    return None


@functools.cache
def _skeleton(name: str, width: float, mels: int) -> Student | None:
    """Return a student without memory behind its weights; None where it takes no such width or mels."""
    try:
        with torch.device("meta"):
            return build_student(StudentConfig(name=name, width=width), mels)
    except OssicleError:
        return None

"""Which array of a store is meant: by kind, by name, by ``NAME:OUTPUT``, or by the digits of a digest."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import DigestMismatchError, MissingArtifactError, StoreError
from pipeline.store.schema import ArraySpec

MIN_DIGITS = 12


def choose(there: Sequence[ArraySpec], kind: str, name: str | None, place: str) -> ArraySpec:
    """Return the one array that is meant.

    Args:
        there: the store's complete arrays.
        kind: what is read. As ``embedding`` any row of a teacher's one-dimensional outputs may be read,
            where ``name`` says so.
        name: of the frontend or teacher, ``NAME:OUTPUT``, or at least 12 digits of the array's or the
            teacher's digest; None = there is only one.
        place: the store, for messages.

    Raises:
        DigestMismatchError: none fits; the message holds what was asked for and what is there.
        StoreError: several fit.
    """
    of_kind = [spec for spec in there if spec.kind == kind]
    fitting = of_kind if name is None else _named(there, of_kind, kind, name)
    if len(fitting) == 1:
        return fitting[0]
    shown = of_kind if kind == "spectrogram" else [spec for spec in there if spec.kind != "spectrogram"]
    listed = ", ".join(f"{_label(spec)} {spec.digest}" for spec in shown) or "none"
    if name is not None and not fitting:
        raise DigestMismatchError(
            f"the store in {place} has no {kind} array for {name[:64]}",
            expected=name,
            got=listed,
            run="ossicle embed, with this recipe",
        )
    raise StoreError(
        f"{len(fitting)} {kind} arrays fit, one is needed",
        expected=f"one {kind} array" + (f" called {name}" if name else ""),
        got=listed,
        run="choose one by its digest" if fitting else "ossicle embed",
    )


def choose_logits(
    there: Sequence[ArraySpec], name: str | None, followed: Sequence[str], place: str
) -> ArraySpec:
    """Return the logits array that is meant.

    Args:
        there: the store's complete arrays.
        name: of a teacher or of a joined file, or digits of a digest; None = the followed teachers' own.
        followed: digests of the teachers whose embeddings are learnt from.
        place: the store, for messages.

    Raises:
        MissingArtifactError: name is None and none of the followed teachers has logits.
        DigestMismatchError: the name fits none.
        StoreError: several fit.
    """
    if name is not None:
        return choose(there, "logits", name, place)
    logits = [spec for spec in there if spec.kind == "logits"]
    own = [spec for spec in logits if spec.teacher_digest in followed]
    if not own:
        raise MissingArtifactError(
            f"loss.hinton and loss.tags look at the teacher's logits, and the store in {place} has none of it",
            expected="logits of the teacher that is followed",
            got=", ".join(f"{spec.name} {spec.digest}" for spec in logits) or "no logits at all",
            run='ossicle embed with embed.teacher.outputs = ["embedding", "logits"]; ossicle store join for published '
            "ones; or --set loss.logits=NAME of one that is there",
        )
    return choose(own, "logits", None, place)


def _named(there: Sequence[ArraySpec], of_kind: list[ArraySpec], kind: str, name: str) -> list[ArraySpec]:
    exact = [spec for spec in of_kind if name == spec.name or _is_digest(name, spec.digest)]
    if exact or kind == "spectrogram":
        return exact
    rows = [spec for spec in there if len(spec.row_shape) == 1 or spec.kind == kind]
    by_digest = [spec for spec in rows if _is_digest(name, spec.digest)]
    of_teacher = [spec for spec in of_kind if _is_digest(name, spec.teacher_digest)]
    teacher, _, output = name.rpartition(":")
    by_output = [
        spec
        for spec in rows
        if spec.output == output and (teacher == spec.name or _is_digest(teacher, spec.teacher_digest))
    ]
    return by_digest or of_teacher or by_output


def _is_digest(name: str, digest: str) -> bool:
    return len(name) >= MIN_DIGITS and digest.startswith(name)


def _label(spec: ArraySpec) -> str:
    return spec.name if spec.output in ("", "embedding") else f"{spec.name}:{spec.output}"

"""Which students a budget search tries, and what varies in each."""

from __future__ import annotations

from typing import Any

from pipeline.config import Recipe, SearchConfig
from pipeline.search import space as spaces
from pipeline.search.space import Space
from pipeline.students.registry import students

# One of each design; where a family is published in several depths, its shallow and its deep member.
FAMILIES = (
    "cnn4", "cp_mobile_128k", "cp_resnet", "micronet_m0", "micronet_m2", "mn04", "mobilevitv2_050",
)  # fmt: skip
# Depth, where a family has it as an option: option to its choices.
DEPTHS: dict[str, dict[str, list[Any]]] = {
    "eres2net": {"blocks": [[1, 1, 1, 1, 1], [2, 2, 2, 2, 2], [3, 4, 6, 3, 3]]},
}
FRONTEND = ("embed.frontend.mels", "embed.frontend.hop_length")


def search_space(
    search: SearchConfig, more: dict[str, Any] | None = None, where: str = "search.space"
) -> Space:
    """Return what a budget search varies: family, width, depth, mels and hop, and the keys of ``search.space``.

    Args:
        search: the recipe's section.
        more: the table of a ``--space`` file, which goes before ``search.space``.
        where: for messages.

    Raises:
        ConfigError: an unknown student or key (near matches are listed).
    """
    names = search.students or FAMILIES
    for name in names:
        students.get(name)
    table: dict[str, Any] = {
        "student.name": {"choices": list(names)},
        "student.width": {"low": search.width_low, "high": search.width_high, "log": True},
    }
    for key, values in zip(FRONTEND, (search.mels, search.hop_lengths), strict=True):
        if values:
            table[key] = {"choices": list(values)}
    for name in names:
        for option, choices in DEPTHS.get(name, {}).items():
            table[f"student.options.{option}"] = {"choices": choices, "when": {"student.name": name}}
    return spaces.parse({**table, **search.space, **(more or {})}, where)


def frontends(space: Space, base: Recipe) -> list[Recipe]:
    """Return ``base`` with every combination of the inputs that the space varies."""
    recipes = [base]
    for key in FRONTEND:
        choices = next((d.values() for d in space.dimensions if d.key == key), ())
        recipes = [spaces.applied(one, {key: value}) for one in recipes for value in choices] or recipes
    return recipes

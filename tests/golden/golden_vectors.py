"""Golden vectors: where they are, and the recipe of their weights and inputs (loaded from the folder itself)."""

from __future__ import annotations

import importlib.util
import os
import types
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN_DIR = Path(os.environ.get("GOLDEN_DIR", REPOSITORY.parent / "shared" / "golden"))


@dataclass(frozen=True)
class Deviation:
    """How far one tap of one golden folder was off: ``worst`` of ``allowed``, in the same units."""

    folder: str
    tap: str
    worst: float
    allowed: float

    @property
    def share(self) -> float:
        """The deviation as a share of what is allowed; an exact match of an exact tap is 0."""
        if self.worst == 0:
            return 0.0
        return self.worst / self.allowed if self.allowed > 0 else float("inf")


# Rows of the running test; the terminal summary prints those of all tests (tests/conftest.py).
deviations: list[Deviation] = []
# The golden folder that the running test is about, for rows of ``assert_close``; set by conftest.py.
running_folder: str | None = None


def report(folder: str, tap: str, worst: float, allowed: float) -> None:
    """Note the worst deviation of one tap and the deviation allowed, both in the same units, for the summary."""
    deviations.append(Deviation(folder, tap, float(worst), float(allowed)))


def folders(*names: str, prefix: str = "") -> list[Any]:
    """Return pytest parameters: the golden folders found among ``names`` or by ``prefix``; one skip if none is."""
    found = [n for n in names if (GOLDEN_DIR / n / "spec.json").is_file()]
    if prefix and GOLDEN_DIR.is_dir():
        found += sorted(p.parent.name for p in GOLDEN_DIR.glob(f"{prefix}*/spec.json"))
    if found:
        return found
    wanted = ", ".join(names) or f"{prefix}*"
    return [pytest.param(None, marks=pytest.mark.skip(reason=f"golden folder {wanted} not at {GOLDEN_DIR}"))]


@cache
def recipe() -> types.ModuleType:
    """Return the folder's own golden.py, or skip where the folder is absent."""
    path = GOLDEN_DIR / "golden.py"
    if not path.is_file():
        pytest.skip(f"golden vectors are not at {GOLDEN_DIR} (set GOLDEN_DIR)")
    module_spec = importlib.util.spec_from_file_location("golden", path)
    assert module_spec is not None and module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    return module


def require(name: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return (spec, taps) of the golden folder ``name``, or skip with a message."""
    if not (GOLDEN_DIR / name / "spec.json").is_file():
        pytest.skip(f"golden folder {name} is not at {GOLDEN_DIR} (set GOLDEN_DIR)")
    return recipe().load(GOLDEN_DIR / name)


def tensor(seed: int, shape: tuple[int, ...] | list[int]) -> torch.Tensor:
    """Return the recipe's standard-normal tensor."""
    return torch.from_numpy(recipe().tensor(seed, tuple(shape)))


def waveform(seed: int, seconds: float, sample_rate: int, channels: int = 1) -> np.ndarray:
    """Return the recipe's (channels, samples) test signal."""
    return recipe().waveform(seed, seconds, sample_rate, channels)


def fill(name: str, shape: tuple[int, ...] | list[int], seed: int = 0) -> torch.Tensor:
    """Return the recipe's value of one state-dict entry."""
    return torch.from_numpy(recipe().fill(name, tuple(shape), seed))


def filled_state(
    spec: dict[str, Any],
    taps: dict[str, np.ndarray],
    changes: list[dict[str, Any]] | None = None,
    prefix: str = "",
) -> dict[str, torch.Tensor]:
    """Return the filled float entries, ``value`` entries read from taps, ``changes`` refilled at their shape.

    Args:
        changes: entries of a variant (``state_changes`` of an input) whose shape differs.
        prefix: of the variant's arrays in taps ("mono."): ``<prefix>state.<name>`` wins over the entry's value.
    """
    state = {name: torch.from_numpy(value) for name, value in recipe().filled_state(spec).items()}
    for entry in spec["state"]:
        key = entry.get("value")
        if key is not None:
            key = key if isinstance(key, str) else f"state.{entry['name']}"
            state[entry["name"]] = torch.from_numpy(taps[key])
            if prefix and f"{prefix}state.{entry['name']}" in taps:
                state[entry["name"]] = torch.from_numpy(taps[f"{prefix}state.{entry['name']}"])
    for change in changes or []:
        state[change["name"]] = fill(change["name"], change["shape"], spec.get("fill_seed", 0))
    return state


def assert_close(
    got: torch.Tensor | np.ndarray, want: np.ndarray, tolerance: dict[str, float], where: str
) -> float:
    """Assert |got - want| <= rtol |want| + atol_relative * max|want|; return the worst difference over max|want|."""
    got_array = got.detach().cpu().numpy() if isinstance(got, torch.Tensor) else np.asarray(got)
    assert got_array.shape == want.shape, f"{where}: shape {got_array.shape}, golden {want.shape}"
    scale = float(np.abs(want).max()) or 1.0
    atol = tolerance.get("atol_relative_to_abs_max", 2e-5) * scale
    allowed = atol + tolerance.get("rtol", 1e-4) * np.abs(want)
    difference = np.abs(got_array.astype(np.float64) - want.astype(np.float64))
    worst = float(difference.max(initial=0.0)) / scale
    if running_folder is not None and difference.size:
        # Rows are in units of what is allowed, as it differs from element to element.
        report(running_folder, where, float((difference / allowed).max()), 1.0)
    assert (difference <= allowed).all(), f"{where}: worst |difference| / max|golden| is {worst:.3g}"
    return worst

"""Small networks and published file layouts for the tests of PaSST, M2D and MATPAC."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import TeacherConfig
from pipeline.teachers.vit import VitSizes
from tests.golden import golden_vectors as golden
from tests.teachers.checkpoint_table import saved

SMALL = VitSizes(dim=64, depth=2, hidden=96)


def shallow_state(folder: str) -> dict[str, Tensor]:
    """Return the golden folder's filled state, blocks after the first left out: the published names and widths."""
    spec, _ = golden.require(folder)
    kept = [entry for entry in spec["state"] if not re.search(r"(^|\.)blocks\.([1-9]|1\d)\.", entry["name"])]
    filled = golden.recipe().filled_state({**spec, "state": kept})
    return {name: torch.from_numpy(value) for name, value in filled.items()}


def random_state(network: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Return values that keep the signal alive for every entry of ``network``."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in network.state_dict().items():
        if not value.is_floating_point() or name.startswith("log_mel."):
            state[name] = value
            continue
        draw = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
            state[name] = 1 + 0.1 * draw.abs()
        elif value.ndim == 1:
            state[name] = 0.1 * draw
        else:
            state[name] = draw / math.sqrt(max(1, math.prod(value.shape[1:])))
    return state


def noise(batch: int, samples: int, seed: int = 0) -> Tensor:
    """Return (batch, samples) of noise in [-1, 1], louder towards the end."""
    draw = torch.rand(batch, samples, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return draw * torch.linspace(0.05, 1, samples)


def written(payload: object, path: Path, name: str, **options: Any) -> TeacherConfig:
    """Write ``payload`` as torch does, and return the teacher's configuration that trusts the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(saved(payload))
    return trusted(path, name, **options)


def trusted(path: Path, name: str, **options: Any) -> TeacherConfig:
    """Return the configuration of teacher ``name`` with ``path`` as its trusted weights."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return TeacherConfig(name=name, weights=path, trust_sha256=digest, options=options, dtype="float32")


def assert_holds(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Assert that the network's entries are those of ``state``."""
    own = network.state_dict()
    for name, value in state.items():
        torch.testing.assert_close(own[name], value, rtol=0, atol=0)

"""Checkpoints: everything that a run needs to go on with the same bits, in one file written whole.

Tensors are safetensors; the plain values are JSON in the same file's header, so that no kill can part
them. Nothing is pickled.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.artifact import write_bytes
from pipeline.errors import DigestMismatchError, WeightsError

FILE = "checkpoint.safetensors"
FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A run at the end of a step.

    Attributes:
        work: digest of the run's work; a checkpoint of other work is refused.
        step: updates made.
        tensors: ``group.name`` to tensor (model, average, best, optimiser, rng).
        values: JSON values (optimiser scalars, loader state, early stopping, running sums).
    """

    work: str
    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any] = field(default_factory=dict)

    def group(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one group, without its prefix."""
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write ``checkpoint.safetensors``, whole and synced, in place of the one before."""
    header = {
        "format": str(FORMAT), "work": checkpoint.work, "step": str(checkpoint.step),
        "values": json.dumps(checkpoint.values, sort_keys=True),
    }  # fmt: skip
    # Clones: safetensors refuses tensors that share memory (EMA buffers, tied weights).
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in checkpoint.tensors.items()}
    write_bytes(folder / FILE, safetensors.torch.save(tensors, metadata=header))


def load(folder: Path, work: str) -> Checkpoint | None:
    """Return the folder's checkpoint, or None if there is none yet.

    Raises:
        DigestMismatchError: it was made by other work.
        WeightsError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    mend = f"rm {path}"
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{path} is damaged: {error}", run=mend) from error
    if header.get("format") != str(FORMAT):
        raise WeightsError(
            f"{path} has another format", expected=f"format {FORMAT}", got=header.get("format"), run=mend
        )
    if header["work"] != work:
        raise DigestMismatchError(
            f"{path} belongs to another run", expected=work, got=header["work"], run=mend
        )
    return Checkpoint(header["work"], int(header["step"]), tensors, json.loads(header["values"]))


def pack_optimiser(optimiser: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the optimiser's state as ``optimiser.<index>.<name>`` tensors and its scalars as JSON values."""
    state = optimiser.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, entry in state["state"].items():
        for name, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"optimiser.{index}.{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = value
    return tensors, {"param_groups": state["param_groups"], "scalars": scalars}


def unpack_optimiser(optimiser: Optimizer, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Put the state of ``pack_optimiser`` back.

    State takes each parameter's memory layout: a kernel that meets another layout may fuse or split its
    multiply-adds, and the next step would differ in the last bit.
    """
    state: dict[int, dict[str, Any]] = {int(i): dict(entry) for i, entry in values["scalars"].items()}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": values["param_groups"]})
    for parameter, entry in optimiser.state.items():
        for name, value in entry.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
                entry[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def pack_rng(generator: torch.Generator, device: torch.device) -> dict[str, Tensor]:
    """Return the states of torch's global generators, ``device``'s among them, and of the augmentation's."""
    states = {"rng.torch": torch.get_rng_state(), "rng.augment": generator.get_state().unsqueeze(0)}
    if device.type == "cuda":
        states["rng.cuda"] = torch.cuda.get_rng_state(device)
    return states


def unpack_rng(
    generator: torch.Generator, states: dict[str, Tensor], device: torch.device, rank: int = 0
) -> None:
    """Put the states of ``pack_rng`` back; ``augment`` has a row a process, and new processes take the first's."""
    torch.set_rng_state(states["torch"])
    of_ranks = states["augment"]
    generator.set_state(of_ranks[rank if rank < len(of_ranks) else 0].clone())
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def prefixed(name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` with ``name.`` before every key."""
    return {f"{name}.{key}": value for key, value in state.items()}


def load_module(module: nn.Module, state: dict[str, Tensor], where: str) -> None:
    """Load ``state`` strictly into ``module``.

    Raises:
        WeightsError: names or shapes differ.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(
            f"{where} does not fit the model: {error}", run="remove the run's folder"
        ) from error

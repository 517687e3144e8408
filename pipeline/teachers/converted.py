"""Checkpoints converted once: the tensors as safetensors, the rest of the file's tree as JSON beside them."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.artifact import file_digest, replacing, write_bytes
from pipeline.checkpoints.safe_load import StandIn
from pipeline.errors import WeightsError

logger = logging.getLogger(__name__)

FORMAT = "ossicle-checkpoint/1"
MAX_NODES = 300_000
MAX_DEPTH = 40
# State of the authors' training: two more copies of the weights, which no teacher needs.
_TRAINING_STATE = {"optimizer", "optimizer_states", "optimizers", "lr_schedulers", "scaler", "sampler"}


def converted_path(folder: Path, sha256: str) -> Path:
    """Return where the conversion of the file of that digest is, made or not."""
    return folder / f"{sha256[:12]}.safetensors"


def without_training_state(payload: Any) -> Any:
    """Return ``payload`` without the top-level entries that hold the authors' optimizer and sampler."""
    if isinstance(payload, dict):
        return {key: value for key, value in payload.items() if key not in _TRAINING_STATE}
    return payload


def write(folder: Path, sha256: str, payload: Any, source: str) -> Path:
    """Convert ``payload`` and return the safetensors file; a JSON record of the same stem lies beside it.

    Args:
        folder: the checkpoint's cache folder.
        sha256: of the file that ``payload`` was read from.
        payload: what that file held.
        source: its name, for the record.

    Raises:
        WeightsError: its tree is absurdly deep or large, or holds something that is no tensor or plain value.
    """
    tensors: dict[str, Tensor] = {}
    tree = _Tree(tensors, source).encode(payload, 0)
    target = converted_path(folder, sha256)
    with replacing(target) as temporary:
        save_file(tensors, temporary, metadata={"source_sha256": sha256})
        record = {
            "format": FORMAT, "source": source, "source_sha256": sha256, "sha256": file_digest(temporary),
            "tree": tree,
        }  # fmt: skip
        # Record first: a crash between the two leaves a record of another file, which is simply converted anew.
        write_bytes(_record(target), json.dumps(record).encode())
    return target


def read(folder: Path, sha256: str) -> Any | None:
    """Return the payload converted from the file of digest ``sha256``, or None where there is no whole one."""
    path = converted_path(folder, sha256)
    if not (path.is_file() and _record(path).is_file()):
        return None
    try:
        record = json.loads(_record(path).read_text(encoding="utf-8"))
        if record.get("format") != FORMAT:
            return None
        if record["source_sha256"] == sha256 and record["sha256"] == file_digest(path):
            return _decode(record["tree"], load_file(path))
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        logger.warning("%s cannot be read (%s)", path, error)
    logger.warning("%s is not what was converted from the checkpoint: converting anew", path)
    return None


def _record(path: Path) -> Path:
    return path.with_suffix(".json")


class _Tree:
    """A file's tree as JSON: {"t": tensor}, {"d": [[key, node]]}, {"l": [...]}, {"u": [...]} (tuple), {"v": plain}."""

    def __init__(self, tensors: dict[str, Tensor], source: str) -> None:
        self.tensors, self.source, self.nodes = tensors, source, 0

    def encode(self, value: Any, depth: int) -> dict[str, Any]:
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            expected = f"{MAX_DEPTH} levels and {MAX_NODES} values at most"
            raise WeightsError(f"{self.source} cannot be loaded: its tree has no end", expected=expected)
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, np.ndarray):
            return self._tensor(torch.from_numpy(np.ascontiguousarray(value)))
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, bool | int | float | str):
            return {"v": value}
        if isinstance(value, argparse.Namespace | StandIn):
            value = vars(value)
        if isinstance(value, dict):
            return {
                "d": [[_key(key, self.source), self.encode(v, depth + 1)] for key, v in value.items()],
            }
        if isinstance(value, tuple):
            return {"u": [self.encode(v, depth + 1) for v in value]}
        if isinstance(value, list | set | frozenset):
            return {"l": [self.encode(v, depth + 1) for v in value]}
        if isinstance(value, torch.dtype | torch.device):
            return {"v": str(value)}
        raise WeightsError(
            f"{self.source} cannot be loaded: it holds a {type(value).__name__}",
            expected="tensors and plain values",
        )

    def _tensor(self, value: Tensor) -> dict[str, Any]:
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            got = f"{value.layout}, {value.dtype}, {value.device}"
            raise WeightsError(
                f"{self.source} cannot be loaded: it holds a tensor without plain values", got=got
            )
        name = str(len(self.tensors))
        self.tensors[name] = value.detach().contiguous().clone()
        return {"t": name}


def _key(key: Any, source: str) -> str | int:
    if isinstance(key, np.integer):
        return int(key)
    if key is StandIn:  # Lightning before 1.5 filed each callback's state under the callback's class
        return StandIn.__name__
    if not isinstance(key, str | int):
        raise WeightsError(f"{source} cannot be loaded: it has a key of type {type(key).__name__}")
    return key


def _decode(node: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((kind, value),) = node.items()
    if kind == "t":
        return tensors[value]
    if kind == "v":
        return value
    if kind == "d":
        return {key: _decode(inner, tensors) for key, inner in value}
    inner_values = [_decode(inner, tensors) for inner in value]
    return tuple(inner_values) if kind == "u" else inner_values

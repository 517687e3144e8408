"""The teacher's logits of every store row, in memory as compact as they are stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.store import topk
from pipeline.store.reader import StoreReader
from pipeline.store.schema import ArraySpec

# Of one run; AudioSet's 2 million clips take 2.1 GB as float16, 0.25 GB as top 20.
LIMIT_BYTES = 4 << 30


class LogitsTable:
    """Logits by store row. Rows that have none are NaN throughout.

    Copies share the arrays: a moving average of the weights deep-copies the objective that holds this.

    Args:
        reader: the store.
        spec: its logits array, all logits or the largest k with the others' log-sum-exp.
        rows: mask ``(store rows,)`` of the rows that are wanted; others are not read.

    Raises:
        ConfigError: more than 4 GiB.
        StoreError: a shard cannot be read.
    """

    def __init__(self, reader: StoreReader, spec: ArraySpec, rows: Bool[np.ndarray, " rows"]) -> None:
        self.classes, self.name = spec.row_shape[0], spec.name
        self.place = np.full(len(rows), -1, dtype=np.int64)
        self.place[rows] = np.arange(int(rows.sum()))
        self._members: dict[str, np.ndarray] = {}
        begin = 0
        for shard in range(reader.meta.shards):
            start, stop = reader.meta.bounds(shard)
            chosen = rows[start:stop]
            if not chosen.any():
                continue
            for name, stored in reader.read_members(spec, shard).items():
                if name not in self._members:
                    self._members[name] = self._room(spec, stored, int(rows.sum()))
                self._members[name][begin : begin + int(chosen.sum())] = stored[chosen]
            begin += int(chosen.sum())
        self.known = np.zeros(len(rows), dtype=bool)
        known = [
            np.isfinite(m).reshape(len(m), -1).all(axis=1)
            for m in self._members.values()
            if m.dtype.kind == "f"
        ]
        self.known[rows] = np.logical_and.reduce(known) if known else False

    def __deepcopy__(self, memo: dict[int, Any]) -> LogitsTable:
        return self

    def __call__(self, index: Int[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
        """Return float32 logits of store rows, on the index's device; dropped classes share the tail evenly."""
        wanted = index.cpu().numpy()
        place = np.maximum(self.place[wanted], 0)
        members = {name: member[place] for name, member in self._members.items()}
        if "tail" in members:
            logits = topk.decode(
                members["values"].astype(np.float32), members["indices"], members["tail"], self.classes
            )
        else:
            logits = members["logits"].astype(np.float32)
        logits[~self.known[wanted]] = np.nan
        return torch.from_numpy(logits).to(index.device)

    def _room(self, spec: ArraySpec, stored: np.ndarray, rows: int) -> np.ndarray:
        held = sum(member.nbytes for member in self._members.values())
        needed = held + rows * stored[:1].nbytes
        if needed > LIMIT_BYTES:
            raise ConfigError(
                f"the logits of {spec.name} do not fit: {rows:,} rows of {self.classes} classes",
                expected=f"at most {LIMIT_BYTES / 2**30:.0f} GiB", got=f"{needed / 2**30:.1f} GiB and more",
                run="ossicle embed with embed.teacher.logits_top_k = 20, or embed.logits_dtype = 'float16'",
            )  # fmt: skip
        return np.empty((rows, *stored.shape[1:]), dtype=stored.dtype)


def teacher_classes(spec: ArraySpec, file: Path | None) -> list[str] | None:
    """Return the class names of a logits array in its order: ``loss.classes``, or what the store says; None = unknown.

    Raises:
        ConfigError: the file is no list of as many different names.
    """
    if file is None:
        said = spec.config.get("classes")
        return [str(name) for name in said] if said else None
    try:
        names: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"loss.classes cannot be read: {error}", expected="a JSON list of names", got=file
        ) from error
    fits = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not fits or len(set(names)) != spec.row_shape[0] or len(names) != spec.row_shape[0]:
        raise ConfigError(
            f"{file} does not name the classes of {spec.name}", expected=f"{spec.row_shape[0]} different names",
            got=f"{len(set(names))} of {len(names)} entries" if fits else "no list of names",
        )  # fmt: skip
    return list(names)

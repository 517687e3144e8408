"""Stage 1's own worker in this process, so that a test can count what its teachers and frontends hear."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from pipeline.embedding import pool
from pipeline.embedding.shard import EmbedWork
from pipeline.embedding.worker import Message, ShardWorker
from pipeline.frontends.log_mel import LogMel
from pipeline.store.writer import StoreWriter
from pipeline.teachers.synthetic import TinyTeacher


class _Shards:
    def __init__(self, shards: Sequence[int], on_message: Callable[[Message], None]) -> None:
        self._left, self.send = [*shards, None], on_message

    def recv(self) -> int | None:
        return self._left.pop(0)


def embed_shards(
    work: EmbedWork, shards: Sequence[int], workers: int, on_message: Callable[[Message], None]
) -> None:
    """Do what ``pool.embed_shards`` does, here."""
    with StoreWriter.open(work.store) as writer:
        ShardWorker(work, writer, _Shards(shards, on_message)).run()


def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Embed in this process from now on; return the counter of rows heard, by teacher and frontend."""
    heard: Counter[str] = Counter()
    embed, forward = TinyTeacher.embed, LogMel.forward

    def hear(teacher: TinyTeacher, waveforms: torch.Tensor, *arguments: Any) -> dict[str, torch.Tensor]:
        heard[f"seed {teacher.seed}"] += len(waveforms)
        return embed(teacher, waveforms, *arguments)

    def transform(frontend: LogMel, waveforms: torch.Tensor) -> torch.Tensor:
        heard[f"{frontend.config.mels} mels"] += len(waveforms)
        return forward(frontend, waveforms)

    monkeypatch.setattr(TinyTeacher, "embed", hear)
    monkeypatch.setattr(LogMel, "forward", transform)
    monkeypatch.setattr(pool, "embed_shards", embed_shards)
    return heard

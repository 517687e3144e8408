"""Shuffled loading from the store against the field's layout: a WAV and an npz a clip, log-mel made every step."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tests.benchmarks.rows import Row, fastest_seconds

NAMES = ("layout_cached", "layout_streamed")
# Clips and log-mel of S-SONDO's training (arXiv 2604.24933): 10 s at 32 kHz, 128 mels, 32 ms every 16 ms.
RATE_HZ, SECONDS, MELS, WINDOW, HOP, TEACHER_DIM = 32_000, 10, 128, 1_024, 512, 768
CLIPS, COPIES, BATCH, SHUFFLE_ROWS = 256, 8, 32, 512
REFERENCE_BATCHES, STREAMED_BATCHES = 3, 256


def rows(names: Collection[str]) -> Iterable[Row]:
    """Measure the same clips in both layouts, files in the page cache, batches of 32 in random order.

    The other layout is that of published distillation code: 16-bit WAV files and one npz of the teacher's
    embedding each, read by a ``DataLoader``, the log-mel of every batch made in the step. It is given the
    faster of no worker processes and one a core. ``layout_cached`` is an epoch after the first of a selection
    that fits ``cache_bytes``; ``layout_streamed`` reads, checks and shuffles every shard from files all the while.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(_cores())
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield from _rows(names, Path(folder))
    finally:
        torch.set_num_threads(threads)


def _rows(names: Collection[str], folder: Path) -> Iterator[Row]:
    from pipeline.data.loader import ShardLoader

    clips = _write_files(folder)
    reader = _write_store(folder / "store", clips)
    options: dict[str, Any] = {"batch_size": BATCH, "seed": 0, "shuffle_rows": SHUFFLE_ROWS}
    cached = ShardLoader(reader, **options)
    streamed = ShardLoader(reader, **options, cache_bytes=0)
    references = {f"{workers} workers": _reference(folder, workers) for workers in (0, _cores())}
    variants: dict[str, Callable[[], object]] = {
        "cached": lambda: sum(len(batch) for batch in cached.one_epoch(1)),
        # From a standing start: an iterator kept running would have read ahead while nothing was timed.
        "streamed": lambda: sum(len(batch) for batch in islice(streamed, STREAMED_BATCHES)),
        **references,
    }
    clips_each = {"cached": CLIPS * COPIES, "streamed": STREAMED_BATCHES * BATCH}
    seconds = fastest_seconds(variants, repeats=5)
    rate = {name: clips_each.get(name, REFERENCE_BATCHES * BATCH) / taken for name, taken in seconds.items()}
    best = max(references, key=lambda name: rate[name])
    others = ", ".join(f"{name}: {rate[name]:.0f}" for name in references)
    for name, ours, goal in (("layout_cached", "cached", 100), ("layout_streamed", "streamed", 50)):
        if name in names:
            yield Row.at_least(
                name,
                rate[ours] / rate[best],
                goal,
                detail=f"{rate[ours]:.0f} clips/s against WAV + npz + log-mel ({others} clips/s)",
            )


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _frontend():  # type: ignore[no-untyped-def]
    from pipeline.config import LogMelConfig
    from pipeline.frontends.log_mel import LogMel

    config = LogMelConfig(
        sample_rate_hz=RATE_HZ,
        n_fft=WINDOW,
        window_length=WINDOW,
        hop_length=HOP,
        mels=MELS,
        max_hz=RATE_HZ / 2,
    )
    return config, LogMel(config)


def _write_files(folder: Path):  # type: ignore[no-untyped-def]
    """Write one WAV and one npz a clip; return log-mels and embeddings."""
    import numpy as np
    import soundfile
    import torch

    generator = np.random.default_rng(0)
    _, log_mel = _frontend()
    made, embeddings = [], generator.standard_normal((CLIPS, TEACHER_DIM), dtype=np.float32)
    for clip in range(CLIPS):
        waveform = (generator.standard_normal(RATE_HZ * SECONDS) * 0.1).clip(-1, 1).astype(np.float32)
        soundfile.write(folder / f"{clip}.wav", waveform, RATE_HZ, subtype="PCM_16")
        np.savez(folder / f"{clip}.npz", embedding=embeddings[clip])
        made.append(log_mel(torch.from_numpy(waveform)[None])[0].numpy().astype(np.float16))
    return np.stack(made), embeddings


def _write_store(folder: Path, clips):  # type: ignore[no-untyped-def]
    import numpy as np
    import pandas as pd

    from pipeline.store.reader import StoreReader
    from pipeline.store.schema import StoreMeta, embedding_spec, spectrogram_spec
    from pipeline.store.writer import StoreWriter

    log_mel, embedding = clips
    count = CLIPS * COPIES
    table = pd.DataFrame(
        {"row": np.arange(count), "key": [f"{row:032x}" for row in range(count)], "split": "train"}
    )
    arrays = (
        spectrogram_spec(_frontend()[0], log_mel.shape[2]),
        embedding_spec("noise", "cd" * 32, TEACHER_DIM),
    )
    with StoreWriter.create(
        folder, table, StoreMeta(name="bench", manifest_digest="0" * 64, arrays=arrays)
    ) as writer:
        for shard in writer.pending():
            start, stop = writer.meta.bounds(shard)
            chosen = np.arange(start, stop) % CLIPS
            writer.write_shard(shard, {arrays[0].path: log_mel[chosen], arrays[1].path: embedding[chosen]})
        writer.finish(config={}, inputs={})
    return StoreReader(folder)


def _reference(folder: Path, workers: int) -> Callable[[], object]:
    from torch.utils.data import DataLoader

    _, log_mel = _frontend()
    loader = DataLoader(
        FileClips(folder), BATCH, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0, multiprocessing_context="spawn" if workers else None,
    )  # fmt: skip
    state: dict[str, Any] = {}

    def batches() -> object:
        made = None
        for _ in range(REFERENCE_BATCHES):
            found = next(state["batches"], None) if "batches" in state else None
            if found is None:
                state["batches"] = iter(loader)
                found = next(state["batches"])
            waveform, _ = found
            made = log_mel(waveform)
        return made

    return batches


class FileClips:
    """A data set as the published code has it: one clip's waveform and embedding from two files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return CLIPS

    def __getitem__(self, clip: int):  # type: ignore[no-untyped-def]
        import numpy as np
        import soundfile
        import torch

        waveform, _ = soundfile.read(self.folder / f"{clip}.wav", dtype="float32")
        with np.load(self.folder / f"{clip}.npz") as file:
            embedding = file["embedding"]
        return torch.from_numpy(waveform), torch.from_numpy(embedding)

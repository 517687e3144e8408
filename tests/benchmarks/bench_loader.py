"""Shuffled batches of cached log-mel: against a plain numpy memmap, and against indexing Zarr row by row."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable
from itertools import islice
from pathlib import Path

from tests.benchmarks.rows import Row, fastest_seconds

NAMES = ("loader_vs_memmap", "loader_vs_zarr_rows", "streamed_vs_memmap", "streamed_vs_zarr_rows")
ROWS, MELS, FRAMES, BATCH, SHUFFLE_ROWS, ZARR_ROWS = 4096, 64, 251, 64, 2048, 128
STREAMED_EPOCHS = 4


def rows(names: Collection[str]) -> Iterable[Row]:
    """Measure the loader on 132 MB of log-mel, float16, in the page cache.

    ``loader_``: an epoch after the first, of a selection that fits its memory and is read once. ``streamed_``:
    without that memory, in the midst of a run: every epoch reads every shard anew, checksums included.
    """
    import numpy
    import pandas
    import zarr

    from pipeline.config import LogMelConfig
    from pipeline.data.loader import ShardLoader
    from pipeline.store.reader import StoreReader
    from pipeline.store.schema import StoreMeta, spectrogram_spec
    from pipeline.store.writer import StoreWriter

    generator = numpy.random.default_rng(0)
    log_mel = generator.normal(-6, 3, (ROWS, MELS, FRAMES)).astype(numpy.float16)
    plan = pandas.DataFrame(
        {"row": range(ROWS), "key": [f"{row:032x}" for row in range(ROWS)], "split": "train"}
    )
    spec = spectrogram_spec(LogMelConfig(mels=MELS), FRAMES)
    with tempfile.TemporaryDirectory() as scratch:
        meta = StoreMeta(name="bench", manifest_digest="0" * 64, arrays=(spec,))
        with StoreWriter.create(Path(scratch) / "store", plan, meta) as writer:
            for shard in writer.pending():
                start, stop = writer.meta.bounds(shard)
                writer.write_shard(shard, {spec.path: log_mel[start:stop]})
            writer.finish(config={}, inputs={})
        numpy.save(Path(scratch) / "plain.npy", log_mel)
        plain = numpy.load(Path(scratch) / "plain.npy", mmap_mode="r")
        reader = StoreReader(writer.folder)
        in_zarr = zarr.open_array(writer.folder / spec.path / "log_mel", mode="r")
        options = {"batch_size": BATCH, "seed": 0, "shuffle_rows": SHUFFLE_ROWS, "arrays": ("spectrogram",)}
        cached = ShardLoader(reader, **options)
        streamed = ShardLoader(reader, **options, cache_bytes=0)
        order = generator.permutation(ROWS)

        def epoch(loader: ShardLoader) -> int:
            return sum(len(batch) for batch in loader.one_epoch(1))

        def gather_memmap() -> int:
            return sum(len(plain[order[first : first + BATCH]]) for first in range(0, ROWS, BATCH))

        def index_rows() -> int:
            return sum(len(in_zarr[int(row)]) for row in order[:ZARR_ROWS])

        def stream() -> int:
            # From a standing start: an iterator kept running would have read ahead while nothing was timed.
            return sum(len(batch) for batch in islice(streamed, STREAMED_EPOCHS * ROWS // BATCH))

        variants = {
            "loader": lambda: epoch(cached), "streamed": stream, "memmap": gather_memmap, "zarr": index_rows
        }  # fmt: skip
        seconds = fastest_seconds(variants, repeats=7)
    count = {"zarr": ZARR_ROWS, "streamed": STREAMED_EPOCHS * ROWS}
    rate = {name: count.get(name, ROWS) / taken for name, taken in seconds.items()}
    for ours, other, goal in (
        ("loader", "memmap", 0.5),
        ("loader", "zarr_rows", 50),
        ("streamed", "memmap", 0.12),
        ("streamed", "zarr_rows", 50),
    ):
        name = f"{ours}_vs_{other}"
        if name in names:
            against = rate[other.removesuffix("_rows")]
            yield Row.at_least(
                name, rate[ours] / against, goal, detail=f"{rate[ours]:.0f} rows/s against {against:.0f}"
            )

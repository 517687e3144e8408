"""Shuffled batches of cached log-mel: against a plain numpy memmap, and against indexing Zarr row by row."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable
from pathlib import Path

from tests.benchmarks.rows import Row, fastest_seconds

NAMES = ("loader_vs_memmap", "loader_vs_zarr_rows")
ROWS, MELS, FRAMES, BATCH, SHUFFLE_ROWS, ZARR_ROWS = 4096, 64, 251, 64, 2048, 128


def rows(names: Collection[str]) -> Iterable[Row]:
    """Measure the loader on 132 MB of log-mel, float16, in the page cache.

    The loader's figure is an epoch after its first: the selection fits its memory and is decoded once. The
    rate without that cache (every epoch decodes every shard, checksums included) stands in the detail.
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

        variants = {"loader": lambda: epoch(cached), "streamed": lambda: epoch(streamed)}
        if "loader_vs_memmap" in names:
            variants["memmap"] = gather_memmap
        if "loader_vs_zarr_rows" in names:
            variants["zarr"] = index_rows
        seconds = fastest_seconds(variants, repeats=7)
    rate = {name: (ZARR_ROWS if name == "zarr" else ROWS) / taken for name, taken in seconds.items()}
    for name, other, goal in (("loader_vs_memmap", "memmap", 0.5), ("loader_vs_zarr_rows", "zarr", 50)):
        if name in names:
            yield Row.at_least(
                name,
                rate["loader"] / rate[other],
                goal,
                detail=f"{rate['loader']:.0f} rows/s against {rate[other]:.0f}; decoding every epoch: "
                f"{rate['streamed']:.0f} ({rate['streamed'] / rate[other]:.2g} x)",
            )

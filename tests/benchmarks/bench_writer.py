"""What storing a clip costs beside making it: flat from 1,000 to 100,000 clips, in time and in memory.

A fast synthetic teacher: shards are made of one drawn block, so that hardly anything but the writer is timed.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from tests.benchmarks.rows import REPOSITORY, CannotRunError, Row, peak_growth_bytes

NAMES = ("writer_growth", "writer_memory_growth")
SMALL, LARGE = 1_000, 100_000
SHARD_ROWS, DIM, MELS, FRAMES = 500, 256, 32, 50
BYTES_A_CLIP = 4 * DIM + 2 * MELS * FRAMES
REPEATS = 3


def write(folder: Path, clips: int) -> float:
    """Write and finish a store of ``clips`` clips; return the CPU seconds, the disk's waiting apart."""
    import numpy
    import pandas

    from pipeline.config import LogMelConfig
    from pipeline.store.schema import StoreMeta, embedding_spec, spectrogram_spec
    from pipeline.store.writer import StoreWriter

    draw = numpy.random.default_rng(0)
    specs = (
        spectrogram_spec(LogMelConfig(mels=MELS), FRAMES),
        embedding_spec("synthetic", "0" * 64, DIM, licence="CC0-1.0"),
    )
    block = {
        spec.path: draw.standard_normal((SHARD_ROWS, *spec.row_shape), dtype=numpy.float32) for spec in specs
    }
    rows = pandas.DataFrame({"row": numpy.arange(clips)})
    rows["key"] = [f"{row:032x}" for row in range(clips)]
    rows["clip_id"], rows["split"], rows["view"], rows["dataset"] = rows["key"], "train", "clean", "made"
    meta = StoreMeta(
        name="bench", manifest_digest="0" * 64, shard_rows=SHARD_ROWS, chunk_rows=50, arrays=specs
    )
    started = time.process_time()
    with StoreWriter.create(folder, rows, meta) as writer:
        for shard in writer.pending():
            start, stop = writer.meta.bounds(shard)
            writer.write_shard(shard, {path: values[: stop - start] for path, values in block.items()})
        writer.finish(config={}, inputs={})
    return time.process_time() - started


def prepare(clips: str) -> Callable[[], object]:
    """Warm a fresh process up on a small store and return the writing to measure."""
    scratch = Path(tempfile.mkdtemp(dir=_scratch()))
    write(scratch / "warm", SHARD_ROWS)

    def measured() -> None:
        write(scratch / "measured", int(clips))
        shutil.rmtree(scratch)

    return measured


def _scratch() -> Path:
    folder = REPOSITORY / "build"
    folder.mkdir(exist_ok=True)
    return folder


def rows(names: Collection[str]) -> Iterator[Row]:
    """Yield how the cost of a clip grows with the store: 1.0 = not at all."""
    if shutil.disk_usage(_scratch()).free < 3 * LARGE * BYTES_A_CLIP:
        raise CannotRunError(f"{3 * LARGE * BYTES_A_CLIP / 1e9:.1f} GB of free disk are needed")
    if "writer_growth" in names:
        with tempfile.TemporaryDirectory(dir=_scratch()) as scratch:
            small = min(write(Path(scratch) / f"small{i}", SMALL) for i in range(1 + REPEATS)) / SMALL
            large = write(Path(scratch) / "large", LARGE) / LARGE
        detail = f"{1e6 * large:.0f} us of CPU a clip of {LARGE:,}, {1e6 * small:.0f} us of {SMALL:,}; "
        yield Row.at_most(
            "writer_growth", large / small, 1.25, "x", detail=detail + f"{BYTES_A_CLIP / 1e3:.1f} kB a clip"
        )
    if "writer_memory_growth" in names:
        module = "tests.benchmarks.bench_writer:prepare"
        small_bytes, large_bytes = (peak_growth_bytes(module, str(clips)) for clips in (SMALL, LARGE))
        # The arrays come and go shard by shard; what may grow is the table of clips, held whole.
        growth = (large_bytes - small_bytes) / (LARGE - SMALL)
        yield Row.at_most(
            "writer_memory_growth", growth, 1000, "bytes a clip",
            detail=f"{large_bytes / 1e6:.0f} MB for {LARGE:,} clips ({LARGE * BYTES_A_CLIP / 1e6:.0f} MB written), "
            f"{small_bytes / 1e6:.0f} MB for {SMALL:,}",
        )  # fmt: skip

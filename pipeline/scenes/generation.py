"""All tracks of a folder, by several processes; finished ones are kept, whenever the last attempt ended."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from pipeline.errors import OssicleError
from pipeline.scenes import layout
from pipeline.scenes.material import Material
from pipeline.scenes.schedule import Slot
from pipeline.scenes.track import render
from pipeline.scenes_config import ScenesConfig


class SceneWorkerError(OssicleError, RuntimeError):
    """A process that makes scenes ended without a result."""


_given: list[tuple[Path, ScenesConfig, Material]] = []


def generate(
    root: Path,
    slots: Sequence[Slot],
    config: ScenesConfig,
    material: Material,
    *,
    workers: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Make the tracks that ``root`` lacks and return the records of all, in order.

    Args:
        root: the folder; only ever used for one configuration and one material.
        slots: the tracks.
        config: of the scenes.
        material: what they are made of.
        workers: processes; 1 renders in this one.
        progress: called with the number of tracks done since the last call.

    Raises:
        SceneWorkerError: a process ended without a result; finished tracks are kept.
        ManifestError: a track's clips cannot be used.
    """
    for leftover in root.glob("*/.*.tmp"):  # of a process that was killed while it wrote
        leftover.unlink(missing_ok=True)
    records: dict[int, dict[str, Any]] = {}
    for slot in slots:
        record = layout.finished_track(root, slot)
        if record is not None:
            records[slot.number] = record
            progress(1)
    missing = [slot for slot in slots if slot.number not in records]
    if workers <= 1 or len(missing) <= 1:
        for slot in missing:
            records[slot.number] = _made(root, slot, config, material)
            progress(1)
    else:
        _in_processes(root, missing, config, material, workers, records, progress)
    return [records[slot.number] for slot in slots]


def _in_processes(
    root: Path,
    missing: Sequence[Slot],
    config: ScenesConfig,
    material: Material,
    workers: int,
    records: dict[int, dict[str, Any]],
    progress: Callable[[int], None],
) -> None:
    # Spawned, not forked: sound libraries and thread pools of this process would break in a fork.
    context = multiprocessing.get_context("spawn")
    given = (root, config, material)
    with ProcessPoolExecutor(
        min(workers, len(missing)), mp_context=context, initializer=_begin, initargs=given
    ) as pool:
        jobs = {pool.submit(_job, slot): slot for slot in missing}
        try:
            for job in as_completed(jobs):
                records[jobs[job].number] = job.result()
                progress(1)
        except BrokenProcessPool as error:
            raise SceneWorkerError(
                "a process that makes scenes ended without a result, most likely for want of memory",
                run="the same command again: finished tracks are kept; --set scenes.workers=1 takes least memory",
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(root: Path, config: ScenesConfig, material: Material) -> None:
    _given[:] = [(root, config, material)]
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # A killed parent tells its workers nothing, and they would wait for work for ever.
        os._exit(1)


def _job(slot: Slot) -> dict[str, Any]:
    root, config, material = _given[0]
    return _made(root, slot, config, material)


def _made(root: Path, slot: Slot, config: ScenesConfig, material: Material) -> dict[str, Any]:
    track = render(slot, config, material)
    return layout.write_track(root, slot, track, config.sample_rate_hz, stems=config.stems)

"""Everything exact about one ONNX file, and its time on this machine, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifact import file_digest
from pipeline.errors import MeasurementError
from pipeline.measure import latency
from pipeline.measure.activation import arena_of, peak_of
from pipeline.measure.flash import flash_of
from pipeline.measure.graph_profile import executed_graph
from pipeline.measure.int8_share import share_of


def example_log_mel(shape: tuple[int, ...], mean: float, std: float, seed: int = 0) -> np.ndarray:
    """Return a seeded log-mel ``(batch, 1, mels, frames)`` with a student's training mean and deviation."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    return (mean + std * noise).astype(np.float32)


def example_waveform(samples: int, seed: int = 0) -> np.ndarray:
    """Return seeded noise ``(1, samples)`` at an RMS level of -20 dBFS."""
    return (0.1 * np.random.default_rng(seed).standard_normal((1, samples))).astype(np.float32)


def exact_costs(model: Path, value: np.ndarray) -> dict[str, Any]:
    """Return what does not depend on the machine's load: size, MACs that run, int8 share, peak memory.

    Args:
        model: an ONNX file with one input.
        value: its input for one inference (batch 1).

    Returns:
        ``file_sha256``, ``file_kb`` (1024 bytes), ``executed_macs``, ``int8_mac_share``, ``float_ops`` and
        ``peak_activation_bytes`` as ARM runs the file, and ``int8_mac_share_x86`` as x86 does by itself;
        ``arena_bytes`` (``activation.arena_of``), ``weight_bytes`` and ``graph_bytes`` (``flash.flash_of``).
    """
    graph = executed_graph(model, value)
    as_arm = share_of(graph)
    flash = flash_of(model)
    as_x86 = share_of(executed_graph(model, value, int8_everywhere=False))
    return {
        "file_sha256": file_digest(model),
        "file_kb": flash.file_bytes / 1024,
        "weight_bytes": flash.weight_bytes,
        "graph_bytes": flash.graph_bytes,
        "executed_macs": as_arm.macs,
        "int8_mac_share": as_arm.share,
        "int8_mac_share_x86": as_x86.share,
        "float_ops": as_arm.float_ops,
        "peak_activation_bytes": peak_of(graph),
        "arena_bytes": arena_of(graph).size_bytes,
    }


def time_here(model: Path, value: np.ndarray, *, runs: int, seconds: float) -> dict[str, Any]:
    """Return the latency record of ``model`` on one thread here, from a fresh process without torch.

    Raises:
        MeasurementError: the process failed.
    """
    with tempfile.TemporaryDirectory(prefix="ossicle-latency-") as scratch:
        np.save(Path(scratch) / "input.npy", value)
        command = [
            sys.executable, str(Path(latency.__file__)), str(model.resolve()),
            str(Path(scratch) / "input.npy"), "--json", "--runs", str(runs), "--seconds", str(seconds),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch)
    if done.returncode != 0:
        raise MeasurementError(
            f"timing {model.name} failed", got=(done.stderr.strip().splitlines() or ["no message"])[-1]
        )
    record: dict[str, Any] = json.loads(done.stdout)
    return record

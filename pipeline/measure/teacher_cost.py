"""What the teacher costs in torch, as a scale for its students: parameters, MACs, time on one thread."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipeline.config import TeacherConfig
from pipeline.measure import latency
from pipeline.measure.complexity import count_macs, parameter_count
from pipeline.measure.model_cost import example_waveform
from pipeline.teachers.base import Teacher
from pipeline.teachers.registry import build_teacher


def load_teacher(config: TeacherConfig, **options: Any) -> Teacher:
    """Return the teacher in float32 on the CPU, so that its figures stand beside the students'."""
    return build_teacher(config.model_copy(update={"dtype": "float32", "device": "cpu"}), **options)


def teacher_costs(teacher: Teacher, *, runs: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Return the costs of one window: ``teacher`` (network and frontend) and ``frontend`` (None if it has none).

    The teacher's parameters and MACs are the network's; its frontend's matrix products stand apart (their FFT is not
    counted). Its time is of both together, as nothing else runs without the other.
    """
    waveform = torch.from_numpy(example_waveform(teacher.window_samples))
    modules = [value for value in vars(teacher).values() if isinstance(value, nn.Module)]
    frontend = getattr(teacher, "frontend", None)
    frontend_macs = count_macs(frontend, waveform) if isinstance(frontend, nn.Module) else None
    macs = count_macs(teacher.embed, waveform)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x86 = latency.time_calls(lambda: teacher.embed(waveform), warmups=3, runs=runs, seconds=seconds)
        alone = None
        if isinstance(frontend, nn.Module):
            alone = _time_module(frontend, waveform, runs, seconds)
    finally:
        torch.set_num_threads(threads)
    network = {
        "parameters": sum(parameter_count(module) for module in modules),
        "macs": macs - (frontend_macs or 0),
        "input_shape": list(waveform.shape),
        "x86": {**x86, "threads": 1, "runtime": "torch", "dtype": "float32", "frontend_included": True},
    }
    if frontend_macs is None:
        return {"teacher": network}
    return {
        "teacher": network,
        "frontend": {
            "parameters": 0,
            "macs": frontend_macs,
            "input_shape": list(waveform.shape),
            "x86": {**(alone or {}), "threads": 1, "runtime": "torch", "dtype": "float32"},
        },
    }


def _time_module(module: nn.Module, waveform: torch.Tensor, runs: int, seconds: float) -> dict[str, Any]:
    with torch.inference_mode():
        return latency.time_calls(lambda: module(waveform), warmups=3, runs=runs, seconds=seconds)

"""Which number format a teacher runs in on this machine."""

from __future__ import annotations

from pathlib import Path

import torch

from pipeline.config import TeacherConfig
from pipeline.errors import ConfigError


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> tuple[str, set[str]]:
    """Return the first processor's vendor and feature flags; empty where the system has no such file."""
    try:
        text = cpuinfo.read_text(encoding="utf-8")
    except OSError:
        return "", set()
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields.get("vendor_id", ""), set(fields.get("flags", fields.get("Features", "")).split())


def bfloat16_is_faster(device: torch.device, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether ``device`` multiplies bfloat16 in hardware, and faster than float32.

    On the CPU: AMX, AMD's AVX512-BF16 and ARM's FEAT_BF16. Without hardware, oneDNN emulates it.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    vendor, flags = processor(cpuinfo)
    # Intel's AVX512-BF16 without AMX has half the multipliers of float32: 50 ms a block here against 28 ms.
    return "amx_bf16" in flags or "bf16" in flags or ("avx512_bf16" in flags and vendor == "AuthenticAMD")


def resolve(config: TeacherConfig) -> tuple[torch.device, torch.dtype]:
    """Return the device and dtype that ``config`` means here.

    Raises:
        ConfigError: a device that torch does not know or cannot reach.
    """
    try:
        device = torch.device(config.device)
    except RuntimeError as error:
        raise ConfigError(
            "teacher.device is no device", expected="cpu, cuda or cuda:N", got=config.device
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(
            "teacher.device is not supported", expected="cpu, cuda or cuda:N", got=config.device
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"teacher.device {config.device} is not there", got=f"{torch.cuda.device_count()} CUDA devices",
            run="--set embed.teacher.device=cpu",
        )  # fmt: skip
    if config.dtype == "auto":
        return device, torch.bfloat16 if bfloat16_is_faster(device) else torch.float32
    return device, torch.bfloat16 if config.dtype == "bfloat16" else torch.float32

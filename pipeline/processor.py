"""What number formats this processor multiplies fast."""

from __future__ import annotations

from pathlib import Path

import torch


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

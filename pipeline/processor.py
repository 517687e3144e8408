"""Which device a recipe means, and what number formats it multiplies fast."""

from __future__ import annotations

from pathlib import Path

import torch

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


def device_of(name: str, key: str) -> torch.device:
    """Return the device called ``name``.

    Args:
        name: ``cpu``, ``cuda`` or ``cuda:N``.
        key: the recipe's key that holds it, for the message.

    Raises:
        ConfigError: torch does not know it, it is of another kind, or it is not there.
    """
    expected = "cpu, cuda or cuda:N"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"{key} is no device", expected=expected, got=name) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"{key} is not supported", expected=expected, got=name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        got = f"{torch.cuda.device_count()} CUDA devices, torch {torch.__version__}"
        raise ConfigError(f"{key} = {name} is not there", got=got, run=f"--set {key}=cpu")
    return device

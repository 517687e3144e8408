"""Names of ARM cores by their part number, and whether a core is a board's or a server's."""

from __future__ import annotations

from typing import Any

# Arm's part numbers (implementer 0x41): the technical reference manuals' MIDR_EL1, as in Linux's cputype.h.
_BOARDS = {
    "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57", "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76", "0xd0d": "Cortex-A77", "0xd41": "Cortex-A78",
    "0xd46": "Cortex-A510", "0xd47": "Cortex-A710", "0xd44": "Cortex-X1", "0xd48": "Cortex-X2",
}  # fmt: skip
_SERVERS = {
    "0xd0c": "Neoverse N1", "0xd40": "Neoverse V1", "0xd49": "Neoverse N2", "0xd4f": "Neoverse V2",
    "0xd83": "Neoverse V3", "0xd84": "Neoverse V3", "0xd8e": "Neoverse N3",
}  # fmt: skip
_ARM = "0x41"


def is_server(processor: dict[str, Any]) -> bool:
    """Whether ``latency.processor()`` describes a server's core, whose times say little of a device's."""
    part = processor.get("part")
    # Ampere and the like build their own cores, for servers alone.
    own = processor.get("implementer") in ("0xc0", "0x43", "0x48", "0x6d")
    return (processor.get("implementer") == _ARM and part in _SERVERS) or own


def core_name(processor: dict[str, Any]) -> str:
    """Return what a processor is in a few words: "Cortex-A76 board core", "Neoverse N2 server core", or its name."""
    part = str(processor.get("part"))
    if is_server(processor):
        return f"{_SERVERS.get(part, 'own design, part ' + part)} server core"
    if processor.get("implementer") == _ARM and part in _BOARDS:
        return f"{_BOARDS[part]} board core"
    return str(processor.get("name") or f"{processor.get('machine') or 'unknown'} core, part {part}")

"""Where stages print."""

from __future__ import annotations

import sys
from typing import Any


def console() -> Any:
    """Return a rich console on stderr."""
    from rich.console import Console

    # A log has no width of its own: tables are written whole instead of being cut at 80 columns.
    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 160)

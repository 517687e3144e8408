"""A distribution of somebody else's, as an installer leaves it: one module and its entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def installed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: str, names: Mapping[str, str]
) -> Iterator[None]:
    """Put ``somebodys_<kind>`` on ``sys.path``, whose ``names`` are entry points of the group ``ossicle.<kind>``."""
    module = f"somebodys_{kind}"
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{module}.py").write_text(code)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: somebodys-{kind}\nVersion: 1.0\n")
    lines = [f"[ossicle.{kind}]", *(f"{name} = {module}:{target}" for name, target in names.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop(module, None)

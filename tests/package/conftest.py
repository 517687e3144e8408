"""One exported run and one package of it serve the whole folder: the exporter takes seconds."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from stages import package
from tests.package import made_run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a non-commercial teacher."""
    return made_run.make(tmp_path_factory.mktemp("package") / "artifacts")


@pytest.fixture(scope="session")
def packed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its package as a folder."""
    folder = tmp_path_factory.mktemp("packed") / "model"
    return package.run(str(trained), console=Console(file=io.StringIO()), to=folder)

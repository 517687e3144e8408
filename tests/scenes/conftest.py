"""One manifest and one folder of small scenes for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.recipe import overridden
from stages import scenes as stage
from stages.console import console
from tests.scenes import material_folder
from tests.scenes.material_folder import settings


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished manifest."""
    return material_folder.write(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="session")
def scenes(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished folder of scenes with stems."""
    pytest.importorskip("pyroomacoustics")
    recipe = overridden(settings(clips, tmp_path_factory.mktemp("scenes")))
    return stage.run(recipe, console=console())

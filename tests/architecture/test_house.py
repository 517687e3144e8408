"""The house rules that a machine can check."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
SOURCES = sorted(p for folder in ("pipeline", "stages", "tests") for p in (TOP / folder).rglob("*.py"))
FORBIDDEN_NAMES = re.compile(r"(?:^|_)(?:utils?|helpers?|common|manager|wrapper|v2|misc)(?:_|$)")


def test_no_source_file_is_over_400_lines() -> None:
    long = {str(p.relative_to(TOP)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def test_files_are_named_for_what_they_hold() -> None:
    assert not [
        str(p.relative_to(TOP)) for p in SOURCES if FORBIDDEN_NAMES.search(p.stem.replace("mobilevitv2", ""))
    ]


def test_import_contracts_hold() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint_imports, "--no-cache"], cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


def test_import_contracts_would_notice(tmp_path: Path) -> None:
    """A contract that cannot break proves nothing: the same rules on a copy with one wrong import must fail."""
    import shutil

    for name in ("pipeline", "stages"):
        shutil.copytree(TOP / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(TOP / "pyproject.toml", tmp_path)
    losses = tmp_path / "pipeline" / "losses" / "__init__.py"
    losses.write_text(losses.read_text() + "\nimport pipeline.audio.decode\n")
    lint_imports = Path(sys.executable).with_name("lint-imports")
    environment = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [lint_imports, "--no-cache"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "stage 2 never opens audio" in done.stdout


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(TOP)))
def test_nothing_is_left_unfinished(path: Path) -> None:
    if path == Path(__file__):
        pytest.skip("this file names the words it looks for")
    words = re.findall(
        r"\b(?:TODO|FIXME|XXX|NotImplementedError)\b|except Exception:\s*pass", path.read_text()
    )
    assert not words


def test_every_manifest_row_has_a_licence() -> None:
    import csv

    for path in sorted((TOP / "data_manifests").rglob("*.csv")):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows, path
        assert all(row.get("licence") for row in rows), path

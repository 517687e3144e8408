"""Environments: built once from pins, marked last, clear about what stopped them; from a folder of wheels alone."""

from __future__ import annotations

import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.deploy.runtimes import environment
from pipeline.deploy.runtimes.environment import (
    EXECUTORCH,
    Environment,
    folder_of,
    is_ready,
    prepare,
    python_of,
)
from pipeline.errors import MissingDependencyError, OssicleError


def wheel(folder: Path, name: str, version: str, source: str) -> None:
    """Write a wheel of one module."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, content in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, content)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    """An environment of one tiny package, found in a folder alone."""
    wheel(tmp_path / "wheels", "ossicle_probe", "1.2", "WORD = 'stapes'\n")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return Environment("small", (("ossicle_probe==1.2",),), ("ossicle_probe",), disk_mb=1)


def test_it_is_built_once_and_an_interrupted_build_is_begun_again(small: Environment, tmp_path: Path) -> None:
    folder = folder_of(small, tmp_path)
    # What a killed build leaves: files, no marker.
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text("half")
    assert not is_ready(small, tmp_path)
    told: list[str] = []
    python = prepare(small, tmp_path, told.append)
    said = subprocess.run(
        [str(python), "-c", "import ossicle_probe; print(ossicle_probe.WORD)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.strip() == "stapes"
    assert any("ossicle_probe==1.2" in line for line in told)
    again: list[str] = []
    assert prepare(small, tmp_path, again.append) == python and again == []


def test_what_cannot_be_fetched_is_named_and_nothing_counts_as_built(
    small: Environment, tmp_path: Path
) -> None:
    absent = replace(small, steps=(("ossicle_absent==9.9",),))
    with pytest.raises(MissingDependencyError) as stopped:
        prepare(absent, tmp_path, lambda line: None)
    assert "ossicle_absent" in str(stopped.value) and "network" in str(stopped.value)
    assert not is_ready(absent, tmp_path)
    with pytest.raises(MissingDependencyError, match="not built") as unbuilt:
        python_of(absent, tmp_path)
    assert "make runtimes" in str(unbuilt.value)


def test_a_full_disk_is_told_before_anything_is_fetched(small: Environment, tmp_path: Path) -> None:
    with pytest.raises(OssicleError, match="too little space"):
        prepare(replace(small, disk_mb=10**9), tmp_path, lambda line: None)
    assert not folder_of(small, tmp_path).exists()


def test_other_pins_are_another_environment() -> None:
    other = replace(EXECUTORCH, steps=(("torch==2.13.1",), *EXECUTORCH.steps[1:]))
    assert other.digest != EXECUTORCH.digest
    pins = [pin for step in EXECUTORCH.steps for pin in step]
    assert all("==" in pin for pin in pins), "an open version makes two builds of one name differ"
    assert EXECUTORCH.steps[0] == ("torch==2.13.0",), "torch alone first: its build is the index's choice"
    assert environment.MARKER not in EXECUTORCH.check

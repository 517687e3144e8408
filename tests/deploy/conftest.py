"""One export of the tiny student serves the whole folder; the exporter takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.deploy.onnx_export import export_student
from tests.deploy import tiny


@pytest.fixture(scope="session")
def student() -> tiny.TinyStudent:
    return tiny.TinyStudent().eval()


@pytest.fixture(scope="session")
def fp32(student: tiny.TinyStudent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "student_fp32.onnx"
    export_student(student, path, metadata=tiny.metadata())
    return path

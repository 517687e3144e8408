"""One float and one int8 graph for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.measure import graphs


@pytest.fixture(scope="session")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return graphs.save_two_convolutions(tmp_path_factory.mktemp("graphs") / "fp32.onnx")


@pytest.fixture(scope="session")
def s8s8(fp32: Path) -> Path:
    return graphs.save_int8(fp32, fp32.with_name("s8s8.onnx"))

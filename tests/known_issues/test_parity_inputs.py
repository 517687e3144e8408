"""Exporting a trained MicroNet M0 failed its parity gate on noise, though it agreed to 1e-6 on real sound."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.deploy.onnx_export import export_student
from pipeline.deploy.parity import check_parity, log_mel_inputs
from pipeline.errors import ParityError
from tests.deploy import tiny


class AmplifiesTheUnheard(tiny.TinyStudent):
    """Turns rounding into large differences where the input is above anything that was stored."""

    def __init__(self, ceiling: float) -> None:
        super().__init__()
        self.ceiling = ceiling

    def forward(self, log_mel: Tensor) -> Tensor:
        unheard = torch.relu(log_mel - self.ceiling).sum(dim=(1, 2, 3))
        return super().forward(log_mel) + torch.sin(1e6 * unheard)[:, None]


def test_the_gate_hears_what_the_store_holds(tmp_path: Path) -> None:
    rows = tiny.noise_rows()
    student = AmplifiesTheUnheard(float(rows.max())).eval()
    export_student(student, tmp_path / "student.onnx", metadata=tiny.metadata())
    assert check_parity(student, tmp_path / "student.onnx", log_mel_inputs(rows), tolerance=1e-4).worst < 1e-5
    loud = np.abs(rows) * 3
    with pytest.raises(ParityError, match="differs from torch"):
        check_parity(student, tmp_path / "student.onnx", log_mel_inputs(loud), tolerance=1e-4)

"""Small networks that between them use every operator of the C form, quantised as an export is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import ExportConfig, StudentConfig
from pipeline.deploy import int8
from pipeline.deploy.calibration import CalibrationRows
from pipeline.deploy.onnx_export import export_student
from pipeline.students.checker import Clips, measure_statistics
from pipeline.students.classifier import WithClassifier
from pipeline.students.normalised import NormalisedStudent
from pipeline.students.registry import build_student
from tests.deploy import tiny

CALIBRATION, HELD_OUT = 24, 12


class EveryOperator(nn.Module):
    """Grouped, depthwise, dilated and strided convolutions, sums, pools, clamps, a gain a channel, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Conv2d(1, 12, (5, 3), stride=(2, 1), padding=(2, 1))
        self.grouped = nn.Conv2d(12, 18, 3, padding=2, dilation=2, groups=3, bias=False)
        self.depthwise = nn.Conv2d(18, 18, 3, stride=2, padding=1, groups=18)
        self.pointwise = nn.Conv2d(18, 18, 1)
        self.gate = nn.Linear(18, 18)
        self.last = nn.Linear(36, tiny.DIM)

    def forward(self, log_mel: Tensor) -> Tensor:
        x = F.relu6(self.first((log_mel - tiny.MEAN) / tiny.STD))
        x = F.max_pool2d(torch.relu(self.grouped(x)), 2, ceil_mode=True)
        y = torch.relu(self.depthwise(x))
        shortcut = F.avg_pool2d(x, 3, 2, padding=1)
        y = torch.relu(self.pointwise(y) + shortcut)
        y = y * torch.relu(self.gate(y.mean(dim=(2, 3))))[:, :, None, None]
        pooled = torch.cat([y.mean(dim=(2, 3)), y.amax(dim=(2, 3))], dim=1)
        return self.last(pooled)


class FloatMap(tiny.TinyStudent):
    """A sigmoid over a map, of which C has no form."""

    def forward(self, log_mel: Tensor) -> Tensor:
        hidden = torch.sigmoid(self.first((log_mel - tiny.MEAN) / tiny.STD))
        return self.last(torch.relu(self.second(hidden)).mean(dim=(2, 3)))


def family(name: str, width: float = 1.0, embedding_dim: int | None = None) -> nn.Module:
    """Return a student of the registry at random weights, its statistics measured on dummy clips."""
    torch.manual_seed(0)
    config = StudentConfig(name=name, width=width, embedding_dim=embedding_dim)
    student = NormalisedStudent(build_student(config, tiny.MELS), tiny.MEAN, tiny.STD)
    measure_statistics(student, Clips(tiny.MELS, 0))
    for parameter_name, parameter in student.named_parameters():
        # Published starts of 0 would leave response normalisation out.
        if parameter_name.endswith(("gamma", "beta")):
            nn.init.uniform_(parameter, 0.1, 0.4)
    return student.eval()


def with_classes(student: nn.Module, dim: int, classes: int = 5) -> nn.Module:
    """Return ``student`` with a random classifier of its ``dim`` features: a second output."""
    torch.manual_seed(2)
    return WithClassifier(student, nn.Linear(dim, classes)).eval()


def quantised(network: nn.Module, folder: Path, dim: int = tiny.DIM, **settings: object) -> Path:
    """Export and quantise ``network`` into ``folder``; return the S8S8 file."""
    described = tiny.metadata(embedding_dim=dim)
    export_student(network.eval(), folder / "student_fp32.onnx", metadata=described)
    log_mels = tiny.log_mels(CALIBRATION + HELD_OUT)[:, None]
    rows = CalibrationRows(log_mels[:CALIBRATION], log_mels[CALIBRATION:], "validation")
    config = ExportConfig(int8_min_cosine=-1.0, calibration_clips=CALIBRATION, **settings)
    int8.quantise(folder / "student_fp32.onnx", folder, rows=rows, config=config, metadata=described)
    return folder / "student_s8s8.onnx"


def clips(frames: int, number: int = HELD_OUT) -> np.ndarray:
    """Return (number, 1, mels, frames) float32 of the students' distribution: whole sounds, cut or joined."""
    drawn = tiny.log_mels(4 * number, seed=3)
    joined = np.concatenate(list(drawn), axis=1)
    starts = np.arange(number) * 61
    columns = (starts[:, None] + np.arange(frames)[None, :]) % joined.shape[1]
    return np.ascontiguousarray(joined[:, columns].transpose(1, 0, 2)[:, None])

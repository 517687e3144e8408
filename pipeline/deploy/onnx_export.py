"""A student as an ONNX file: dynamo exporter, batch and time dynamic, metadata inside."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from pipeline import artifact
from pipeline.deploy import metadata as metadata_props
from pipeline.deploy.metadata import ExportMetadata
from pipeline.errors import OssicleError
from pipeline.students.classifier import WithClassifier

INPUT, OUTPUT, LOGITS = "log_mel", "embedding", "logits"
EXPORT_BATCH, EXPORT_FRAMES = 2, 115


def export_student(student: nn.Module, path: Path, *, metadata: ExportMetadata, opset: int = 20) -> None:
    """Write ``student``: ``log_mel`` float32 (batch, 1, mels, time) to ``embedding`` (batch, dim).

    Of a student with its classifier the file has a second output, ``logits`` (batch, classes). Both ``batch`` and
    ``time`` are dynamic and so named. The student is put in evaluation mode.

    Args:
        student: takes (batch, 1, mels, frames) float32, returns (batch, dim); or a ``WithClassifier``.
        path: the file to write; written whole or not at all.
        metadata: embedded as ``metadata_props``; its frontend gives the number of mels.
        opset: ONNX operator set.

    Raises:
        OssicleError: the exporter refuses the network.
    """
    mels = metadata.frontend.mels
    example = torch.zeros(EXPORT_BATCH, 1, mels, EXPORT_FRAMES)
    student.eval()
    with artifact.replacing(path) as temporary:
        export_module(
            student,
            (example,),
            temporary,
            input_name=INPUT,
            output_names=(OUTPUT, LOGITS) if isinstance(student, WithClassifier) else (OUTPUT,),
            dynamic={0: "batch", 3: "time"},
            opset=opset,
        )
        metadata_props.embed(temporary, metadata.properties())


def export_module(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    *,
    input_name: str,
    output_names: tuple[str, ...],
    dynamic: dict[int, str],
    opset: int,
) -> None:
    """Run the dynamo exporter quietly; ``dynamic`` maps input axes to their names.

    Raises:
        OssicleError: the network cannot be exported at this operator set.
    """
    export_graph(
        module, example, path, input_names=[input_name], output_names=list(output_names), dynamic=(dynamic,),
        opset=opset,
    )  # fmt: skip


def export_graph(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    *,
    input_names: list[str],
    output_names: list[str],
    dynamic: tuple[Any, ...],
    opset: int,
) -> None:
    """Run the dynamo exporter quietly on any number of inputs; ``dynamic`` is torch's ``dynamic_shapes``.

    Raises:
        OssicleError: the network cannot be exported at this operator set.
    """
    try:
        with quiet_exporter(), torch.no_grad():
            torch.onnx.export(
                module,
                example,
                str(path),
                input_names=input_names,
                output_names=output_names,
                dynamo=True,
                dynamic_shapes=dynamic,
                opset_version=opset,
                external_data=False,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OssicleError(
            f"the ONNX exporter refused {type(module).__name__}",
            expected=f"operators of opset {opset} that keep {', '.join(input_names[:1])}'s axes dynamic",
            got=first,
            run="for MobileViT use student.odd_size=pad; otherwise try another export.opset",
        ) from error
    # The exporter keeps its own operator set, with no more than a log line, where it cannot convert.
    got = next(o.version for o in onnx.load(str(path)).opset_import if o.domain in ("", "ai.onnx"))
    if got != opset:
        raise OssicleError(
            "the ONNX exporter could not write this operator set", expected=opset, got=got,
            run=f"--set export.opset={got}",
        )  # fmt: skip


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence the exporters' progress chatter and deprecation notes of their own code; errors still raise."""
    # The root logger too: ONNX Runtime's quantiser warns through it of each scalar it leaves alone.
    names = (
        "", "torch", "torch.onnx", "torch.export", "torch._dynamo", "torch.fx.experimental", "torch.utils._sympy",
        "onnxscript", "onnx_ir", "onnxruntime.tools",
    )  # fmt: skip
    before: list[tuple[logging.Logger, Any]] = []
    for name in names:
        logger = logging.getLogger(name)
        before.append((logger, logger.level))
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in before:
            logger.setLevel(level)

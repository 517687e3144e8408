"""What each layer costs in int8: quantised alone, and left in float alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.deploy.fidelity import Fidelity, Judge
from pipeline.deploy.int8_graph import Calibrated, Ops, write_quantised
from pipeline.deploy.layers import Layer


@dataclass(frozen=True)
class Sensitivity:
    """One layer's cost.

    Attributes:
        layer: which.
        alone: the float file with this layer alone in int8.
        spared: the int8 file with this layer alone in float; None where it was not measured.
    """

    layer: Layer
    alone: Fidelity
    spared: Fidelity | None = None

    @property
    def loss(self) -> float:
        """Return what the layer alone takes from the centred cosine."""
        return max(0.0, 1.0 - self.alone.centred_cosine)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "name": self.layer.name,
            "operator": self.layer.operator,
            "nodes": len(self.layer.nodes),
            "macs": self.layer.macs,
            "elements": self.layer.elements,
            "parameters": self.layer.parameters,
            "alone": self.alone.as_json(),
            "spared": None if self.spared is None else self.spared.as_json(),
            "loss": self.loss,
            "loss_per_million_operations": 1e6 * self.loss / max(self.layer.operations, 1),
        }


def sweep(
    calibrated: Calibrated,
    layers: Sequence[Layer],
    judge: Judge,
    work: Path,
    *,
    ops: Ops,
    spared: bool,
    done: Callable[[str], None] = lambda name: None,
) -> list[Sensitivity]:
    """Measure every layer; the costliest alone first.

    Args:
        calibrated: graph and ranges.
        layers: of ``pipeline.deploy.layers``; operators that multiply nothing are left out where ``ops`` is
            ``conv_matmul``.
        judge: compares with the float file.
        work: folder of the trial files.
        ops: what the whole int8 file would quantise.
        spared: measure each layer left in float alone, too.
        done: called with the name of each layer that is measured.
    """
    trial = work / "sensitivity.onnx"
    found = []
    for layer in layers:
        if ops == "conv_matmul" and not layer.macs:
            continue
        write_quantised(calibrated, trial, "s8s8", "all", only=layer.nodes)
        alone = judge.fidelity(trial)
        without = None
        if spared:
            write_quantised(calibrated, trial, "s8s8", ops, layer.nodes)
            without = judge.fidelity(trial)
        found.append(Sensitivity(layer, alone, without))
        done(layer.name)
    return sorted(found, key=lambda one: -one.loss)

"""The int8 graph in torch against ONNX Runtime's integers, and the trained numbers in the files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from pipeline.config import ExportConfig
from pipeline.deploy.int8_graph import calibrate, write_quantised
from pipeline.deploy.onnx_export import export_student
from pipeline.deploy.portable_steps import portable_steps
from pipeline.deploy.sessions import open_session, run_session
from pipeline.errors import OssicleError
from pipeline.quantisation import writer
from pipeline.quantisation.graph import QuantisedGraph, key
from tests.deploy import tiny

ROWS = 24


class Gated(nn.Module):
    """What CNN students are made of: folded batch norm, group norms, hard-swish, a squeeze gate, a residual."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.gate = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 8), nn.Hardsigmoid())
        # Two, so that they share the constants that the exporter writes for them.
        self.first_group, self.second_group = nn.GroupNorm(1, 8), nn.GroupNorm(1, 8)
        self.last = nn.Linear(16, tiny.DIM)
        for norm in (self.stem[1], self.depthwise[1]):
            nn.init.uniform_(norm.weight, 0.5, 2.0)
            nn.init.normal_(norm.bias)

    def forward(self, log_mel: Tensor) -> Tensor:
        hidden = self.stem((log_mel - tiny.MEAN) / tiny.STD)
        hidden = self.first_group(self.depthwise(hidden)) + self.second_group(hidden)
        hidden = hidden * self.gate(hidden.mean(dim=(2, 3)))[:, :, None, None]
        return self.last(torch.cat([hidden.mean(dim=(2, 3)), hidden.amax(dim=(2, 3))], dim=1))


@dataclass(frozen=True)
class Start:
    """A calibrated int8 file, and what its torch form is made of."""

    path: Path
    model: onnx.ModelProto
    floats: dict[str, np.ndarray]

    def graph(self) -> QuantisedGraph:
        return QuantisedGraph(self.model, self.floats).eval()


@pytest.fixture(scope="module")
def log_mels() -> np.ndarray:
    return tiny.log_mels(ROWS)[:, None]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, log_mels: np.ndarray) -> Start:
    folder = tmp_path_factory.mktemp("start")
    export_student(Gated().eval(), folder / "fp32.onnx", metadata=tiny.metadata())
    calibrated = calibrate(folder / "fp32.onnx", folder, log_mels, ExportConfig())
    write_quantised(calibrated, folder / "s8s8.onnx", "s8s8", "all")
    stored = onnx.load(str(calibrated.model)).graph.initializer
    return Start(
        folder / "s8s8.onnx",
        onnx.load(str(folder / "s8s8.onnx")),
        {t.name: numpy_helper.to_array(t) for t in stored},
    )


def last_step(model: onnx.ModelProto) -> float:
    """Return the step of the embedding: what one integer more is worth there."""
    node = next(n for n in model.graph.node if model.graph.output[0].name in n.output)
    assert node.op_type == "DequantizeLinear"
    return float(initializers(model)[node.input[1]])


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def save(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, str(path))
    return path


def in_torch(graph: QuantisedGraph, log_mels: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return graph(torch.from_numpy(log_mels)).numpy()


def moved(graph: QuantisedGraph) -> QuantisedGraph:
    """Return the graph after a training that changed every number a little."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in graph.weights.values():
            weight.add_(0.05 * weight.abs().mean() * torch.randn(weight.shape, generator=generator))
        for log_step in graph.log_steps.values():
            log_step.add_(0.1 * torch.randn(log_step.shape, generator=generator))
    return graph


def test_the_torch_graph_is_onnx_runtimes_to_one_step(start: Start, log_mels: np.ndarray) -> None:
    got = in_torch(start.graph(), log_mels)
    want = run_session(open_session(start.path), log_mels)
    step = last_step(start.model)
    assert np.abs(got - want).max() <= 1.01 * step
    assert np.abs(want).max() > 20 * step


def test_it_runs_at_lengths_that_it_was_not_exported_at(start: Start, log_mels: np.ndarray) -> None:
    longer = np.concatenate([log_mels[:3], log_mels[3:6, :, :, :7]], axis=3)
    want = run_session(open_session(start.path), longer)
    assert np.abs(in_torch(start.graph(), longer) - want).max() <= 1.01 * last_step(start.model)


def test_trained_numbers_are_the_files_numbers(start: Start) -> None:
    graph = moved(start.graph())
    found, before = initializers(writer.signed_model(start.model, graph)), initializers(start.model)
    assert len(graph.step_names) > 10
    for name in graph.step_names:
        np.testing.assert_array_equal(found[name], graph.step(name).detach().numpy())
        assert (found[name] != before[name]).any()
    for name, weight in graph.weight_of.items():
        step = found[weight.rounding.step]
        shape = (-1, *[1] * (found[weight.stored].ndim - 1)) if step.ndim else ()
        axis = weight.rounding.axis or 0
        assert axis == 0
        values = graph.weights[key(name)].detach().numpy()
        want = np.clip(np.round(values / step.reshape(shape)), -127, 127)
        np.testing.assert_array_equal(found[weight.stored], want.astype(np.int8))
    assert graph.bias_of
    for name, bias in graph.bias_of.items():
        np.testing.assert_allclose(
            found[bias.stored_step], found[bias.input_step] * found[bias.weight_step], rtol=1e-6
        )
        values = graph.weights[key(name)].detach().numpy()
        assert (
            np.abs(found[bias.stored] * found[bias.stored_step] - values).max()
            <= 0.51 * found[bias.stored_step].max()
        )
    untouched = {name for name in found if found[name].dtype == np.int8 and found[name].size == 1}
    assert all(found[name] == before[name] for name in untouched)


def test_a_trained_file_gives_what_was_trained_to_one_step(
    start: Start, log_mels: np.ndarray, tmp_path: Path
) -> None:
    graph = moved(start.graph())
    signed = writer.signed_model(start.model, graph)
    got = run_session(open_session(save(signed, tmp_path / "s8s8.onnx")), log_mels)
    want = in_torch(graph, log_mels)
    assert np.abs(got - want).max() <= 1.01 * last_step(signed)
    untrained = run_session(open_session(start.path), log_mels)
    assert np.abs(got - untrained).max() > 3 * last_step(signed)


def test_a_portable_file_gives_what_its_graph_gives_and_is_close_to_what_was_trained(
    start: Start, log_mels: np.ndarray, tmp_path: Path
) -> None:
    graph = moved(start.graph())
    trained = in_torch(graph, log_mels)
    model = writer.portable_model(start.model, graph)
    assert portable_steps(model) == {}
    assert portable_steps(writer.signed_model(start.model, moved(start.graph())))
    got = run_session(open_session(save(model, tmp_path / "s8s8.onnx")), log_mels)
    step = last_step(model)
    assert np.abs(got - in_torch(graph, log_mels)).max() <= 1.01 * step
    assert np.abs(got - trained).max() <= 4 * step
    found = initializers(model)
    for bias in graph.bias_of.values():
        np.testing.assert_allclose(
            found[bias.stored_step], found[bias.input_step] * found[bias.weight_step], rtol=3e-6
        )


def test_the_unsigned_file_gives_the_same_numbers(start: Start, log_mels: np.ndarray, tmp_path: Path) -> None:
    signed = writer.signed_model(start.model, moved(start.graph()))
    unsigned = writer.unsigned_model(signed)
    onnx.checker.check_model(unsigned)
    kinds = {
        initializers(unsigned)[n.input[2]].dtype for n in unsigned.graph.node if n.op_type == "QuantizeLinear"
    }
    assert kinds == {np.dtype(np.uint8)}
    first, second = (
        run_session(open_session(save(model, tmp_path / f"{place}.onnx")), log_mels)
        for place, model in enumerate((signed, unsigned))
    )
    assert np.abs(first - second).max() <= 1.01 * last_step(signed)


def test_every_weight_and_step_gets_a_gradient(start: Start, log_mels: np.ndarray) -> None:
    graph = start.graph().train()
    graph(torch.from_numpy(log_mels)).square().mean().backward()
    without = [name for name, parameter in graph.named_parameters() if parameter.grad is None]
    assert not without
    flat = [name for name, parameter in graph.named_parameters() if not bool(parameter.grad.any())]
    assert len(flat) <= 1, flat  # a ReLU's own range may fit without loss


def test_a_file_that_is_quantised_in_another_way_is_refused(start: Start) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(start.model)
    pair = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    pair.input[1], steps = next(iter(start.graph().step_names)), pair.input[1]
    if pair.input[1] == steps:
        pair.input[1] = start.graph().step_names[1]
    with pytest.raises(OssicleError, match="does not know"):
        QuantisedGraph(model, start.floats)


def test_a_weight_without_its_float_form_is_named(start: Start) -> None:
    with pytest.raises(OssicleError, match="float graph has no"):
        QuantisedGraph(start.model, {})


def test_a_tensor_that_is_only_moved_keeps_one_step(tmp_path: Path) -> None:
    """Two halves change places and keep their integers; trained apart, each would be converted to the other's step."""

    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(4)
            self.first, self.last = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)

        def forward(self, log_mel: Tensor) -> Tensor:
            hidden = self.first((log_mel - tiny.MEAN) / tiny.STD)
            hidden = self.last(torch.cat([hidden[:, 4:], hidden[:, :4]], dim=1))
            return hidden.mean(dim=(2, 3))

    log_mels = tiny.log_mels(ROWS)[:, None]
    export_student(Shifted().eval(), tmp_path / "fp32.onnx", metadata=tiny.metadata())
    calibrated = calibrate(tmp_path / "fp32.onnx", tmp_path, log_mels, ExportConfig())
    write_quantised(calibrated, tmp_path / "s8s8.onnx", "s8s8", "all")
    model = onnx.load(str(tmp_path / "s8s8.onnx"))
    floats = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(calibrated.model)).graph.initializer}
    graph = QuantisedGraph(model, floats).eval()
    made_by = {name: node for node in model.graph.node for name in node.output}
    concat = next(node for node in model.graph.node if node.op_type == "Concat")
    after = next(node for node in model.graph.node if node.input and node.input[0] == concat.output[0])
    steps = {after.input[1], *(made_by[name].input[1] for name in concat.input)}
    assert len(steps) > 1
    assert len({id(graph.log_step(name)) for name in steps}) == 1
    others = set(graph.step_names) - steps
    assert all(id(graph.log_step(name)) != id(graph.log_step(after.input[1])) for name in others)
    found = initializers(writer.signed_model(model, moved(graph)))
    assert len({found[name].item() for name in steps}) == 1
    got = run_session(
        open_session(save(writer.signed_model(model, graph), tmp_path / "moved.onnx")), log_mels
    )
    assert np.abs(got - in_torch(graph, log_mels)).max() <= 1e-5 * np.abs(got).max() + last_mean_step(found)


def last_mean_step(found: dict[str, np.ndarray]) -> float:
    """Return the largest step of a tensor: more than one integer of it is worth in a mean."""
    return max(
        float(value.item()) for name, value in found.items() if name.endswith("_scale") and value.size == 1
    )

"""The per-layer breakdown: hand counts, the sums of the whole, and how looks at the clock are divided."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import MeasurementError, MissingDependencyError
from pipeline.measure import arm, arm_layers, arm_root, layers
from pipeline.measure.activation import peak_activation_bytes
from stages.report_page.layer_figure import SHOWN, layer_figure, standalone_svg
from tests.measure import graphs

WEIGHTS = graphs.CHANNELS * 9 + graphs.CHANNELS**2 * 9


def test_each_convolution_has_its_own_macs_and_weights(fp32: Path) -> None:
    found = [layer for layer in layers.layers(fp32, graphs.value(), runs=3) if layer.macs]
    assert [layer.macs for layer in found] == [graphs.FIRST_MACS, graphs.SECOND_MACS]
    assert [layer.parameters for layer in found] == [graphs.CHANNELS * 9, graphs.CHANNELS**2 * 9]
    assert {layer.kind for layer in found} == {"float"}
    assert found[1].output_shape == (1, graphs.CHANNELS, graphs.ROWS, graphs.COLUMNS)


def test_shares_sum_to_one_and_the_busiest_layer_is_the_peak(fp32: Path, s8s8: Path) -> None:
    for path in (fp32, s8s8):
        found = layers.layers(path, graphs.value(), runs=3)
        assert sum(layer.time_share for layer in found) == pytest.approx(1.0)
        assert max(layer.live_bytes for layer in found) == peak_activation_bytes(path, graphs.value())


def test_int8_layers_keep_the_weights_and_name_their_kind(s8s8: Path) -> None:
    found = layers.layers(s8s8, graphs.value(), runs=2)
    kinds = {layer.op: layer.kind for layer in found}
    assert kinds["QLinearConv"] == "int8"
    assert kinds["QuantizeLinear"] == "conversion"
    # Scales and zero points are no parameters.
    assert sum(layer.parameters for layer in found) == WEIGHTS
    sums = {row["op"]: row for row in layers.by_operator(found)}
    assert sums["QLinearConv"]["nodes"] == 2
    assert sums["QLinearConv"]["macs"] == graphs.MACS
    assert layers.from_json(layers.as_json(found)) == found


def test_the_table_holds_every_layer(s8s8: Path) -> None:
    found = layers.layers(s8s8, graphs.value(), runs=2)
    text = layers.markdown(found, "two convolutions")
    assert text.count("\n| ") == 2 + 2 + len(found) + len(layers.by_operator(found))
    assert f"{graphs.SECOND_MACS:,}" in text
    assert "instructions" not in text
    counted = layers.markdown([replace(layer, instructions=1_234) for layer in found], "counted")
    assert counted.count("1,234 |") >= len(found)


def test_the_plot_is_an_svg_of_its_own(fp32: Path) -> None:
    found = layers.layers(fp32, graphs.value(), runs=1)
    drawn = standalone_svg(layer_figure(found, "A <small> network"), "a")
    root = ElementTree.fromstring(drawn)
    texts = "".join(root.itertext())
    for part in ("A <small> network", found[0].label, "time on x86", "live memory", "float"):
        assert part in texts
    assert b"currentColor" not in drawn
    assert not any(
        "href" in name and not value.startswith("#") for e in root.iter() for name, value in e.items()
    )


def test_a_long_graph_draws_its_costliest_layers(fp32: Path) -> None:
    one = layers.layers(fp32, graphs.value(), runs=1)[0]
    many = [replace(one, index=i, instructions=i) for i in range(SHOWN + 30)]
    texts = "".join(ElementTree.fromstring(standalone_svg(layer_figure(many, "long"), "b")).itertext())
    assert "30 others" in texts
    assert "executed ARM instructions" in texts
    assert many[-1].label in texts
    assert f"{many[5].label}<" not in texts


def _event(name: str) -> dict[str, Any]:
    return {"cat": "Node", "name": f"{name}_kernel_time"}


def test_looks_at_the_clock_are_divided_among_nodes() -> None:
    # node1 was moved into another layout first; in every node the profiler itself executes 30.
    ran = ["node0", "Transpose_token_1", "node1_token_2"]
    events = [{"cat": "Session", "name": "model_run"}, *(_event(name) for name in ran * 3)]
    before, after, end = [1, 2, 5], [970, 971, 972, 973, 974], [990]
    quick = [*before, 10, 140, 150, 180, 190, 960, *after, *end]
    slow = [value + 7 * place for place, value in enumerate(quick)]
    interrupted = [*before[:1], *[value - 10_000 for value in quick]]
    found = arm_layers.divide([slow, interrupted, quick], events, ["node0", "node1", "node2"], "cortex-a76")
    assert found.by_layer == (100, 740, 0)
    assert (found.rearranging, found.profiler, found.nodes) == (0, 30, 3)


@pytest.mark.parametrize("looks", [[[1, 2, 3]], [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4]], [[1]]])
def test_looks_that_do_not_fit_are_refused(looks: list[list[int]]) -> None:
    with pytest.raises(MeasurementError, match="do not fit together"):
        arm_layers.divide(looks, [_event("node0"), _event("node1")] * 2, ["node0", "node1"])


def test_layers_on_arm_sum_to_the_whole(fp32: Path, s8s8: Path) -> None:
    try:
        arm_root.prepare()
    except (MissingDependencyError, MeasurementError) as error:
        pytest.skip(f"no emulated ARM here: {error.problem}: {error.got}")
    for path in (fp32, s8s8):
        found = arm_layers.count(path, graphs.value(), "cortex-a76", reuse=False)
        whole = arm.count(path, graphs.value(), "cortex-a76").instructions
        inside = sum(found.by_layer) + found.rearranging
        # The rest is the runtime's own between the nodes.
        assert 0.95 * whole < inside < 1.01 * whole
        second = layers.layers(path, graphs.value(), runs=1)
        costliest = max(range(len(second)), key=lambda i: found.by_layer[i])
        assert second[costliest].macs == graphs.SECOND_MACS

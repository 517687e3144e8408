"""On a busy machine Python looked at the clock behind every inference, and no layer's instructions could be counted."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import MeasurementError
from pipeline.measure import arm_layers

NAMES = ["node0", "node1", "node2"]
EVENTS: list[dict[str, Any]] = [{"cat": "Node", "name": f"{name}_kernel_time"} for name in NAMES * 2]
# As counted of MicroNet M3: three looks, three nodes with 8,400 between them, five looks, the end.
NODES = [100_000, 128_000, 136_400, 190_100, 198_500, 270_000]
BEFORE, AFTER = [28_600, 28_650, 94_000], [270_050, 270_100, 270_300, 278_900, 279_000, 279_100]
EXECUTED = (0, 25_700, 43_500)


@pytest.mark.parametrize(
    "looks",
    [
        [*BEFORE, *NODES, *AFTER[:2], 276_600, *AFTER[2:]],
        [*BEFORE, *NODES, *AFTER[:2], 276_600, 276_700, *AFTER[2:]],
        [*BEFORE[:2], 60_000, *BEFORE[2:], *NODES, *AFTER],
    ],
)
def test_looks_around_the_nodes_change_no_count(looks: list[int]) -> None:
    found = arm_layers.divide([looks] * 5, EVENTS, NAMES)
    assert found.profiler == 28_000
    assert found.by_layer == tuple(number - found.profiler for number in (28_000, 53_700, 71_500))
    assert found.by_layer == EXECUTED


def test_a_look_within_a_node_leaves_the_inference_out() -> None:
    within = [*BEFORE, *NODES[:3], 150_000, *NODES[3:], *AFTER]
    with pytest.raises(MeasurementError, match="do not fit together"):
        arm_layers.divide([within] * 5, EVENTS, NAMES)
    whole = arm_layers.divide([within, [*BEFORE, *NODES, *AFTER]], EVENTS, NAMES)
    assert whole.by_layer[1] == 53_700 - whole.profiler

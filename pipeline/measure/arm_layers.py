"""Executed aarch64 instructions of each node: the profiler's looks at the clock mark where a node begins and ends."""

from __future__ import annotations

import hashlib
import itertools
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.artifact import file_digest, write_json
from pipeline.errors import MeasurementError
from pipeline.measure import arm, latency
from pipeline.measure.arm_root import LAYER_PLUGIN_SOURCE, default_cache, layer_plugin, prepare, versions
from pipeline.measure.graph_profile import write_optimised

RUNS = 5
# Looks at the clock of ONNX Runtime's session and executor: before the first node begins, and after the last ends.
LOOKS_BEFORE, LOOKS_AFTER = 3, 5
# The profiler writes down a node's shapes before it looks at the clock again: the same work in every node, about
# 28,000 instructions. It is taken as what the cheapest node executes, but never as more than this.
PROFILER_MOST = 40_000


@dataclass(frozen=True)
class LayerCounts:
    """Executed instructions of one inference, divided among its nodes.

    Attributes:
        cpu: a name of ``arm_root.CPUS``.
        by_layer: of each node of the optimised graph as it is written (``ExecutedNode.place``), the profiler's own
            work taken off; 0 where it did not run by itself.
        rearranging: of nodes that only this processor's graph has: changes of the layout in memory.
        profiler: taken off each node.
        nodes: nodes that ran there.
    """

    cpu: str
    by_layer: tuple[int, ...]
    rearranging: int
    profiler: int
    nodes: int


def count(
    model: Path, value: np.ndarray, cpu: str, *, cache: Path | None = None, reuse: bool = True
) -> LayerCounts:
    """Count the executed instructions of each node of ``model`` on ``value``: of each the least of ``RUNS``.

    Args:
        model: an ONNX file with one input.
        value: its input.
        cpu: a name of ``arm_root.CPUS``.
        cache: folder of downloads; reuse: take the counts from it where they were made before.

    Raises:
        MissingDependencyError: apt or a C compiler is absent.
        MeasurementError: the guest failed, or the profile and the looks at the clock do not fit together.
    """
    root = prepare(cache)
    work = {
        "model": file_digest(model), "input": latency.array_hash(value), "cpu": cpu, "runs": RUNS,
        **versions(), **arm.revision(cpu),
        "layers": hashlib.sha256(LAYER_PLUGIN_SOURCE.read_bytes()).hexdigest()[:12],
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()[:24]
    known = (cache or default_cache()) / "arm-counts" / f"{key}.json"
    if reuse and known.is_file():
        record = json.loads(known.read_text(encoding="utf-8"))
        return LayerCounts(**{**record, "by_layer": tuple(record["by_layer"])})
    with tempfile.TemporaryDirectory(prefix="ossicle-layers-") as scratch:
        optimised = Path(scratch) / "model.onnx"
        _, names = write_optimised(model, optimised)
        plugin = layer_plugin(root)
        with arm.guest(root, optimised, value, cpu, RUNS, "--profile", "profile", plugin=plugin) as folder:
            looks = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
            profiles = list(folder.glob("profile*.json"))
            events = json.loads(profiles[0].read_text(encoding="utf-8")) if profiles else []
    found = divide(looks, events, list(names), cpu)
    write_json(known, asdict(found))
    return found


def divide(
    looks: list[list[int]], events: list[dict[str, Any]], names: list[str], cpu: str = ""
) -> LayerCounts:
    """Return the instructions of each of ``names`` from the plugin's lists and the profile's events.

    Args:
        looks: of each inference, instructions executed at each look at the clock and, last, at its end.
        events: ONNX Runtime's profile of these inferences and the warm-ups before them.
        names: the nodes of the graph that was given, in their order.

    Raises:
        MeasurementError: the numbers of looks and of nodes do not fit together.
    """
    ran = [
        e["name"].removesuffix("_kernel_time")
        for e in events
        if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")
    ]
    first = ran[: ran.index(ran[0], 1)] if ran and ran[0] in ran[1:] else ran
    wanted = LOOKS_BEFORE + 2 * len(first) + LOOKS_AFTER
    fitting = [aligned for found in looks if (aligned := _aligned(found, wanted, len(first))) is not None]
    if not first or len(ran) % len(first) or not fitting:
        raise MeasurementError(
            "the profile's nodes and the looks at the clock do not fit together",
            expected=f"{wanted} looks for {len(first)} nodes",
            got=sorted({len(found) - 1 for found in looks}),
        )
    # The least of each node by itself: another thread's work may fall into any of them.
    executed = [min(found[2 * step + 1] - found[2 * step] for found in fitting) for step in range(len(first))]
    profiler = min(*executed, PROFILER_MOST)
    places = {name: index for index, name in enumerate(names)}
    by_layer, rearranging = [0] * len(names), 0
    for name, number in zip(first, executed, strict=True):
        # A node that was moved to another layout is called node7_token_3.
        place = places.get(name.partition("_token_")[0])
        if place is not None:
            by_layer[place] += number - profiler
        else:
            rearranging += number - profiler
    return LayerCounts(cpu, tuple(by_layer), rearranging, profiler, len(first))


def _aligned(found: list[int], wanted: int, nodes: int) -> list[int] | None:
    """Return where each node of an inference begins and ends; None where looks of another's are among them.

    Python looks at the clock too when it waits for its lock, mostly once the last node has ended: on a busy machine
    in every inference. Nodes and what lies between them are told apart by their length: the profiler writes a
    node's shapes down before it looks again, but nothing of the kind between two nodes.
    """
    for more in range(len(found) - wanted):
        inside = found[LOOKS_BEFORE + more : LOOKS_BEFORE + more + 2 * nodes]
        lengths = [end - begin for begin, end in itertools.pairwise(inside)]
        between = max(lengths[1::2], default=0)
        if len(inside) == 2 * nodes and (len(found) - 1 == wanted or between < min(lengths[::2])):
            return inside
    return None

"""What the golden tests of PaSST, M2D and MATPAC share: cases, slices, tolerances, taps of a running network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.golden import golden_vectors as golden

Golden = tuple[dict[str, Any], dict[str, np.ndarray]]


def cases(spec: dict[str, Any]) -> dict[str, Tensor]:
    """Return the waveforms of every case, (batch, samples)."""
    given = spec["input"]["waveform"]
    return {
        name: torch.from_numpy(
            np.stack([golden.waveform(s, case["seconds"], given["sample_rate"])[0] for s in case["seeds"]])
        )
        for name, case in given["cases"].items()
    }


def smallest_case(spec: dict[str, Any]) -> tuple[str, Tensor]:
    """Return name and waveforms of the case with the fewest samples."""
    return min(cases(spec).items(), key=lambda item: item[1].numel())


def state_of(vectors: Golden) -> dict[str, Tensor]:
    """Return the filled state under the published names; what the spec keeps is left out."""
    return golden.filled_state(*vectors)


def assert_names_and_shapes(network: nn.Module, spec: dict[str, Any]) -> None:
    """Assert that the network's state dict has exactly the spec's names, shapes and number formats."""
    ours = {k: (list(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in network.state_dict().items()}
    assert ours == {e["name"]: (e["shape"], e["dtype"]) for e in spec["state"]}


def sliced(value: Tensor, entry: dict[str, Any], tap: str) -> np.ndarray:
    """Return the tapped part of ``value``: its slice is written as in numpy, "[:, ::2, ::2]"."""
    assert list(value.shape) == entry["full_shape"], f"{tap}: {list(value.shape)}"
    array = value.detach().float().cpu().numpy()
    if not entry.get("slice"):
        return array
    steps = [part.strip() for part in entry["slice"].strip("[]").split(",")]
    return array[tuple(slice(*[int(n) if n else None for n in step.split(":")]) for step in steps)]


def check(value: Tensor, vectors: Golden, tap: str, record: pytest.FixtureRequest | None = None) -> None:
    """Assert that ``value`` is the tap ``tap`` within the spec's absolute (and mean) tolerance."""
    spec, taps = vectors
    entry = spec["taps"][tap]
    if value.ndim == 4 and len(entry["full_shape"]) == 3:
        # Patches as tokens, frequency-major, where the spec taps the flattened convolution.
        value = value.flatten(2).transpose(1, 2)
    difference = np.abs(sliced(value, entry, tap).astype(np.float64) - taps[tap])
    worst, allowed = float(difference.max()), float(entry["suggested_atol"])
    golden.report(golden.running_folder or spec["model"], tap, worst, allowed)
    if record is not None:
        record.node.user_properties.append(("worst_deviation", (tap, worst, allowed)))
    assert worst <= allowed, f"{tap}: worst |difference| {worst:.3g}, allowed {allowed:.3g}"
    if "suggested_mean_atol" in entry:
        assert difference.mean() <= entry["suggested_mean_atol"], f"{tap}: mean {difference.mean():.3g}"


@contextmanager
def tapped(network: nn.Module, blocks: nn.ModuleList, rows: int) -> Iterator[dict[str, Tensor]]:
    """Collect patch_embed, block0_in, blockN and norm of the network's first pass, the first chunk of each row.

    Args:
        rows: clips of the pass; further rows of a batch are later chunks of the same clips.
    """
    found: dict[str, Tensor] = {}

    def keep(tap: str, value: Tensor) -> None:
        found.setdefault(tap, value[:: len(value) // rows])

    handles = [
        network.get_submodule("patch_embed").register_forward_hook(lambda _m, _i, o: keep("patch_embed", o)),
        blocks[0].register_forward_pre_hook(lambda _m, i: keep("block0_in", i[0])),
    ]
    for number, block in enumerate(blocks):
        handles.append(block.register_forward_hook(lambda _m, _i, o, tap=f"block{number}": keep(tap, o)))
    for name, module in network.named_modules():
        if name.split(".")[-1] == "norm" and isinstance(module, nn.LayerNorm):
            handles.append(module.register_forward_hook(lambda _m, _i, o: keep("norm", o)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def taps_of(vectors: Golden, case: str) -> list[str]:
    """Return the names of the taps of one case, without the case."""
    return [tap.removeprefix(f"{case}.") for tap in vectors[0]["taps"] if tap.startswith(f"{case}.")]


def relative_change(got: Tensor, other: Tensor) -> float:
    """Return |got - other| / |other|, as the specs' sensitivities are."""
    return float(torch.linalg.vector_norm(got - other) / torch.linalg.vector_norm(other))

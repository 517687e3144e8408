"""What the golden tests of PANNs, EfficientAT, MULE and Resemblyzer share: waveforms, slices, tolerances, files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.artifact import file_digest
from pipeline.config import TeacherConfig
from pipeline.teachers.base import Teacher
from pipeline.teachers.registry import build_teacher
from tests.golden import golden_vectors as golden

Golden = tuple[dict[str, Any], dict[str, np.ndarray]]

# The specs state no tolerance but how far the reference network itself is from float64, as a share of the
# tap's rms: ten times that, from the features that they store.
ROUNDING_FACTOR = 10.0
# From the waveform: the quiet bins of a log-mel hold little but the float32 rounding of the FFT at hand.
THROUGH_THE_FRONTEND = 1e-3


def waveforms(spec: dict[str, Any], which: str = "waveform") -> Tensor:
    """Return the clips of an input of the spec, (batch, samples)."""
    given = spec["input"][which]
    rate = given.get("sample_rate", spec["frontend"]["sample_rate"])
    rows = [golden.waveform(seed, given["seconds"], rate)[0] for seed in given["seeds"]]
    return torch.from_numpy(np.stack(rows) * np.float32(given.get("scale", 1.0)))


def sliced(value: Tensor, text: str | None) -> np.ndarray:
    """Return the part of a tap that the golden file keeps, written as in numpy: "[:, ::2, ::2]"."""
    array = value.detach().float().numpy()
    if not text:
        return array
    parts = [part.strip() for part in text.strip("[]").split(",")]
    assert all(re.fullmatch(r"-?\d*:-?\d*(:-?\d+)?", part) for part in parts), text
    return array[tuple(slice(*(int(n) if n else None for n in part.split(":"))) for part in parts)]


def rounding(about: dict[str, Any]) -> float:
    """Return what a tap may be off, as a share of its rms, where the network's input is the reference's own."""
    return ROUNDING_FACTOR * about.get("float64_deviation", 0.0)


def through_the_frontend(about: dict[str, Any]) -> float:
    """Return what a tap may be off, as a share of its rms, where all of it is ours."""
    return THROUGH_THE_FRONTEND


def check(
    folder: str, vectors: Golden, values: dict[str, Tensor], allowed: Callable[[dict[str, Any]], float]
) -> float:
    """Assert that ``values`` are the taps of their names; return the worst deviation over its tap's rms."""
    spec, taps = vectors
    worst_of_all = 0.0
    for tap, value in values.items():
        about = spec["taps"][tap]
        assert list(value.shape) == about["full_shape"], f"{folder} {tap}: {list(value.shape)}"
        difference = np.abs(sliced(value, about["slice"]).astype(np.float64) - taps[tap])
        worst = float(difference.max()) / about["rms"]
        golden.report(folder, tap, worst, allowed(about))
        assert worst <= allowed(about), (
            f"{folder} {tap}: {worst:.3g} of the rms, allowed {allowed(about):.3g}"
        )
        worst_of_all = max(worst_of_all, worst)
    return worst_of_all


@contextmanager
def recorded(network: nn.Module, modules: dict[str, str]) -> Iterator[dict[str, Tensor]]:
    """Collect the outputs of ``modules`` (tap to module name) of a running network; the first of a tuple."""
    found: dict[str, Tensor] = {}

    def keep(tap: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            # Cloned, for the next layer may work in place.
            found[tap] = (output[0] if isinstance(output, tuple) else output).clone()

        return hook

    handles = [network.get_submodule(name).register_forward_hook(keep(tap)) for tap, name in modules.items()]
    with torch.inference_mode():
        yield found
    for handle in handles:
        handle.remove()


def names_and_shapes(state: dict[str, Tensor]) -> dict[str, tuple[list[int], str]]:
    """Return names, shapes and number formats of a state dict."""
    return {k: (list(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in state.items()}


def of_spec(spec: dict[str, Any]) -> dict[str, tuple[list[int], str]]:
    """Return names, shapes and number formats of the published state dict."""
    return {e["name"]: (e["shape"], e["dtype"]) for e in spec["state"]}


def multiply_accumulates(network: nn.Module, run: Callable[[Tensor], object], *shape: int) -> int:
    """Return the multiply-accumulates of ``run`` on an input of ``shape``; the network is on the meta device."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        run(torch.empty(shape, device="meta"))
    return counter.get_total_flops() // 2


# The fill of the last spec asked for: both PANNs have the same 80 million numbers, 6 s to draw.
_last_fill: dict[str, dict[str, Tensor]] = {}


def filled_once(vectors: Golden) -> dict[str, Tensor]:
    """Return the filled entries, drawn anew only where seed, names, shapes or scales are others than last time."""
    spec, _ = vectors
    entries = [entry for entry in spec["state"] if entry.get("filled", True)]
    key = json.dumps([spec.get("fill_seed", 0), entries])
    if key not in _last_fill:
        _last_fill.clear()
        _last_fill[key] = golden.filled_state(*vectors)
    return _last_fill[key]


def published_state(vectors: Golden, others: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return every entry of the published state dict: filled, counters 0, the rest from ``others``."""
    spec, _ = vectors
    filled = filled_once(vectors)
    state = {}
    for entry in spec["state"]:
        name = entry["name"]
        counter = torch.zeros(entry["shape"], dtype=torch.int64)
        state[name] = filled[name] if name in filled else others.get(name, counter)
    return state


def load_from_disk(
    name: str, payload: Any, file: Path, *, dtype: str = "float32", options: dict[str, Any] | None = None
) -> Teacher:
    """Write ``payload`` as published, load it through the registry's loader, and remove what that left on disk."""
    if file.suffix == ".safetensors":
        save_file(payload, file)
    else:
        torch.save(payload, file)
    config = TeacherConfig(
        name=name,
        dtype=dtype,
        weights=file,
        trust_sha256=file_digest(file),
        options=options or {},
        batch_size=3,
    )
    teacher = build_teacher(config, cache=file.parent / "cache")
    for path in sorted(file.parent.rglob("*"), reverse=True):
        if path.is_file():
            path.unlink()
    return teacher

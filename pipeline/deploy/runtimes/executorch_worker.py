"""Runs inside the ExecuTorch environment, which has no Ossicle: a folder of files in, ``.pte`` and embeddings out.

The folder holds ``job.json``, ``program.pt2`` (an exported program), ``calibration.npy`` and ``held_out.npy``. It is
the caller's own temporary folder: program.pt2 is read as torch reads it, so no other file may be put in its place.
Written: ``<name>.pte``, ``<name>.npy`` (embeddings of the held-out rows) and ``result.json``.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch


def main(folder: Path) -> None:
    """Do what ``job.json`` asks."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    module = torch.export.load(str(folder / "program.pt2")).module(check_guards=False)
    calibration = torch.from_numpy(np.load(folder / "calibration.npy", allow_pickle=False))
    held_out = torch.from_numpy(np.load(folder / "held_out.npy", allow_pickle=False))
    if job["accelerator"] is None:
        files = xnnpack(module, calibration, held_out, folder)
    else:
        files = ethos_u(module, calibration, held_out, folder, job)
    result = {
        "files": files,
        "versions": {name: version(name) for name in ("torch", "executorch", "torchao", "ethos-u-vela")},
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


def xnnpack(
    module: torch.nn.Module, calibration: torch.Tensor, held_out: torch.Tensor, folder: Path
) -> list[dict[str, Any]]:
    """Write the float and the int8 program for Cortex-A, and run both here with ExecuTorch's own runtime."""
    import executorch.kernels.quantized  # noqa: F401  registers the operators that stay outside the delegate
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    found = []
    for name in ("fp32", "int8"):
        made = module if name == "fp32" else quantised(module, quantizer, calibration)
        info = lower(made, held_out[:1], XnnpackPartitioner(), folder / f"{name}.pte")
        np.save(folder / f"{name}.npy", run_pte(folder / f"{name}.pte", held_out))
        found.append({"name": name, "ran": "ExecuTorch runtime, this machine", **info})
    return found


def ethos_u(
    module: torch.nn.Module,
    calibration: torch.Tensor,
    held_out: torch.Tensor,
    folder: Path,
    job: dict[str, Any],
) -> list[dict[str, Any]]:
    """Write the program whose graph runs on the NPU; its integers are simulated by torch, as no NPU is here."""
    from executorch.backends.arm.ethosu import EthosUCompileSpec, EthosUPartitioner
    from executorch.backends.arm.quantizer import EthosUQuantizer, get_symmetric_quantization_config

    spec = EthosUCompileSpec(
        target=job["accelerator"],
        system_config=job["system"],
        memory_mode=job["memory_mode"],
        extra_flags=["--verbose-performance"],
    )
    spec.dump_intermediate_artifacts_to(str(folder / "vela"))
    quantizer = EthosUQuantizer(spec).set_global(get_symmetric_quantization_config(is_per_channel=True))
    made = quantised(module, quantizer, calibration)
    info = lower(made, held_out[:1], EthosUPartitioner(spec), folder / "int8.pte")
    with torch.no_grad():
        rows = [made(row[None]).numpy() for row in held_out]
    np.save(folder / "int8.npy", np.concatenate(rows))
    return [{"name": "int8", "ran": "PT2E integers simulated by torch", **info}]


def quantised(module: torch.nn.Module, quantizer: Any, calibration: torch.Tensor) -> torch.nn.Module:
    """Return the program with the quantizer's operators in int8, ranges from the calibration rows."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    # A program of its own: preparing one changes it.
    fresh = torch.export.export(module, (calibration[:1],)).module(check_guards=False)
    prepared = prepare_pt2e(fresh, quantizer)
    with torch.no_grad():
        for row in calibration:
            prepared(row[None])
    made: torch.nn.Module = convert_pt2e(prepared)
    return made


def lower(module: torch.nn.Module, example: torch.Tensor, partitioner: Any, path: Path) -> dict[str, Any]:
    """Write the ``.pte`` and return how many operators the partitioner took and how many it left."""
    from executorch.devtools.backend_debug import get_delegation_info
    from executorch.exir import to_edge_transform_and_lower

    exported = torch.export.export(module, (example,))
    edge = to_edge_transform_and_lower(exported, partitioner=[partitioner])
    taken = get_delegation_info(edge.exported_program().graph_module)
    left = {
        name: int(counts.non_delegated)
        for name, counts in taken.delegation_by_operator.items()
        # Taking one of a delegate's results is no operator.
        if counts.non_delegated and name != "getitem"
    }
    program = edge.to_executorch()
    path.write_bytes(program.buffer)
    return {
        "delegates": int(taken.num_delegated_subgraphs),
        "delegated": int(taken.num_delegated_nodes),
        "left": left,
    }


def run_pte(path: Path, rows: torch.Tensor) -> np.ndarray:
    """Return the embeddings of ``rows``, one an inference."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    return np.concatenate([method.execute([row[None].contiguous()])[0].numpy().copy() for row in rows])


if __name__ == "__main__":
    main(Path(sys.argv[1]))

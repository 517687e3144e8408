"""What part of the input a network's output depends on, followed through every operation it runs.

Araujo, Norris, Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019, for the time axis:
step j of a map sees the frames ``j * stride + first`` to ``j * stride + last``. The forward runs once on a device
without data, and every operation says how it moves those bounds; one that is not known counts as seeing the whole
clip, so a bound stated is never too narrow.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from pipeline.errors import ConfigError
from pipeline.students.base import Student
from pipeline.students.running import Running

PROBE_FRAMES = 1_536
AXES = {"convolution": 3, "max_pool2d_with_indices": 1, "max_pool2d": 1, "avg_pool2d": 1}
REDUCTIONS = {"mean", "sum", "amax", "amin", "linalg_vector_norm", "var", "logsumexp"}
# They keep every cell where it is, or mix along other axes than time alone.
CELLWISE = {
    "native_batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_no_update", "cudnn_batch_norm",
    "clone", "detach", "_to_copy", "alias", "lift_fresh", "contiguous", "native_dropout", "index_select",
}  # fmt: skip


@dataclass(frozen=True)
class ReceptiveField:
    """What the student's last maps, and its embedding, depend on.

    Attributes:
        first, last: step j of the last maps sees frames ``j * step_frames + first`` to ``... + last`` by
            convolutions and pools over windows.
        step_frames: frames from one step of the last maps to the next.
        whole_past: besides, statistics of everything before are used.
        whole_future: besides, statistics of everything after are used: the network hears whole clips only.
    """

    first: int
    last: int
    step_frames: int
    whole_past: bool
    whole_future: bool

    @property
    def frames(self) -> int:
        """Width of the window that one step of the last maps sees."""
        return self.last - self.first + 1

    @property
    def lookahead_frames(self) -> int | None:
        """Frames after a step's own block ``[j * step_frames, (j + 1) * step_frames)`` that it needs; None: all."""
        return None if self.whole_future else max(0, self.last - self.step_frames + 1)


@dataclass(frozen=True)
class _Seen:
    """What a tensor's steps along ``axis`` have seen; without an axis, what the whole of it has."""

    first: int
    last: int
    stride: int
    past: bool = False
    future: bool = False
    axis: int | None = None

    def whole(self) -> _Seen:
        """Return that of a tensor whose every cell has seen every step."""
        return replace(self, past=True, future=True, axis=None)


def receptive_field(student: Student, mels: int) -> ReceptiveField:
    """Return the receptive field in time of ``student``, hearing ``mels`` bands.

    Raises:
        ConfigError: its output does not depend on its input by any known path.
    """
    probe = copy.deepcopy(student).to("meta").eval()
    follow = _Follow()
    for module in probe.modules():
        if isinstance(module, Running):
            module.register_forward_hook(follow.running)
    log_mel = torch.empty(1, 1, mels, PROBE_FRAMES, device="meta", dtype=next(probe.parameters()).dtype)
    follow.seen[log_mel] = _Seen(0, 0, 1, axis=3)
    with torch.no_grad(), follow:
        embedding = probe(log_mel)
    seen = follow.seen.get(embedding)
    if seen is None:
        raise ConfigError("the embedding does not depend on the log-mel", got=type(student).__name__)
    return ReceptiveField(seen.first, seen.last, seen.stride, seen.past, seen.future)


class _Follow(TorchDispatchMode):
    """Notes of every tensor what it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Any = WeakTensorKeyDictionary()

    def running(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        """A running statistic has seen everything before, and nothing after."""
        before = self.seen[inputs[0]]
        for out in output if isinstance(output, tuple) else (output,):
            kept = out.ndim == inputs[0].ndim
            self.seen[out] = replace(before, past=True, axis=before.axis if kept else None)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        flat = [a for arg in args for a in (arg if isinstance(arg, list | tuple) else (arg,))]
        tensors = [(a, self.seen[a]) for a in flat if isinstance(a, Tensor) and a in self.seen]
        if tensors:
            name = func.overloadpacket.__name__
            pointwise = torch.Tag.pointwise in func.tags or name.endswith("_")
            for index, out in enumerate(output if isinstance(output, list | tuple) else (output,)):
                if isinstance(out, Tensor):
                    self.seen[out] = _after(name, pointwise, args, kwargs or {}, tensors, out, index)
        return output


def _after(
    name: str,
    pointwise: bool,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    tensors: list[tuple[Tensor, _Seen]],
    out: Tensor,
    index: int,
) -> _Seen:
    """Return what ``out``, output number ``index`` of the operation ``name``, has seen."""
    x, seen = tensors[0]
    if all(s.axis is None for _, s in tensors):
        return _union([replace(s, axis=None) for _, s in tensors])
    if pointwise or name in CELLWISE or name == "cat":
        return _together(name, args, kwargs, tensors, out)
    if seen.axis is None or len(tensors) > 1:
        return _union([s.whole() for _, s in tensors])
    axis = seen.axis
    if name in AXES and args[0] is x and axis >= 2:
        return _sliding(name, args, kwargs, seen, axis)
    if name == "constant_pad_nd":
        place = 2 * (x.ndim - 1 - axis)
        left = args[1][place] if place < len(args[1]) else 0
        return _moved(seen, -left)
    if name == "slice":
        given: list[Any] = [*args[1:], *(0, None, None, 1)[len(args) - 1 :]]
        if given[0] % x.ndim != axis:
            return seen
        return replace(_moved(seen, _from_start(given[1], x.shape[axis])), stride=seen.stride * given[3])
    if name in ("split", "split_with_sizes", "chunk", "unbind", "select"):
        return _parted(name, args, kwargs, seen, x, out)
    if name in REDUCTIONS:
        return _reduced(args, kwargs, seen, x, out)
    moved = _moved_axis(name, args, x, out, axis)
    return seen.whole() if moved is None else replace(seen, axis=moved)


def _union(parts: list[_Seen]) -> _Seen:
    # What has no axis any more is not aligned with the steps of what has: its bounds are in the flags.
    aligned = [p for p in parts if p.axis is not None] or parts
    coarse = max(p.stride for p in aligned)
    aligned = [p for p in aligned if p.stride == coarse]
    return _Seen(
        min(p.first for p in aligned), max(p.last for p in aligned), coarse,
        any(p.past for p in parts), any(p.future for p in parts), aligned[0].axis,
    )  # fmt: skip


def _together(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], tensors: list[tuple[Tensor, _Seen]], out: Tensor
) -> _Seen:
    """Cell by cell, broadcast from the right; or side by side along another axis than time."""
    parts = []
    for tensor, seen in tensors:
        axis = None if seen.axis is None else seen.axis + out.ndim - tensor.ndim
        parts.append(replace(seen, axis=axis))
    axes = {p.axis for p in parts if p.axis is not None}
    crossed = False
    if name in ("cat", "index_select"):
        crossed = int(args[1] if len(args) > 1 else kwargs.get("dim", 0)) % out.ndim in axes
    if len(axes) > 1 or len({p.stride for p in parts if p.axis is not None}) > 1 or crossed:
        return _union([p.whole() for p in parts])
    return _union(parts)


def _sliding(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], seen: _Seen, axis: int) -> _Seen:
    """A window of ``kernel`` cells moved by ``stride``."""
    place = axis - 2

    def at(value: Any) -> int:
        return int(value[place] if len(value) > 1 else value[0])

    if name == "convolution":
        _, weight, _, stride, padding, dilation, transposed, *_ = args
        if transposed:
            return seen.whole()
        kernel, step, pad, reach = weight.shape[axis], at(stride), at(padding), at(dilation)
    else:
        given = [*args[1:], *([], [0], [1])[len(args) - 2 :]]
        kernel = at(given[0])
        step = at(given[1]) if given[1] else kernel
        pad = at(given[2])
        reach = at(given[3]) if name.startswith("max") and len(args) > 4 else 1
    first = seen.first - pad * seen.stride
    last = seen.last + (reach * (kernel - 1) - pad) * seen.stride
    return replace(seen, first=first, last=last, stride=seen.stride * step)


def _moved(seen: _Seen, steps: int) -> _Seen:
    return replace(seen, first=seen.first + steps * seen.stride, last=seen.last + steps * seen.stride)


def _from_start(start: int | None, size: int) -> int:
    start = start or 0
    return max(0, start + size) if start < 0 else start


def _parted(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], seen: _Seen, x: Tensor, out: Tensor
) -> _Seen:
    """Parts along an axis; along time each part counts as having seen all."""
    place = 1 if name in ("select", "unbind") else 2
    dim = int(args[place] if len(args) > place else kwargs.get("dim", 0)) % x.ndim
    assert seen.axis is not None
    if dim == seen.axis:
        return seen.whole()
    return replace(seen, axis=seen.axis - (out.ndim < x.ndim and dim < seen.axis))


def _reduced(args: tuple[Any, ...], kwargs: dict[str, Any], seen: _Seen, x: Tensor, out: Tensor) -> _Seen:
    dims = next((a for a in args[1:] if isinstance(a, list | tuple)), kwargs.get("dim"))
    if not dims:
        return seen.whole()
    gone = {d % x.ndim for d in dims}
    assert seen.axis is not None
    if seen.axis in gone:
        return seen.whole()
    return replace(seen, axis=seen.axis - (0 if out.ndim == x.ndim else sum(d < seen.axis for d in gone)))


def _moved_axis(name: str, args: tuple[Any, ...], x: Tensor, out: Tensor, axis: int) -> int | None:
    """Return where the time axis is in ``out``, a view of ``x`` with the same cells; None where it is lost."""
    if name in ("view", "_unsafe_view", "reshape", "expand", "unsqueeze", "squeeze"):
        after = math.prod(x.shape[axis + 1 :])
        if name == "expand":
            return axis + out.ndim - x.ndim
        for place, size in enumerate(out.shape):
            if size == x.shape[axis] and math.prod(out.shape[place + 1 :]) == after:
                return place
        return None
    if name == "permute":
        order: list[int] = [d % x.ndim for d in args[1]]
        return order.index(axis)
    if name in ("mm", "bmm", "addmm") and args[name == "addmm"] is x:
        # A matrix over another axis than time, on the right.
        return axis if axis == x.ndim - 2 else None
    if name == "t":
        return 1 - axis
    if name == "transpose":
        swapped: dict[int, int] = {
            args[1] % x.ndim: args[2] % x.ndim,
            args[2] % x.ndim: args[1] % x.ndim,
        }
        return swapped.get(axis, axis)
    return None

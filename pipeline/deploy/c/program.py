"""What a C student consists of: tensors of fixed arithmetic, and the steps from one to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import ConfigError

Shape = tuple[int, int, int]
INT8 = (-128, 127)


@dataclass(frozen=True, eq=False)
class Width:
    """The number of frames of a map: a C expression, and its value at 1, 2, ... frames of input."""

    name: str
    expression: str
    values: tuple[int, ...]


@dataclass(eq=False)
class Tensor:
    """A map (mel, frame, channel) or, at one position, a vector; int8 with a scale and zero point, or float.

    Attributes:
        name: in the C source.
        channels, height: fixed at export; ``width`` follows from the number of frames.
        scale, zero: of int8; a scale of None says float32.
        constant: int8 values that stand in flash.
    """

    name: str
    channels: int
    height: int
    width: Width
    scale: float | None = None
    zero: int = 0
    constant: np.ndarray | None = None

    @property
    def is_vector(self) -> bool:
        """Whether it has one position at every number of frames."""
        return self.height == 1 and set(self.width.values) == {1}

    @property
    def positions(self) -> str:
        """Its number of positions, as C."""
        return "1" if self.is_vector else f"{self.height} * {self.width.name}"

    @property
    def most_bytes(self) -> int:
        """Bytes at the largest number of frames."""
        return self.channels * self.height * max(self.width.values) * (4 if self.scale is None else 1)


@dataclass(eq=False)
class Step:
    """One call of a kernel.

    Attributes:
        kind: names the kernel (see ``writer``).
        reads: operands; ``writes``: the result.
        low, high: what the result is clamped to.
        scratch_bytes: a convolution's column.
        geometry: kernel, stride, dilation and padding, each (mel, frame); ``groups``.
        weights, bias, factors: of a convolution; ``factors`` real, one an output channel.
        count_padding: of a mean over windows.
    """

    kind: str
    reads: tuple[Tensor, ...]
    writes: Tensor
    low: int = INT8[0]
    high: int = INT8[1]
    scratch_bytes: int = 0
    geometry: Geometry | None = None
    groups: int = 1
    weights: np.ndarray | None = None
    bias: np.ndarray | None = None
    factors: np.ndarray | None = None
    count_padding: bool = False

    @property
    def macs(self) -> int:
        """Multiply-accumulates at the largest number of frames; of convolutions, padding included."""
        if self.weights is None:
            return 0
        positions = self.writes.height * max(self.writes.width.values)
        return int(positions * self.weights.size)


@dataclass(frozen=True)
class Geometry:
    """A sliding window, each pair (mel, frame); ``pads`` before and after each."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)
    after: tuple[int, int] = (0, 0)
    ceil: bool = False

    def size(self, axis: int, size: int) -> int:
        """Return the number of window positions along ``axis`` (0 mel, 1 frame) of ``size``, as ONNX counts them."""
        free = size + self.before[axis] + self.after[axis] - self._reach(axis)
        steps = -(-free // self.stride[axis]) if self.ceil else free // self.stride[axis]
        if self.ceil and steps * self.stride[axis] >= size + self.before[axis]:
            steps -= 1  # a window must start inside the map or its left padding
        return max(0, steps + 1)

    def expression(self, width: str) -> str:
        """Return :meth:`size` along frames as C."""
        stride, extra = self.stride[1], self.before[1] + self.after[1] - self._reach(1)
        free = f"{width} + {extra}" if extra > 0 else f"{width} - {-extra}" if extra else width
        if not self.ceil:
            return f"{free} + 1" if stride == 1 else f"({free}) / {stride} + 1"
        if self.before[1]:
            raise ConfigError("a pool that rounds up and pads is unknown to C", got=self)
        steps = f"({free} + {stride - 1}) / {stride}"
        return f"{steps} + 1 - ({steps} * {stride} >= {width})"

    def _reach(self, axis: int) -> int:
        return self.dilation[axis] * (self.kernel[axis] - 1) + 1


@dataclass(eq=False)
class Program:
    """A whole student.

    Attributes:
        mels, max_frames: of the log-mel it hears.
        mean, deviation: of the input; ``(x - mean) / deviation`` is quantised.
        heard: the quantised input.
        steps: in order; ``outputs``: name in the ONNX file to tensor.
        widths: every distinct number of frames, the input's first.
    """

    mels: int
    max_frames: int
    mean: float = 0.0
    deviation: float = 1.0
    heard: Tensor | None = None
    steps: list[Step] = field(default_factory=list)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    widths: list[Width] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.one = Width("1", "1", (1,) * self.max_frames)
        self.widths.append(Width("w0", "frames", tuple(range(1, self.max_frames + 1))))

    def width_after(self, width: Width, geometry: Geometry) -> Width:
        """Return the width of a window's output; an equal one that is known already serves again."""
        values = tuple(geometry.size(1, value) for value in width.values)
        known = [self.one, *self.widths]
        for other in known:
            if other.values == values:
                return other
        found = Width(f"w{len(self.widths)}", geometry.expression(width.name), values)
        self.widths.append(found)
        return found

    @property
    def min_frames(self) -> int:
        """The fewest frames at which every map has a position."""
        counts = np.array([w.values for w in self.widths]).min(axis=0)
        if counts.max() < 1:
            raise ConfigError("no number of frames fits the student", got=f"{self.max_frames} frames at most")
        return int(np.argmax(counts >= 1)) + 1


def fixed_point(factor: float) -> tuple[int, int]:
    """Return (multiplier, shift) with ``factor`` = multiplier * 2**(shift - 31), multiplier in [2**30, 2**31).

    A factor below 2**-31 is 0. Jacob et al., CVPR 2018, section 2.2.

    Raises:
        ConfigError: negative, not finite, or 2**30 and more.
    """
    if not (math.isfinite(factor) and 0 <= factor < 2.0**30):
        raise ConfigError("no fixed-point factor", expected="0 to 2**30", got=factor)
    mantissa, shift = math.frexp(factor)
    multiplier = round(mantissa * 2**31)
    if multiplier == 2**31:
        multiplier, shift = 2**30, shift + 1
    if multiplier == 0 or shift < -31:
        return 0, 0
    return multiplier, shift


def arena(sizes: Sequence[int], lives: Sequence[tuple[int, int]]) -> tuple[list[int], int]:
    """Place buffers that live at the same time apart: the largest first, each as low as it fits.

    Args:
        sizes: bytes; ``lives``: first and last step, both included, at which each is needed.

    Returns:
        (offsets, bytes in all), offsets multiples of 4.
    """
    offsets = [0] * len(sizes)
    placed: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        first, last = lives[index]
        beside = [i for i in placed if lives[i][0] <= last and first <= lives[i][1]]
        offset = 0
        for other in sorted(beside, key=lambda i: offsets[i]):
            if offset + sizes[index] <= offsets[other]:
                break
            offset = max(offset, -(-(offsets[other] + sizes[other]) // 4) * 4)
        offsets[index] = offset
        placed.append(index)
    return offsets, max((o + s for o, s in zip(offsets, sizes, strict=True)), default=0)

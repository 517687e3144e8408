"""A program as one C99 header: weights, the arena's plan, and one function."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pipeline.deploy.c.program import Program, Step, Tensor, arena, fixed_point
from pipeline.errors import ConfigError

LINE = 110
SMALLEST_POOL_SHIFT = -12
C_TYPES = {"int8": "int8_t", "int16": "int16_t", "int32": "int32_t", "float32": "float"}


@dataclass(frozen=True)
class Written:
    """A header and what it costs.

    Attributes:
        text: the C source.
        weight_bytes: constants that stand in flash, code not counted.
        arena_bytes: of int8 maps and scratch; ``vector_bytes``: of the few float numbers. Both static RAM.
        macs: multiply-accumulates at the most frames.
        min_frames, max_frames: that the function takes.
    """

    text: str
    weight_bytes: int
    arena_bytes: int
    vector_bytes: int
    macs: int
    min_frames: int
    max_frames: int


def write(program: Program, *, about: Iterable[str] = ()) -> Written:
    """Return the header of ``program``.

    Args:
        program: see :func:`pipeline.deploy.c.graph.read`.
        about: lines of the comment at its top: what was trained, by whom, under which licence.
    """
    return _Writer(program).written(list(about))


def array(kind: str, name: str, values: np.ndarray) -> str:
    """Return a ``static const`` array of C."""
    written = [number(v) if kind == "float32" else str(int(v)) for v in values.reshape(-1)]
    lines, line = [], "   "
    for word in written:
        if len(line) + len(word) + 2 > LINE:
            lines.append(line)
            line = "   "
        line += f" {word},"
    lines.append(line)
    return f"static const {C_TYPES[kind]} {name}[{len(written)}] = {{\n" + "\n".join(lines) + "\n};\n"


def number(value: float) -> str:
    """Return a float32 as a C literal that reads back as the same number."""
    text = f"{float(np.float32(value)):.9g}"
    return text + ("f" if "." in text or "e" in text else ".0f")


def comment(lines: Iterable[str]) -> str:
    """Return lines as one C comment."""
    body = "\n".join(f" * {line}".rstrip() for line in lines).replace("*/", "* /")
    return "/*" + body[2:] + "\n */\n"


class _Writer:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.data: list[str] = []
        self.code: list[str] = []
        self.weight_bytes = 0
        self._place()

    def _place(self) -> None:
        """Give every int8 tensor and every column its offset in the arena, every float its own in the vectors."""
        assert self.program.heard is not None
        steps = self.program.steps
        outputs = set(map(id, self.program.outputs.values()))
        lives: dict[int, tuple[int, int]] = {id(self.program.heard): (-1, -1)}
        tensors: dict[int, Tensor] = {id(self.program.heard): self.program.heard}
        for at, step in enumerate(steps):
            for tensor in (*step.reads, step.writes):
                if tensor.constant is None:
                    tensors[id(tensor)] = tensor
                    last = len(steps) if id(tensor) in outputs else at
                    lives[id(tensor)] = (lives.get(id(tensor), (at, at))[0], last)
        self.offsets: dict[int, int] = {}
        kinds: tuple[list[int], list[int]] = ([], [])
        for key, tensor in tensors.items():
            kinds[tensor.scale is None].append(key)
        columns = [(-1 - at, step) for at, step in enumerate(steps) if step.scratch_bytes]
        sizes = [tensors[key].most_bytes for key in kinds[0]] + [step.scratch_bytes for _, step in columns]
        spans = [lives[key] for key in kinds[0]] + [(-1 - key, -1 - key) for key, _ in columns]
        found, self.arena_bytes = arena(sizes, spans)
        self.offsets.update(zip([*kinds[0], *(key for key, _ in columns)], found, strict=True))
        found, self.vector_bytes = arena(
            [tensors[k].most_bytes for k in kinds[1]], [lives[k] for k in kinds[1]]
        )
        self.offsets.update(zip(kinds[1], found, strict=True))

    def written(self, about: list[str]) -> Written:
        program = self.program
        heard = program.heard
        assert heard is not None and heard.scale is not None
        self.code.append(
            f"ossicle_quantise_log_mel(log_mel, OSSICLE_MELS, frames, {number(program.mean)}, "
            f"{number(program.deviation)}, {number(heard.scale)}, {self._range(heard)}, {self._at(heard)});"
        )
        for index, step in enumerate(program.steps):
            self._step(index, step)
        used = "\n".join(self.code)
        widths = [
            f"int {w.name} = {w.expression};" for w in program.widths if _mentions(used, program, w.name)
        ]
        for name, tensor in program.outputs.items():
            self.code.append(
                f"memcpy({_c_name(name)}, {self._at(tensor)}, {tensor.channels} * sizeof(float));"
            )
        arguments = ", ".join(f"float *{_c_name(name)}" for name in program.outputs)
        body = "\n".join(f"    {line}" for line in (*widths, *self.code))
        sizes = "".join(
            f"#define OSSICLE_{_c_name(name).upper()}_DIM {tensor.channels}\n"
            for name, tensor in program.outputs.items()
        )
        text = (
            comment([
                *about, "",
                f"RAM: {self.arena_bytes} bytes of maps and {self.vector_bytes} of float vectors, static.",
                f"Weights: {self.weight_bytes} bytes. Written by ossicle; include it in one C file only.",
            ])
            + "#ifndef OSSICLE_STUDENT_H\n#define OSSICLE_STUDENT_H\n\n#include \"ossicle_int8.h\"\n\n"
            + f"#define OSSICLE_MELS {program.mels}\n#define OSSICLE_MIN_FRAMES {program.min_frames}\n"
            + f"#define OSSICLE_MAX_FRAMES {program.max_frames}\n{sizes}"
            + f"#define OSSICLE_ARENA_BYTES {self.arena_bytes}\n"
            + f"#define OSSICLE_VECTOR_BYTES {self.vector_bytes}\n"
            + f"#define OSSICLE_WEIGHT_BYTES {self.weight_bytes}\n\n"
            + "".join(self.data)
            + "\nstatic int8_t ossicle_arena[OSSICLE_ARENA_BYTES];\n"
            + "static float ossicle_vectors[OSSICLE_VECTOR_BYTES / 4];\n\n"
            + comment([
                "From a log-mel, frame after frame of OSSICLE_MELS numbers, to the embedding.",
                "Returns 0, or -1 where frames is not OSSICLE_MIN_FRAMES to OSSICLE_MAX_FRAMES. Not reentrant.",
            ])
            + f"static inline int ossicle_student(const float *log_mel, int frames, {arguments}) {{\n"
            + "    if (frames < OSSICLE_MIN_FRAMES || frames > OSSICLE_MAX_FRAMES) return -1;\n"
            + f"{body}\n    return 0;\n}}\n\n#endif\n"
        )  # fmt: skip
        macs = sum(step.macs for step in program.steps)
        return Written(
            text, self.weight_bytes, self.arena_bytes, self.vector_bytes, macs, program.min_frames, program.max_frames
        )  # fmt: skip

    def _step(self, index: int, step: Step) -> None:
        reads = ", ".join(self._at(tensor) for tensor in step.reads)
        source, target = step.reads[0], step.writes
        out = self._at(target)
        size = f"{target.positions} * {target.channels}"
        match step.kind:
            case "conv" | "depthwise":
                name = self._convolution(index, step)
                shape = f"{reads}, {source.height}, {source.width.name}, {out}, {target.height}, {target.width.name}"
                if step.kind == "conv":
                    column = (
                        "NULL" if not step.scratch_bytes else f"ossicle_arena + {self.offsets[-1 - index]}"
                    )
                    self.code.append(f"ossicle_convolve(&{name}, {shape}, {column});")
                else:
                    self.code.append(f"ossicle_convolve_depthwise(&{name}, {shape});")
            case "pool_max" | "pool_mean":
                name = self._window(index, step)
                self.code.append(
                    f"ossicle_{step.kind}(&{name}, {reads}, {source.height}, {source.width.name}, "
                    f"{source.channels}, {out}, {target.height}, {target.width.name});"
                )
            case "add" | "multiply" if target.scale is not None:
                self._combine(step)
            case "rescale" | "clamp":
                assert source.scale is not None and target.scale is not None
                factor = _factor(source.scale / target.scale)
                self.code.append(
                    f"ossicle_rescale({reads}, {source.zero}, {factor}, {self._range(target, step)}, {size}, {out});"
                )
            case "quantise":
                assert target.scale is not None
                rounding = f"{number(target.scale)}, {self._range(target, step)}"
                self.code.append(f"ossicle_quantise_all({reads}, {rounding}, {size}, {out});")
            case "dequantise":
                assert source.scale is not None
                self.code.append(
                    f"ossicle_dequantise_all({reads}, {number(source.scale)}, {source.zero}, {size}, {out});"
                )
            case "map_mean" | "map_max" | "map_norm" | "map_max_of_means":
                assert source.scale is not None
                where = source.positions
                if step.kind == "map_max_of_means":
                    where = f"{source.height}, {source.width.name}"
                self.code.append(
                    f"ossicle_{step.kind}({reads}, {where}, {source.channels}, {number(source.scale)}, "
                    f"{source.zero}, {out});"
                )
            case "concat":
                at = 0
                for tensor in step.reads:
                    self.code.append(
                        f"memcpy({out} + {at}, {self._at(tensor)}, {tensor.channels} * sizeof(float));"
                    )
                    at += tensor.channels
            case _:
                self._of_vectors(step)

    def _of_vectors(self, step: Step) -> None:
        """Float arithmetic of a few numbers, one a channel."""
        out, source = self._at(step.writes), step.reads[0]
        first = self._at(source)
        if step.kind == "channels_mean":
            self.code.append(f"ossicle_vector_mean({first}, {source.channels}, {out});")
            return
        second = step.reads[1]
        strides = [int(t.channels > 1) for t in step.reads]
        self.code.append(
            f"ossicle_vector_{step.kind}({first}, {strides[0]}, {self._at(second)}, {strides[1]}, "
            f"{step.writes.channels}, {out});"
        )

    def _combine(self, step: Step) -> None:
        target = step.writes
        assert target.scale is not None
        scales = [t.scale or 0.0 for t in step.reads]
        steps = [(0 if t.is_vector else t.channels, int(t.channels > 1)) for t in step.reads]
        multipliers, tail = [0, 0], ""
        if step.kind == "add":
            factors = [scale / target.scale for scale in scales]
            _, shift = fixed_point(max(factors))
            multipliers = [round(factor * 2.0 ** (31 - shift)) for factor in factors]
            # The largest may round up to 2^31, which is one more than fits.
            multipliers = [min(m, 2**31 - 1) for m in multipliers]
            tail = f"{shift}"
        else:
            tail = _factor(scales[0] * scales[1] / target.scale)
        operands = [
            f"(ossicle_operand){{{p}, {c}, {tensor.zero}, {m}}}, {self._at(tensor)}"
            for (p, c), tensor, m in zip(steps, step.reads, multipliers, strict=True)
        ]
        self.code.append(
            f"ossicle_{step.kind}({operands[0]}, {operands[1]}, {tail}, {self._range(target, step)}, "
            f"{target.positions}, {target.channels}, {self._at(target)});"
        )

    def _convolution(self, index: int, step: Step) -> str:
        assert (
            step.weights is not None and step.bias is not None and step.factors is not None and step.geometry
        )
        source, target, g = step.reads[0], step.writes, step.geometry
        pairs = [fixed_point(float(f)) for f in step.factors]
        name = f"ossicle_layer{index}"
        self._array("int8", f"{name}_weights", step.weights)
        self._array("int32", f"{name}_bias", step.bias)
        self._array("int32", f"{name}_multipliers", np.array([m for m, _ in pairs]))
        self._array("int8", f"{name}_shifts", np.array([s for _, s in pairs]))
        numbers = ", ".join(
            str(v)
            for v in (
                source.channels,
                target.channels,
                step.groups,
                *g.kernel,
                *g.stride,
                *g.dilation,
                *g.before,
            )
        )
        self.data.append(
            f"static const ossicle_conv {name} = {{\n    {name}_weights, {name}_bias, {name}_multipliers, "
            f"{name}_shifts,\n    {numbers}, {source.zero}, {{{target.zero}, {step.low}, {step.high}}}}};\n"
        )
        return name

    def _window(self, index: int, step: Step) -> str:
        assert step.geometry is not None and step.reads[0].scale and step.writes.scale
        g, name = step.geometry, f"ossicle_pool{index}"
        numbers = ", ".join(str(v) for v in (*g.kernel, *g.stride, *g.before, int(step.count_padding)))
        multiplier, shift = fixed_point(step.reads[0].scale / step.writes.scale)
        if shift < SMALLEST_POOL_SHIFT:
            raise ConfigError(
                "the scales around a mean pool lie too far apart for 64 bits",
                expected=f"a ratio above 2**{SMALLEST_POOL_SHIFT}",
                got=step.reads[0].scale / step.writes.scale,
                run="ossicle export with more calibration clips",
            )
        self.data.append(
            f"static const ossicle_window {name} = {{{numbers}, {step.reads[0].zero}, {{{multiplier}, {shift}}}, "
            f"{{{step.writes.zero}, {step.low}, {step.high}}}}};\n"
        )
        return name

    def _array(self, kind: str, name: str, values: np.ndarray) -> None:
        self.data.append(array(kind, name, values))
        self.weight_bytes += values.size * np.dtype(kind).itemsize

    def _at(self, tensor: Tensor) -> str:
        if tensor.constant is not None:
            name = f"ossicle_{tensor.name}"
            if not any(f" {name}[" in text for text in self.data):
                self._array("int8", name, tensor.constant)
            return name
        if tensor.scale is None:
            return f"ossicle_vectors + {self.offsets[id(tensor)] // 4}"
        return f"ossicle_arena + {self.offsets[id(tensor)]}"

    def _range(self, tensor: Tensor, step: Step | None = None) -> str:
        low, high = (step.low, step.high) if step else (-128, 127)
        return f"(ossicle_range){{{tensor.zero}, {low}, {high}}}"


def _factor(value: float) -> str:
    multiplier, shift = fixed_point(value)
    return f"(ossicle_factor){{{multiplier}, {shift}}}"


def _c_name(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def _mentions(code: str, program: Program, name: str) -> bool:
    """Whether ``code``, or the expression of a width that it mentions, mentions ``name``."""
    pattern = re.compile(rf"\b{name}\b")
    if pattern.search(code):
        return True
    return any(
        pattern.search(w.expression) and _mentions(code, program, w.name)
        for w in program.widths
        if w.name != name
    )

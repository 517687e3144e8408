"""Sixteen float32 numbers side by side as one value of a numba function: what LLVM keeps in vector registers.

A loop that numba compiles is vectorised as a whole or not at all, and sums that live across an outer loop go
through memory. With a vector as a value, the sums of a matrix product stay in registers. LLVM cuts the sixteen
into as many registers as the processor needs: one of AVX-512, two of AVX2, four of NEON.

Importing this module needs numba (extra: speed).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, models, register_model

LANES = 16

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_ANYTHING = ir.Constant(_VECTOR, ir.Undefined)
_FIRST = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)


class Lanes(types.Type):
    """The type of such a value."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    """Its form in LLVM: a vector."""

    def __init__(self, manager: Any, of: Any) -> None:
        super().__init__(manager, of, _VECTOR)


_LANES = Lanes()


def _zeros(_context: Any) -> Any:
    """Return sixteen zeros."""

    def generate(_context: Any, _builder: Any, _signature: Any, _given: Any) -> Any:
        return ir.Constant(_VECTOR, [0.0] * LANES)

    return _LANES(), generate


def _load(_context: Any, values: Any, start: Any) -> Any:
    """Return the sixteen numbers of the contiguous float32 array ``values`` from ``start`` on, unchecked."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.load(_address(context, builder, signature.args[0], *given), align=4)

    return _LANES(values, types.intp), generate


def _store(_context: Any, values: Any, start: Any, lanes: Any) -> Any:
    """Write ``lanes`` into the contiguous float32 array ``values`` from ``start`` on, unchecked."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        values, start, lanes = given
        builder.store(lanes, _address(context, builder, signature.args[0], values, start), align=4)
        return context.get_dummy_value()

    return types.void(values, types.intp, lanes), generate


def _add_multiple(_context: Any, total: Any, factor: Any, lanes: Any) -> Any:
    """Return ``total + factor * lanes`` for one float32 ``factor``, rounded once where the processor can."""

    def generate(_context: Any, builder: Any, _signature: Any, given: Any) -> Any:
        total, factor, lanes = given
        one = builder.insert_element(_ANYTHING, factor, ir.Constant(ir.IntType(32), 0))
        factors = builder.shuffle_vector(one, _ANYTHING, _FIRST)
        return builder.fadd(total, builder.fmul(factors, lanes, flags=("contract",)), flags=("contract",))

    return _LANES(total, types.float32, lanes), generate


def _address(context: Any, builder: Any, array_type: Any, values: Any, start: Any) -> Any:
    """Return the address of sixteen numbers in an array."""
    data = context.make_array(array_type)(context, builder, values).data
    return builder.bitcast(builder.gep(data, [start]), _VECTOR.as_pointer())


# To a reader of types their calls are those within numba functions: without the context.
zeros: Any = intrinsic(_zeros)
load: Any = intrinsic(_load)
store: Any = intrinsic(_store)
add_multiple: Any = intrinsic(_add_multiple)

"""Copies of blocks of A and B as units with rows that are contiguous and close together, whatever the source is like.

A unit is a float32, or two bfloat16 that are neighbours along K (see blocking.mojo). Packed units are kept as float32,
which for pairs of bfloat16 means nothing but 32 bits.
"""

from std.memory import bitcast

from llm.base.memory import Tensor
from llm.cpu.simd.transpose import transpose

from .blocking import F32, W, per_unit
from .matrix import Matrix

comptime Ptr = Tensor[F32].Ptr
comptime Vec = SIMD[F32, W]


def pack[
    dtype: DType, //, units_down: Bool
](target: Ptr, ld: Int, source: Matrix[dtype], rows: Int, K: Int, padded_rows: Int):
    """Copies source (rows,K) into units (rows,U), or with `units_down` into (U,rows); U = K in units, rounded up.

    The rows of the target lie `ld` apart. Zeros stand for source rows up to `padded_rows`, and for the second half of
    a last unit that K leaves half empty.
    """
    comptime PER = per_unit[dtype]()
    var units = (K + PER - 1) // PER
    var along_k = source.col_stride == 1
    var across = source.row_stride == 1 and not along_k
    # What whole vectors cover; the rest goes unit by unit.
    var full_rows = rows if along_k or across else 0
    var full_units = K // PER
    if across or units_down:
        full_rows -= full_rows % W
    if along_k or not units_down:
        full_units -= full_units % W
    if along_k:
        comptime if units_down:
            _turn[units_down, along_k=True](target, ld, source, full_rows, full_units)
        else:
            for r in range(full_rows):
                for u in range(0, full_units, W):
                    target.unsafe_offset(r * ld + u).unsafe_store(_units_along_k(source, r, u))
    elif across:
        comptime if units_down:
            for u in range(full_units):
                for r in range(0, full_rows, W):
                    target.unsafe_offset(u * ld + r).unsafe_store(units_across(source, r, u))
        else:
            _turn[units_down, along_k=False](target, ld, source, full_rows, full_units)
    _pack_units[units_down](target, ld, source, 0, full_rows, full_units, units, K)
    _pack_units[units_down](target, ld, source, full_rows, rows, 0, units, K)
    comptime if units_down:
        for u in range(units):
            for r in range(rows, padded_rows):
                target[unsafe_offset=u * ld + r] = 0
    else:
        for r in range(rows, padded_rows):
            for u in range(units):
                target[unsafe_offset=r * ld + u] = 0


@always_inline
def _turn[
    dtype: DType, //, units_down: Bool, along_k: Bool
](target: Ptr, ld: Int, source: Matrix[dtype], full_rows: Int, full_units: Int):
    # Blocks of W x W units are loaded the way they lie in memory and turned in registers.
    for u in range(0, full_units, W):
        for r in range(0, full_rows, W):
            var block = Array[Vec, W](fill=Vec(0))
            comptime for i in range(W):
                comptime if along_k:
                    block[i] = _units_along_k(source, r + i, u)
                else:
                    block[i] = units_across(source, r, u + i)
            transpose(block)
            var corner = target.unsafe_offset(u * ld + r if units_down else r * ld + u)
            comptime for i in range(W):
                corner.unsafe_offset(i * ld).unsafe_store(block[i])


@always_inline
def _units_along_k[dtype: DType](source: Matrix[dtype], r: Int, u: Int) -> Vec:
    """Loads units u .. u + W - 1 of row r, where K is contiguous."""
    comptime PER = per_unit[dtype]()
    var scalars = source.load[W * PER](r, u * PER)
    comptime if PER == 1:
        return rebind[Vec](scalars.cast[F32]())
    else:
        return bitcast[F32, W](scalars)


@always_inline
def units_across[dtype: DType](source: Matrix[dtype], r: Int, u: Int) -> Vec:
    """Loads unit u of rows r .. r + W - 1, where the rows' index is contiguous."""
    comptime if per_unit[dtype]() == 1:
        return source.load[W](r, u).cast[F32]()
    else:
        var first = source.load[W](r, 2 * u)
        var second = source.load[W](r, 2 * u + 1)
        return bitcast[F32, W](first.interleave(second))


def _pack_units[
    dtype: DType, //, units_down: Bool
](target: Ptr, ld: Int, source: Matrix[dtype], row0: Int, row1: Int, unit0: Int, unit1: Int, K: Int):
    comptime PER = per_unit[dtype]()
    for r in range(row0, row1):
        for u in range(unit0, unit1):
            var place = target.unsafe_offset(u * ld + r if units_down else r * ld + u)
            comptime if PER == 1:
                place[] = source[r, u].cast[F32]()
            else:
                var unit = SIMD[dtype, PER](0)
                comptime for i in range(PER):
                    if u * PER + i < K:
                        unit[i] = source[r, u * PER + i]
                place[] = bitcast[F32, 1](unit)

"""The micro-kernel: a tile of C, MR rows by up to NR columns, held in registers over one block of K."""

from std.memory import bitcast
from std.sys import PrefetchOptions, prefetch
from std.sys.intrinsics import llvm_intrinsic

from llm.base.memory import Tensor
from llm.cpu.simd.rounding import round_to

from .blocking import CHUNK, F32, KC, LDA, MR, NR, UNROLL, W, per_unit
from .epilogue import Epilogue
from .matrix import Matrix
from .pack import units_across
from .prefetch import CacheLines, PrefetchPlan

comptime Ptr = Tensor[F32].Ptr
comptime Vec = SIMD[F32, W]
comptime _BF16 = DType.bfloat16

comptime _TO_READ = PrefetchOptions().for_read().high_locality().to_data_cache()
comptime _TO_WRITE = PrefetchOptions().for_write().high_locality().to_data_cache()


comptime Finish = def(Int, Ptr, Int, Int, Int, Int, Int, KBlock) thin -> None
"""A `finish_tile`: destination, sums, ld, row, col, rows, cols, k_block."""


@fieldwise_init
struct KBlock(TrivialRegisterPassable):
    """Which block of K a tile is at."""

    var depth: Int
    """Units to multiply and add up."""
    var slab: Int
    """Units from one slab of A to the next; a slab holds KC units of each row."""
    var adds_to_c: Bool
    """C holds the sums of earlier blocks, or of the caller."""
    var is_last: Bool
    """The sums are complete: the epilogue applies."""


@fieldwise_init
struct Destination[output: DType, E: Epilogue](TrivialRegisterPassable):
    """Where the sums of a product go, and by which way."""

    var c: Tensor[Self.output].Ptr
    var ldc: Int
    var epilogue: Self.E


struct Outlet(TrivialRegisterPassable):
    """A destination without its types: the micro-kernel is compiled once for all.

    Only sums that go to a float32 C as they are, in whole tiles, go there from registers. All others go by memory and a
    call, which is nothing beside the tile's thousands of cycles.
    """

    var c: CacheLines
    var reads: CacheLines
    var writes: CacheLines
    var sums_c: Ptr
    """C, if it is float32."""
    var ldc: Int
    var in_float32: Bool
    var stores_sums: Bool
    """Nothing happens to the sums on the way to C."""
    var finish: Finish
    var destination: Int
    """Address of the `Destination`."""

    def __init__[output: DType, E: Epilogue, //](out self, ref destination: Destination[output, E]):
        """Forgets the types; the destination must outlive this."""
        self.c = CacheLines(destination.c, destination.ldc)
        self.reads = destination.epilogue.reads()
        self.writes = destination.epilogue.writes()
        self.sums_c = Ptr(unsafe_from_address=Int(destination.c))
        self.ldc = destination.ldc
        self.in_float32 = output == F32
        self.stores_sums = E.STORES_SUMS
        self.finish = finish_tile[output, E]
        self.destination = Int(Pointer(to=destination))


@always_inline
def update_tile[
    dtype: DType, vectors: Int, packs: Bool = False
](
    a: Ptr,
    b: Ptr,
    columns: Matrix[dtype],
    outlet: Outlet,
    row: Int,
    col: Int,
    rows: Int,
    cols: Int,
    k_block: KBlock,
    mut next_a: PrefetchPlan,
    mut next_b: PrefetchPlan,
):
    """Computes C = A @ B or C += A @ B for the tile at (row,col) of C, and the epilogue after the last block of K.

    a (MR,depth) in slabs and rows LDA apart, b (depth,vectors * W) in rows NR apart, both units of `dtype` padded with
    zeros; the tile of C is (rows,cols) with rows <= MR and cols <= vectors * W, and nothing outside is touched. Each
    element is one chain of fused multiply-adds in the order of K, then added to C: the same bits in whichever tile it
    falls. Meanwhile it prefetches C, and depth // CHUNK times what is packed next.

    With `packs`, b is taken from `columns`, the transpose of B, whose rows' index must be contiguous, and written: the
    multiply-adds hide that.
    """
    var sums = Array[Vec, MR * vectors](fill=Vec(0))
    var a_unit = a
    # Turns are counted by ones: a range of steps costs a dozen instructions a turn.
    var turns = k_block.depth // UNROLL
    for turn in range(turns):
        var k = turn * UNROLL
        if k % CHUNK == 0:
            if k % KC == 0 and k > 0:
                a_unit = a_unit.unsafe_offset(k_block.slab - KC)
            if k + CHUNK <= k_block.depth:
                next_a.advance()
                next_b.advance()
            var r = k // CHUNK
            if r < MR:
                comptime for v in range(vectors):
                    outlet.c.prefetch[_TO_WRITE](row + r, col + v * W)
                    if k_block.is_last:
                        outlet.reads.prefetch[_TO_READ](row + r, col + v * W)
                        outlet.writes.prefetch[_TO_WRITE](row + r, col + v * W)
        comptime for u in range(UNROLL):
            _add_unit[dtype, packs](sums, a_unit.unsafe_offset(u), b.unsafe_offset((k + u) * NR), columns, k + u)
        a_unit = a_unit.unsafe_offset(UNROLL)
    comptime if UNROLL > 1:
        var unrolled = turns * UNROLL
        if unrolled % KC == 0 and 0 < unrolled < k_block.depth:
            a_unit = a_unit.unsafe_offset(k_block.slab - KC)
        for k in range(unrolled, k_block.depth):
            _add_unit[dtype, packs](sums, a_unit, b.unsafe_offset(k * NR), columns, k)
            a_unit = a_unit.unsafe_offset(1)
    var as_they_are = outlet.in_float32 and (outlet.stores_sums or not k_block.is_last)
    if as_they_are and rows == MR and cols == vectors * W:
        _store_whole(sums, outlet.sums_c.unsafe_offset(row * outlet.ldc + col), outlet.ldc, k_block.adds_to_c)
    else:
        # A copy, so that `sums` itself can stay in registers.
        var spilled = sums.copy()
        var address = Ptr(unsafe_from_address=Int(spilled.unsafe_ptr()))
        outlet.finish(outlet.destination, address, vectors * W, row, col, rows, cols, k_block)
        _ = spilled^


@always_inline
def _add_unit[
    vectors: Int, //, dtype: DType, packs: Bool
](mut sums: Array[Vec, MR * vectors], a: Ptr, b: Ptr, columns: Matrix[dtype], k: Int):
    # One unit of K; its row of the panel is at `b`, or comes from row k of `columns` and goes there.
    var b_row = Array[Vec, vectors](fill=Vec(0))
    comptime for v in range(vectors):
        var place = b.unsafe_offset(v * W)
        comptime if packs:
            b_row[v] = units_across(columns, v * W, k)
            place.unsafe_store(b_row[v])
        else:
            b_row[v] = place.unsafe_load[width=W]()
    _add_products[dtype](sums, a, b_row)


@always_inline
def _add_products[
    vectors: Int, //, dtype: DType
](mut sums: Array[Vec, MR * vectors], a: Ptr, b_row: Array[Vec, vectors]):
    # sums[r, :] += a[r] * b_row[:], for one unit of K
    comptime for r in range(MR):
        var a_unit = Vec(a[unsafe_offset=r * LDA])
        comptime for v in range(vectors):
            sums[r * vectors + v] = add_product[dtype](sums[r * vectors + v], a_unit, b_row[v])


@always_inline
def add_product[dtype: DType](sum: Vec, a: Vec, b: Vec) -> Vec:
    """Computes sum + a * b in each lane of units of `dtype`: one product, or two."""
    comptime if per_unit[dtype]() == 1:
        return a.fma(b, sum)
    else:
        comptime DOT = "llvm.x86.avx512bf16.dpbf16ps.512"
        return llvm_intrinsic[DOT, Vec](sum, bitcast[_BF16, 2 * W](a), bitcast[_BF16, 2 * W](b))


@always_inline
def _store_whole[vectors: Int, //](sums: Array[Vec, MR * vectors], c: Ptr, ldc: Int, adds_to_c: Bool):
    comptime for r in range(MR):
        comptime for v in range(vectors):
            var sum = sums[r * vectors + v]
            var target = c.unsafe_offset(r * ldc + v * W)
            if adds_to_c:
                sum += target.unsafe_load[width=W]()
            target.unsafe_store(sum)


def finish_tile[
    output: DType, E: Epilogue
](destination: Int, sums: Ptr, ld: Int, row: Int, col: Int, rows: Int, cols: Int, k_block: KBlock):
    """Brings sums (rows,cols), rows `ld` apart, to the tile at (row,col) of the `Destination` at this address."""
    ref target = Pointer[Destination[output, E], MutUntrackedOrigin](unsafe_from_address=destination)[]
    var full = cols - cols % W
    for r in range(rows):
        var c = target.c.unsafe_offset((row + r) * target.ldc + col)
        for j in range(0, full, W):
            var sum = sums.unsafe_offset(r * ld + j).unsafe_load[width=W]()
            _finish[W](sum, c.unsafe_offset(j), row + r, col + j, k_block, target.epilogue)
        for j in range(full, cols):
            _finish[1](sums[unsafe_offset=r * ld + j], c.unsafe_offset(j), row + r, col + j, k_block, target.epilogue)


@always_inline
def _finish[
    E: Epilogue, output: DType, //, width: Int
](sum: SIMD[F32, width], c: Tensor[output].Ptr, row: Int, col: Int, k_block: KBlock, epilogue: E):
    var value = sum
    if k_block.adds_to_c:
        value += c.unsafe_load[width=width]().cast[F32]()
    if k_block.is_last:
        value = epilogue.apply[width](row, col, value)
    c.unsafe_store(round_to[output](value))

"""Tiles: what is copied in, transposed and out, element by element, and the product of a strip against float64."""

from std.sys import simd_width_of
from std.testing import TestSuite, assert_equal, assert_true
from std.utils.numerics import isnan

from framed import F32, F64, Framed, assert_frame_is_whole, assert_near

from llm.base.memory import Tensor
from llm.cpu.simd.tile import BLOCK, STRIP, load_tile, load_tile_transposed, padded, store_tile, strip_product

comptime BF16 = DType.bfloat16
comptime W = simd_width_of[F32]()


def head_sizes() -> List[Int]:
    return [1, W - 1, W, W + 1, 12, 2 * W + 3, 64]


def row_counts() -> List[Int]:
    return [0, 1, W - 1, W, W + 1, BLOCK - 1, BLOCK]


def rows_of[dtype: DType](mut memory: Framed, rows: Int, HS: Int, stride: Int) raises -> Tensor[dtype]:
    """Makes rows of HS numbers with NaN between them, which no tile may hold."""
    var source = memory.blank[dtype](max(rows * stride - (stride - HS), 0))
    for r in range(rows):
        for c in range(HS):
            source[r * stride + c] = memory.random().cast[dtype]()
    return source


def test_padded() raises:
    for channels in range(1, 200):
        var HSp = padded(channels)
        assert_true(HSp >= channels and HSp - channels < max(W, STRIP), String(t"{channels} padded to {HSp}"))
        assert_true(HSp % W == 0 and HSp % STRIP == 0, String(t"{channels} padded to {HSp}"))


def check_load[dtype: DType]() raises:
    var memory = Framed()
    for HS in head_sizes():
        for rows in row_counts():
            var stride = 3 * HS + 1
            var HSp = padded(HS)
            var source = rows_of[dtype](memory, rows, HS, stride)
            var tile = memory.blank(BLOCK * HSp)
            load_tile(tile, source, stride, rows, HS)
            for r in range(BLOCK):
                for c in range(HSp):
                    var expected = source[r * stride + c].cast[F32]() if r < rows and c < HS else Float32(0)
                    assert_equal(tile[r * HSp + c], expected, String(t"{dtype}, {rows} rows of {HS}, at {r}, {c}"))
            assert_frame_is_whole(tile, String(t"{dtype}, {rows} rows of {HS}"))
    _ = memory^


def test_load() raises:
    check_load[F32]()
    check_load[BF16]()


def check_load_transposed[dtype: DType]() raises:
    var memory = Framed()
    for HS in head_sizes():
        for rows in row_counts():
            # As wide as the rows need, as wide as a tile, and wider.
            for columns in [max((rows + W - 1) // W * W, W), BLOCK, BLOCK + 2 * W]:
                var stride = 3 * HS + 1
                var HSp = padded(HS)
                var source = rows_of[dtype](memory, rows, HS, stride)
                var tile = memory.blank(HSp * columns)
                load_tile_transposed(tile, columns, source, stride, rows, HS)
                var what = String(t"{dtype}, {rows} rows of {HS} in {columns} columns")
                for c in range(HSp):
                    for r in range(columns):
                        var expected = source[r * stride + c].cast[F32]() if r < rows and c < HS else Float32(0)
                        assert_equal(tile[c * columns + r], expected, String(t"{what}, at {c}, {r}"))
                assert_frame_is_whole(tile, what)
    _ = memory^


def test_load_transposed() raises:
    check_load_transposed[F32]()
    check_load_transposed[BF16]()


def check_store[dtype: DType]() raises:
    var memory = Framed()
    for HS in head_sizes():
        for rows in row_counts():
            var stride = 3 * HS + 1
            var HSp = padded(HS)
            var tile = memory.numbers(BLOCK * HSp)
            var target = memory.blank[dtype](BLOCK * stride)
            store_tile(target, stride, tile, rows, HS)
            for i in range(target.size):
                var r, c = divmod(i, stride)
                var what = String(t"{dtype}, {rows} rows of {HS}, at {r}, {c}")
                if r < rows and c < HS:
                    assert_equal(target[i], tile[r * HSp + c].cast[dtype](), what)
                else:
                    assert_true(isnan(target[i]), what)
            assert_frame_is_whole(target, String(t"{dtype}, {rows} rows of {HS}"))
    _ = memory^


def test_store() raises:
    check_store[F32]()
    check_store[BF16]()


def check_product[accumulate: Bool](mut memory: Framed, N: Int, K: Int, by_columns: Bool) raises:
    """Takes A by rows or by columns, and more room between the rows of B and C than they need."""
    var ldb, ldc = N + 3, N + 5
    var row_stride = 1 if by_columns else K + 2
    var k_stride = STRIP + 1 if by_columns else 1
    var a = memory.blank(STRIP * row_stride + K * k_stride)
    for r in range(STRIP):
        for k in range(K):
            a[r * row_stride + k * k_stride] = memory.random()
    var b = rows_of[F32](memory, K, N, ldb)
    var c = rows_of[F32](memory, STRIP, N, ldc) if accumulate else memory.blank(STRIP * ldc - 5)
    var before = memory.blank(c.size)
    for i in range(c.size):
        before[i] = c[i]
    strip_product[accumulate](c, ldc, a, row_stride, k_stride, b, ldb, N, K)
    for i in range(c.size):
        var r, j = divmod(i, ldc)
        var what = String(t"N={N}, K={K} at {r}, {j}")
        if j >= N:
            assert_true(isnan(c[i]), String(t"wrote between the rows of C: {what}"))
            continue
        var sum = before[i].cast[F64]() if accumulate else Float64(0)
        var magnitude = abs(sum)
        for k in range(K):
            var product = a[r * row_stride + k * k_stride].cast[F64]() * b[k * ldb + j].cast[F64]()
            sum += product
            magnitude += abs(product)
        assert_near(c[i], sum, Float64(K + 1), magnitude, what)
    assert_frame_is_whole(c, String(t"N={N}, K={K}"))


def test_strip_product() raises:
    var memory = Framed()
    for vectors in [1, 2, 3, 4, 7]:
        for K in [0, 1, 2, 17, 64]:
            for by_columns in [False, True]:
                check_product[False](memory, vectors * W, K, by_columns)
                check_product[True](memory, vectors * W, K, by_columns)
    _ = memory^


def main() raises:
    TestSuite.discover_tests[__functions_in_module()]().run()

"""Linear layers on top of the matrix product: out = inp @ weight^T + bias, weight stored (out, in)."""

from std.sys import simd_width_of, size_of

from llm.base.memory import Tensor
from llm.cpu.gemm import Epilogue, Plain, gemm, row_major
from llm.cpu.threads.crew import Team, share

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()
comptime ROWS_AT_ONCE = 8
"""Rows that a sum over rows reads side by side: few enough for the processor to fetch each ahead."""


def linear_forward[
    dtype: DType, out_dtype: DType, E: Epilogue, //
](
    team: Team,
    workspace: Tensor[F32],
    output: Tensor[out_dtype],
    inp: Tensor[dtype],
    weight: Tensor[dtype],
    rows: Int,
    C: Int,
    OC: Int,
    epilogue: E,
):
    """Computes output = epilogue(inp @ weight^T). inp (rows,C), weight (OC,C), output (rows,OC)."""
    gemm(team, workspace, rows, OC, C, row_major(inp, C), row_major(weight, C).transposed(), output, OC, epilogue)


def linear_backward_input[
    dtype: DType, out_dtype: DType, E: Epilogue, //
](
    team: Team,
    workspace: Tensor[F32],
    dinp: Tensor[out_dtype],
    dout: Tensor[dtype],
    weight: Tensor[dtype],
    rows: Int,
    C: Int,
    OC: Int,
    epilogue: E,
):
    """Computes dinp = epilogue(dout @ weight). dout (rows,OC), weight (OC,C), dinp (rows,C)."""
    gemm(team, workspace, rows, C, OC, row_major(dout, OC), row_major(weight, C), dinp, C, epilogue)


def linear_backward_weight[
    dtype: DType
](
    team: Team,
    workspace: Tensor[F32],
    dweight: Tensor[F32],
    dout: Tensor[dtype],
    inp: Tensor[dtype],
    rows: Int,
    C: Int,
    OC: Int,
    accumulate: Bool,
):
    """Computes dweight = dout^T @ inp, added to what is there with `accumulate`. dweight (OC,C)."""
    gemm(
        team,
        workspace,
        OC,
        C,
        rows,
        row_major(dout, OC).transposed(),
        row_major(inp, C),
        dweight,
        C,
        Plain(),
        accumulate,
    )


def linear_backward_bias[
    dtype: DType
](team: Team, dbias: Tensor[F32], dout: Tensor[dtype], rows: Int, OC: Int, accumulate: Bool):
    """Computes dbias = sum over rows of dout, added to what is there with `accumulate`. dbias (OC).

    Split over channels, so that each sum runs over the rows in order in one thread.
    """

    def body(member: Int) {imm}:
        var lo, hi = share(OC, team.size, member, W)
        var full = lo + (hi - lo) // W * W
        for first in range(0, rows, ROWS_AT_ONCE):
            var last = min(first + ROWS_AT_ONCE, rows)
            var add = accumulate or first > 0
            for o in range(lo, full, W):
                _add_rows[W](dbias, dout, o, first, last, OC, add)
            for o in range(full, hi):
                _add_rows[1](dbias, dout, o, first, last, OC, add)

    team.run(body, "linear_backward_bias", bytes=size_of[Scalar[dtype]]() * rows * OC)


@always_inline
def _add_rows[
    width: Int, dtype: DType
](dbias: Tensor[F32], dout: Tensor[dtype], o: Int, first: Int, last: Int, OC: Int, add: Bool):
    var sum = dbias.load[width](o) if add else SIMD[F32, width](0)
    for row in range(first, last):
        sum += dout.load[width](row * OC + o).cast[F32]()
    dbias.store(o, sum)

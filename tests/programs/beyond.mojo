"""Reaches beyond a tensor, or has kernels do their work on ragged sizes. Run by tests/test_checked_builds.py.

    CASE [INDEX]

Prints `done` at the end, unless a check has ended it.
"""

from std.sys import argv

from llm.base.memory import Arena, Tensor
from llm.cpu.attention import attention_backward, attention_forward, attention_workspace_size
from llm.cpu.gemm import Matrix, Plain, gemm, gemm_workspace_size, largest_depth, row_major
from llm.cpu.layernorm import layernorm_forward
from llm.cpu.threads.crew import Team

comptime F32 = DType.float32
comptime BF16 = DType.bfloat16


def main() raises:
    var what = String(argv()[1])
    var i = Int(String(argv()[2])) if len(argv()) > 2 else 0
    var arena = Arena(1 << 28)
    var before = arena.carve[F32](10)
    var x = arena.carve[F32](10)
    before.fill(1)
    x.fill(1)
    if what == "read":
        print(x[i])
    elif what == "write":
        x[i] = 2
    elif what == "load":
        print(x.load[4](i))
    elif what == "store":
        x.store(i, SIMD[F32, 8](2))
    elif what == "slice":
        print(x.slice(i, 4).size)
    elif what == "pointer read":
        print(x.ptr[unsafe_offset=i])
    elif what == "pointer write":
        x.ptr[unsafe_offset=i] = 2
    elif what == "depth":
        deep_product(arena, largest_depth[BF16, BF16]() + i)
    else:
        kernels(arena)
    # What was written beside a tensor is found here.
    _ = arena^
    print("done")


def deep_product(mut arena: Arena, K: Int) raises:
    var a = arena.carve[BF16](3 * K)
    var b = arena.carve[BF16](5 * K)
    var c = arena.carve[BF16](15)
    var workspace = arena.carve[F32](gemm_workspace_size(1))
    gemm(Team(1), workspace, 3, 5, K, row_major(a, K), row_major(b, K).transposed(), c, 5, Plain())


def kernels(mut arena: Arena) raises:
    comptime B = 2
    comptime T = 70
    comptime NH = 3
    comptime C = 21
    comptime rows = B * T
    var team = Team(3)
    var qkv, output, logsumexp = ones(arena, rows * 3 * C), ones(arena, rows * C), ones(arena, rows * NH)
    var dqkv, doutput = ones(arena, rows * 3 * C), ones(arena, rows * C)
    var workspace = ones(arena, attention_workspace_size(T, C // NH, team.size))
    attention_forward(team, workspace, output, logsumexp, qkv, B, T, C, NH)
    attention_backward(team, workspace, dqkv, doutput, qkv, output, logsumexp, B, T, C, NH)
    var norm, mean, rstd = ones(arena, rows * C), ones(arena, rows), ones(arena, rows)
    var weight, bias = ones(arena, C), ones(arena, C)
    layernorm_forward(team, norm, mean, rstd, output, weight, bias, rows, C)
    var product = ones(arena, 3 * C * C)
    var packed = ones(arena, gemm_workspace_size(team.size))
    gemm(team, packed, 3 * C, C, rows, row_major(dqkv, 3 * C).transposed(), row_major(norm, C), product, C, Plain())


def ones(mut arena: Arena, size: Int) raises -> Tensor[F32]:
    var tensor = arena.carve[F32](size)
    tensor.fill(1)
    return tensor

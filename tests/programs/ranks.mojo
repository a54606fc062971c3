"""Sums and messages between the ranks of an mpiexec: `ranks REPLICAS EXCHANGES` prints a hash of the sum of what each replica
has, as every rank gets it, after so many exchanges of short texts."""

from std.sys import argv

from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.base.random import draw_at
from llm.dist.mpi import launched
from llm.dist.ranks import Ranks
from llm.dist.reduction import CHUNK, Chunks, Exchange, add

comptime F32 = DType.float32
comptime SIZE = 3 * CHUNK + 1717


def main() raises:
    var replicas = Int(argv()[1])
    var launch = launched()
    var ranks = Ranks(launch.value()) if launch else Ranks()
    var arena = Arena((replicas + 1) * aligned_bytes[F32](SIZE))
    var each = replicas // ranks.size
    var sums = List[Tensor[F32]]()
    for i in range(each):
        var values = arena.carve[F32](SIZE)
        for j in range(SIZE):
            var bits = draw_at(UInt64(ranks.rank * each + i), UInt64(j))
            values[j] = Float32(Int(bits >> 40)) * Float32(1 << Int(bits & 15)) - 1e9
        sums.append(values)
    var distance = 1
    while distance < each:
        for i in range(0, each - distance, 2 * distance):
            add(sums[i], sums[i + distance])
        distance *= 2
    var chunks = Chunks()
    for rank in range(ranks.size):
        var own = List[Tensor[F32]]()
        for at in range(SIZE * rank // ranks.size, SIZE * (rank + 1) // ranks.size, CHUNK):
            own.append(sums[0].slice(at, min(CHUNK, SIZE * (rank + 1) // ranks.size - at)))
        chunks.append(own^)
    var exchange = Exchange(ranks.size)
    exchange.sum(ranks, chunks)
    exchange.spread(ranks, chunks)
    var hash = UInt64(0)
    for j in range(SIZE):
        hash = draw_at(hash, UInt64(sums[0][j].to_bits()))
    for i in range(Int(argv()[2])):
        var names = ranks.texts(String(t"r{ranks.rank}.{i}"))
        for rank in range(ranks.size):
            if names[rank] != String(t"r{rank}.{i}"):
                raise Error(t"expected r{rank}.{i}, got {names[rank]}")
    ranks.view().leave()
    print(t"{ranks.rank} of {ranks.size} {hash}")
    _ = arena^

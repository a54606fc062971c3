"""What the machine can do at best, measured beside whatever is being timed: multiply-adds, copies, AdamW's traffic."""

from std.sys import simd_width_of
from std.time import perf_counter_ns

from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.cpu.peak import peak_of_one_try
from llm.cpu.threads.crew import Crew, Team, share

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()
comptime READ_CHAINS = 8
comptime STREAM_SIZE = 32_000_000
"""Scalars in each of the four arrays that passes over memory use: 128 MB, beyond the caches."""


struct Limits:
    """The best that the threads of a crew have shown so far."""

    var flops: Float64
    """GFLOP/s of fused multiply-adds in registers."""
    var read: Float64
    """GB/s of a pass that only reads."""
    var copy: Float64
    """GB/s of a copy, bytes read plus bytes written."""
    var adamw: Float64
    """GB/s of a pass that reads four arrays and writes three."""
    var _arena: Arena
    var _stream: Tensor[F32]

    def __init__(out self) raises:
        self.flops = 0
        self.read = 0
        self.copy = 0
        self.adamw = 0
        self._arena = Arena(aligned_bytes[F32](4 * STREAM_SIZE))
        self._stream = self._arena.carve[F32](4 * STREAM_SIZE)

    def measure[dtype: DType = F32](mut self, crew: Crew) raises:
        """Measures all once more: some 50 ms."""
        for _ in range(10):
            self.measure_flops[dtype](crew)
        var stream = self._stream

        def read(team: Team) {imm}:
            _read(team, stream)

        def copy(team: Team) {imm}:
            _copy(team, stream)

        def adamw(team: Team) {imm}:
            _stream_like_adamw(team, stream)

        self.read = max(self.read, _speed(crew, read, 4))
        self.copy = max(self.copy, _speed(crew, copy, 8))
        self.adamw = max(self.adamw, _speed(crew, adamw, 28))

    def measure_flops[dtype: DType = F32](mut self, crew: Crew) raises:
        """Measures the multiply-adds once more: a millisecond."""
        self.flops = max(self.flops, peak_of_one_try[dtype](crew) / 1e9)


def _speed[Body: def(Team) -> None](crew: Crew, body: Body, bytes: Int) raises -> Float64:
    """Returns GB/s of a pass over the stream that moves so many bytes for each scalar."""
    var start = perf_counter_ns()
    crew.run(body)
    return Float64(bytes * STREAM_SIZE) / Float64(perf_counter_ns() - start)


def _read(team: Team, stream: Tensor[F32]):
    def body(member: Int) {imm}:
        var lo, hi = share(STREAM_SIZE, team.size, member, READ_CHAINS * W)
        var sums = Array[SIMD[F32, W], READ_CHAINS](fill=SIMD[F32, W](0))
        for i in range(lo, hi - READ_CHAINS * W + 1, READ_CHAINS * W):
            comptime for j in range(READ_CHAINS):
                sums[j] += stream.load[W](i + j * W)
        var sum = SIMD[F32, W](0)
        comptime for j in range(READ_CHAINS):
            sum += sums[j]
        # Stored, so that it has to be computed.
        stream[3 * STREAM_SIZE + 64 * member] = sum.reduce_add()

    team.run(body)


def _copy(team: Team, stream: Tensor[F32]):
    def body(member: Int) {imm}:
        var lo, hi = share(STREAM_SIZE, team.size, member, W)
        for i in range(lo, hi, W):
            stream.store(i + STREAM_SIZE, stream.load[W](i))

    team.run(body)


def _stream_like_adamw(team: Team, stream: Tensor[F32]):
    def body(member: Int) {imm}:
        var lo, hi = share(STREAM_SIZE, team.size, member, W)
        for i in range(lo, hi, W):
            var a = stream.load[W](i)
            var b = stream.load[W](i + STREAM_SIZE)
            var c = stream.load[W](i + 2 * STREAM_SIZE)
            var d = stream.load[W](i + 3 * STREAM_SIZE)
            stream.store(i, a + d)
            stream.store(i + STREAM_SIZE, b * 0.5 + d)
            stream.store(i + 2 * STREAM_SIZE, c * 0.5 + d)

    team.run(body)

"""What the machine can do at best, as one JSON object: for `python -m llm_mojo bench`, before each of its rounds.

    mojo run -I . bench/bench_limits.mojo
"""

from std.sys import exit, stderr
from std.time import perf_counter_ns

from limits import Limits
from llm.base.formatting import fixed
from llm.cpu.threads.cores import available_threads
from llm.cpu.threads.crew import Crew

comptime NANOSECONDS = 1_000_000_000


def main():
    try:
        var threads = available_threads()
        var crew = Crew(threads)
        var limits = Limits()
        var start = perf_counter_ns()
        var bf16 = Limits()
        while perf_counter_ns() - start < NANOSECONDS:
            limits.measure(crew)
            for _ in range(10):
                bf16.measure_flops[DType.bfloat16](crew)
        print(
            t'{{"threads": {threads}, "gflops": {fixed(limits.flops, 1)}, "bf16_gflops": {fixed(bf16.flops, 1)},'
            t' "read_gbs": {fixed(limits.read, 2)},'
            t' "copy_gbs": {fixed(limits.copy, 2)}, "adamw_gbs": {fixed(limits.adamw, 2)}}}'
        )
    except error:
        print(t"bench_limits: {error}", file=stderr)
        exit(1)

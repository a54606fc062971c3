"""The kernels beside their limits, and where the time of a training step goes, operation by operation."""

from typing import Any

from llm_mojo.bench import results
from llm_mojo.bench.workshop import Missing

GEMM: list[dict[str, Any]] = [{"rows": rows, "dtype": dtype} for rows in (256, 4096) for dtype in ("fp32", "bf16")]
OPERATIONS: list[dict[str, Any]] = [{"T": T, "dtype": dtype} for T in (64, 1024) for dtype in ("fp32", "bf16")]


def time_kernels(bench):
    """Times every matrix product of a step, attention over the context length, and what only moves memory."""
    bench.progress.begin("kernels", "kernels")
    rounds = 2 if bench.quick else 5
    for case in GEMM:
        if bench.quick and case["rows"] > 256:
            label = f"matrix products, {case['rows']:,} rows, {case['dtype']}"
            bench.leave_out("kernels", label, "left out by --quick")
        else:
            _run(bench, "gemm", "bench/bench_gemm.mojo", case, "--rounds", rounds)
    _run(bench, "attention", "bench/bench_attention.mojo", {}, "--rounds", rounds)
    _run(bench, "memory", "bench/bench_memory.mojo", {}, "--rounds", 2 * rounds)


def time_operations(bench):
    """Times every operation of a step of GPT-2 124M, B=4."""
    bench.progress.begin("operations", "the operations of a step")
    # A table of operations is not added to another: it takes its place.
    bench.results["operations"] = []
    for case in OPERATIONS:
        if bench.quick and case["T"] > 64:
            bench.leave_out("operations", f"T={case['T']}, {case['dtype']}", "left out by --quick")
        else:
            flags = ["-b", 4, "-t", case["T"], "--dtype", case["dtype"]]
            # A step of 4,096 tokens is its own average.
            steps = ["--steps", 5 if case["T"] == 64 else 1]
            _run(bench, "operations", "bench/bench_step.mojo", {}, *flags, *steps, options=["-D", "TRACE"])


def _run(bench, key, source, case, *flags, options=()):
    words = [word for name, value in case.items() for word in (f"--{name}", value)]
    bench.wait_for_quiet()
    try:
        entries = bench.json_lines(bench.workshop.mojo(source, options=options), *words, *flags, "--json")
    except Missing as reason:
        bench.leave_out("kernels", f"{source} {' '.join(map(str, words))}", reason)
        return
    for entry in entries:
        results.add(bench.results[key], case | entry)
    print(f"  {source} {' '.join(map(str, [*words, *flags]))}: {len(entries)} timed", flush=True)
    bench.save()

"""Training steps of all contestants, in turn, round after round, each time in a fresh process.

Nothing is reported unless their losses agree.
"""

import time

from llm_mojo import Error
from llm_mojo.bench import results
from llm_mojo.bench.contestants import CONTESTANTS, STEPS
from llm_mojo.bench.runner import Pace, run_steps
from llm_mojo.bench.sizes import scaling_sizes
from llm_mojo.bench.workshop import Command, Missing

TOO_SLOW_S = 60
"""Seconds for a step beyond which a contestant is left out."""
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}
"""How far apart losses may be."""
COMPARED = 10
"""Losses that are kept and compared: in the long run rounding leads each program its own way."""


def time_steps(bench, size, names=None):
    """Times the steps of all contestants, or of the named ones, at one size."""
    bench.progress.begin(size.name, size.title)
    entries, taking_part = {}, []
    for contestant in CONTESTANTS:
        if names and contestant.name not in names:
            continue
        try:
            if bench.quick and not contestant.quick:
                raise Missing("left out by --quick")
            _refuse_if_slow(bench, contestant, size)
            taking_part.append((contestant, contestant.command(bench.workshop, size)))
        except Missing as reason:
            bench.leave_out(size.name, contestant.label, reason)
            continue
        entries[contestant.name] = _earlier(bench, contestant, size) or _entry(contestant, size)
    known = bench.results["steps"]
    rounds = size.rounds(bench.rounds)
    for number in range(rounds):
        bench.progress.round(number, rounds)
        bench.measure_limits()
        for contestant, command in [each for each in taking_part if number % each[0].every == 0]:
            entry = entries[contestant.name]
            try:
                _turn(bench, size, contestant, command, entry)
            except Missing as reason:
                bench.leave_out(size.name, contestant.label, reason)
                taking_part.remove((contestant, command))
            if entry["rounds"] and entry not in known:
                known.append(entry)
            # Before anything is saved: times of programs that do different work say nothing.
            check_losses(entries)
            bench.save()


def _turn(bench, size, contestant, command, entry):
    """Fresh processes until the turn has lasted its time: who starts fast is seen in several, each in other memory."""
    bench.wait_for_quiet()
    pace = size.pace(contestant.warm_up, bench.quick)
    began = time.monotonic()
    while True:
        run = run_steps(command, pace, bench.prefix)
        # Every process begins with the same weights: the longest row says it all.
        entry["losses"] = max(entry["losses"], run.losses[:COMPARED], key=len)
        entry["rounds"].append(
            {
                "ms": run.ms,
                "warm_up": run.warm_up,
                "first_step_s": run.first_step_s if contestant.reports_start else None,
                "peak_mb": run.peak_mb,
                "others": run.others,
            }
        )
        _print_run(contestant.label, run)
        if bench.quick or time.monotonic() - began >= size.turn_s:
            return


def _print_run(label, run):
    short = results.Summary.of(run.timed)
    disturbed = f"; others took {100 * run.others:.0f}%" if run.others > 0.05 else ""
    print(
        f"  {label:34} {short.median:9.1f} ms  ({short.low:.1f} to {short.high:.1f}, "
        f"{short.count} steps)  {run.peak_mb:.0f} MB{disturbed}",
        flush=True,
    )


def _earlier(bench, contestant, size):
    """What there is of a contestant already, to which more rounds are added."""
    key = (size.name, contestant.name)
    return next((entry for entry in bench.results["steps"] if (entry["size"], entry["contestant"]) == key), None)


def _entry(contestant, size):
    return {
        "size": size.name,
        "title": size.title,
        "B": size.B,
        "T": size.T,
        "gflop": round(size.flops / 1e9, 6),
        "floor_mb": round(size.bytes / 1e6, 6),
        "contestant": contestant.name,
        "label": contestant.label,
        "precision": contestant.precision,
        "flags": contestant.flags,
        "ours": contestant.ours,
        "losses": [],
        "rounds": [],
    }


def _refuse_if_slow(bench, contestant, size):
    """Expects time to grow with the arithmetic, from the largest smaller size that this run has seen."""
    smaller = [
        entry
        for entry in bench.results["steps"]
        if entry["contestant"] == contestant.name and entry["gflop"] < size.flops / 1e9
    ]
    if smaller:
        nearest = max(smaller, key=lambda entry: entry["gflop"])
        seconds = results.summary(nearest).median / 1000 * size.flops / 1e9 / nearest["gflop"]
        if seconds > TOO_SLOW_S:
            raise Missing(f"a step would take about {seconds:.0f} s; over {TOO_SLOW_S} s is left out")


def check_losses(entries):
    """Raises Error unless all contestants have the same losses, as far as their precision allows."""
    ranked = sorted(entries.values(), key=lambda entry: (entry["precision"] != "fp32", not entry["ours"]))
    for entry in ranked[1:]:
        for step, (found, expected) in enumerate(zip(entry["losses"], ranked[0]["losses"]), 1):
            if abs(found - expected) > TOLERANCE[entry["precision"]]:
                raise Error(
                    f"bench: {entry['label']} has loss {found} in step {step} where {ranked[0]['label']} has "
                    f"{expected}: they do not train the same model on the same tokens; no times are reported"
                )


def time_scaling(bench):
    """Times our steps over contexts and over model sizes, against their arithmetic."""
    bench.progress.begin("scaling", "train_gpt2.mojo over contexts and model sizes")
    program = bench.workshop.mojo("train_gpt2.mojo")
    bench.measure_limits()
    for size in scaling_sizes():
        c = size.config
        model = ["--n-layer", c.num_layers, "--n-head", c.num_heads, "--n-embd", c.channels]
        shard = bench.workshop.shard(size)
        data = ["-i", shard, "-j", shard, "-b", size.B, "-t", size.T, "-v", 0, "-s", 0, "-x", STEPS]
        command = Command([program, *model, "--vocab-size", c.vocab_size, *data])
        bench.wait_for_quiet()
        try:
            run = run_steps(command, Pace(most=9, seconds=1 if bench.quick else 5), bench.prefix)
        except Missing as reason:
            bench.leave_out("scaling", size.title, reason)
            continue
        entry = {"name": size.name, "title": size.title, "B": size.B, "T": size.T, "layers": c.num_layers}
        entry |= {"channels": c.channels, "gflop": round(size.flops / 1e9, 6)}
        entry |= {"floor_mb": round(size.bytes / 1e6, 6), "peak_mb": run.peak_mb, "ms": run.timed}
        results.add(bench.results["scaling"], entry)
        short = results.Summary.of(run.timed)
        per_token = 1e3 * short.median / size.tokens
        print(
            f"  {size.title:28} {short.median:9.1f} ms, {per_token:.0f} us a token, "
            f"{entry['gflop'] / short.median * 1000:.0f} GFLOP/s",
            flush=True,
        )
        bench.save()

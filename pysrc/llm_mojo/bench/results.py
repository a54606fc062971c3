"""The file that a bench leaves behind, and what follows from it: medians, ranges, shares of the floor.

    {"format": 2, "date": ..., "commit": ..., "machine": {...}, "versions": {...},
     "limits": [{"gflops", "bf16_gflops", "read_gbs", "copy_gbs", "adamw_gbs"} ...],   one for each round
     "waits": [{"seconds", "others"} ...],   for other programs: how long, and what they still took then
     "missing": [{"size", "label", "reason"} ...],
     "steps": [{"size", "title", "B", "T", "gflop", "floor_mb", "contestant", "label", "precision", "flags", "ours",
                "losses": [...],
                "rounds": [{"ms": [...], "warm_up": n, "first_step_s", "peak_mb", "others"} ...],   one for each process
                "summary": {"median", "low", "high", "count", "from", "to"}} ...],
     "gemm": [...], "attention": [...], "memory": [...], "operations": [...], "scaling": [...], "generation": [...],
     "tokens": [...],
     "loss": [{"contestant", "label", "precision", "flags", "ours", "seed",
               "curve": [{"step", "seconds", "val_loss"} ...]} ...]}

Every timing is kept. The summaries are there for readers: they are computed from the timings when the file is written,
and nothing of ours reads them.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from llm_mojo import Error
from llm_mojo.files import atomic_file

FORMAT = 2
PARTS = ("steps", "gemm", "attention", "memory", "operations", "scaling", "generation", "tokens", "loss")
"""The lists of what was measured."""
CONFIDENCE = 0.95
KINDS = {"avx512f": "AVX-512", "avx2": "AVX2"}
"""Kinds of machines by the flag of the processor, the widest vectors first."""
OTHER_KIND = "other vectors"
_TIMINGS = {"ms", "max_ms", "backward_ms", "tokens_per_second", "sum_gbs", "limits_gbs", "mb_per_second"}
_EXTREMES = {"peak_gflops", "peak_mb"}


def read(path):
    """Reads a file of results. Raises Error if it is something else."""
    try:
        results = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise Error(f"results {path}: {error}; expected a file that `python -m llm_mojo bench` has written") from error
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise Error(f"results {path}: expected format {FORMAT} of `python -m llm_mojo bench`; run the bench again")
    # A part that is younger than the file.
    return {part: [] for part in PARTS} | results


def write(path, results):
    """Writes the results, one entry a line where there are many, each training step's with its summary."""
    summed = [entry | {"summary": summary_fields(entry)} if entry["rounds"] else entry for entry in results["steps"]]
    results = results | {"steps": summed}
    parts = []
    for key, value in results.items():
        if isinstance(value, list) and value:
            lines = ",\n".join("    " + json.dumps(item) for item in value)
            parts.append(f"  {json.dumps(key)}: [\n{lines}\n  ]")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    with atomic_file(path) as file:
        file.write(("{\n" + ",\n".join(parts) + "\n}\n").encode())


def add(entries, entry):
    """Adds what was measured to one of the lists: to the timings of the entry for the same work, if there is one."""
    for earlier in entries:
        if all(earlier[key] == value for key, value in entry.items() if key not in _TIMINGS | _EXTREMES):
            for key in _TIMINGS & entry.keys():
                earlier[key] += entry[key]
            for key in _EXTREMES & entry.keys():
                earlier[key] = max(earlier[key], entry[key])
            return
    entries.append(entry)


def limits(results):
    """The best that the machine has shown in any round."""
    keys = ("gflops", "bf16_gflops", "read_gbs", "copy_gbs", "adamw_gbs")
    return {key: max(entry[key] for entry in results["limits"]) for key in keys}


@dataclass(frozen=True)
class Summary:
    """A row of timings in short."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values):
        return cls(median=median(values), low=min(values), high=max(values), count=len(values))


def interval(values):
    """Where the median lies with 95% confidence, whatever the distribution: two of the values, as far out as it takes.

    The median lies outside the k-th values from below and above with the probability that of n fair coins fewer than k
    fall on one side. Fewer than six values are never sure of it: then it is the least and the most.
    """
    ordered = sorted(values)
    n, k, outside = len(ordered), 1, 2 * 0.5 ** len(ordered)
    while True:
        outside += 2 * math.comb(n, k) * 0.5**n
        if outside > 1 - CONFIDENCE or k + 1 > (n + 1) // 2:
            return ordered[k - 1], ordered[n - k]
        k += 1


def timings(entry):
    """The milliseconds of all steps that count, of all rounds."""
    return [ms for each in entry["rounds"] for ms in each["ms"][each["warm_up"] :]]


def summary(entry):
    return Summary.of(timings(entry))


def independent(entry):
    """What an interval can be computed from: the processes' medians, or if there are less than three, all timings.

    Steps of one process meet the same weather: many of them are no more certain than few.
    """
    medians = [median(each["ms"][each["warm_up"] :]) for each in entry["rounds"] if len(each["ms"]) > each["warm_up"]]
    return medians if len(medians) > 2 else timings(entry)


def summary_fields(entry):
    """The summary of a training step as the file has it, in milliseconds."""
    s, (low, high) = summary(entry), interval(independent(entry))
    fields = {"median": s.median, "low": s.low, "high": s.high, "count": s.count, "from": low, "to": high}
    return {key: round(value, 3) for key, value in fields.items()}


def kind(results):
    """The kind of machine that a file is of, by its processor's widest vectors."""
    vectors = results["machine"]["vectors"]
    return next((name for flag, name in KINDS.items() if flag in vectors), OTHER_KIND)


def chart_name(chart, results):
    """What a chart of a file is called in imgs/: machines with AVX-512 have the plain names."""
    name = kind(results)
    return chart if name == "AVX-512" else f"{chart}-{name.lower().replace(' ', '-')}"


def floor_ms(entry, results):
    """Milliseconds of a step at the machine's limits: its arithmetic in its precision, then AdamW's traffic."""
    best = limits(results)
    gflops = best["bf16_gflops" if entry.get("precision") == "bf16" else "gflops"]
    return entry["gflop"] / gflops * 1000 + entry["floor_mb"] / best["adamw_gbs"]


def tokens_per_second(entry):
    return 1000 * entry["B"] * entry["T"] / summary(entry).median


def peak_mb(entry):
    return max(each["peak_mb"] for each in entry["rounds"] if each["peak_mb"])


def first_steps_s(entry):
    """Seconds from the start of the program to the end of its first step, of all processes."""
    return [each["first_step_s"] for each in entry["rounds"] if each["first_step_s"]]


def steps_of(results, size):
    """The contestants of a size, the fastest first."""
    entries = [entry for entry in results["steps"] if entry["size"] == size and entry["rounds"]]
    return sorted(entries, key=lambda entry: summary(entry).median)


def sizes(results):
    """The sizes in the file, in its order: name to title."""
    return {entry["size"]: entry["title"] for entry in results["steps"]}

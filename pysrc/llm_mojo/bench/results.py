"""The file that a bench leaves behind, and what follows from it: medians, ranges, shares of the floor.

    {"format": 1, "date": ..., "commit": ..., "machine": {...}, "versions": {...},
     "limits": [{"gflops", "bf16_gflops", "read_gbs", "copy_gbs", "adamw_gbs"} ...],   one for each round
     "steps": [{"size", "title", "B", "T", "gflop", "floor_mb", "contestant", "label", "precision", "flags", "ours",
                "losses": [...], "rounds": [{"ms": [...], "warm_up": n, "first_step_s", "peak_mb"} ...]} ...],
     "missing": [{"size", "label", "reason"} ...],
     "gemm": [...], "attention": [...], "memory": [...], "scaling": [...], "generation": [...]}

Every timing is kept; nothing that can be computed is.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from llm_mojo import Error
from llm_mojo.formats import atomic_file

FORMAT = 1


def read(path):
    """Reads a file of results. Raises Error if it is something else."""
    try:
        results = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise Error(f"results {path}: {error}; expected a file that `python -m llm_mojo bench` has written")
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise Error(f"results {path}: expected format {FORMAT} of `python -m llm_mojo bench`; run the bench again")
    return results


def write(path, results):
    """Writes the results, one entry a line where there are many."""
    parts = []
    for key, value in results.items():
        if isinstance(value, list) and value:
            lines = ",\n".join("    " + json.dumps(item) for item in value)
            parts.append(f"  {json.dumps(key)}: [\n{lines}\n  ]")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    with atomic_file(path) as file:
        file.write(("{\n" + ",\n".join(parts) + "\n}\n").encode())


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
    quarter: float
    """The middle half of the timings lies between `quarter` and `three_quarters`."""
    three_quarters: float

    @classmethod
    def of(cls, values):
        ordered = sorted(values)
        last = len(ordered) - 1
        return cls(
            median=median(ordered),
            low=ordered[0],
            high=ordered[-1],
            count=len(ordered),
            quarter=ordered[round(0.25 * last)],
            three_quarters=ordered[round(0.75 * last)],
        )


def timings(entry):
    """The milliseconds of all steps that count, of all rounds."""
    return [ms for each in entry["rounds"] for ms in each["ms"][each["warm_up"] :]]


def summary(entry):
    return Summary.of(timings(entry))


def floor_ms(entry, results):
    """Milliseconds of a step at the machine's limits: its arithmetic in its precision, then AdamW's traffic."""
    best = limits(results)
    gflops = best["bf16_gflops" if entry.get("precision") == "bf16" else "gflops"]
    return entry["gflop"] / gflops * 1000 + entry["floor_mb"] / best["adamw_gbs"]


def tokens_per_second(entry):
    return 1000 * entry["B"] * entry["T"] / summary(entry).median


def peak_mb(entry):
    return max(each["peak_mb"] for each in entry["rounds"] if each["peak_mb"])


def first_step_s(entry):
    """Seconds from the start of the program to the end of its first step, or None."""
    seconds = [each["first_step_s"] for each in entry["rounds"] if each["first_step_s"]]
    return median(seconds) if seconds else None


def steps_of(results, size):
    """The contestants of a size, the fastest first."""
    entries = [entry for entry in results["steps"] if entry["size"] == size and entry["rounds"]]
    return sorted(entries, key=lambda entry: summary(entry).median)


def sizes(results):
    """The sizes in the file, in its order: name to title."""
    return {entry["size"]: entry["title"] for entry in results["steps"]}

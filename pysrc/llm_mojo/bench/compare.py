"""`python -m llm_mojo bench compare OLD.json NEW.json`: what became faster or slower, and whether it means anything.

A difference is beyond noise if the intervals in which the two medians lie (95%, from the rounds) do not overlap. Times
of others are shown beside ours: when they moved as well, the machine did.
"""

from dataclasses import dataclass
from itertools import combinations
from statistics import median

from llm_mojo import Error
from llm_mojo.bench import results as R
from llm_mojo.bench.contestants import CONTESTANTS

LONG_MS = 100
"""What takes longer should come out the same each time."""


@dataclass(frozen=True)
class Timing:
    """One row of timings."""

    ms: float
    """The median."""
    interval: tuple
    """Where the median lies."""
    ours: bool = True
    steady: bool = True
    """Whether two runs of the same programs should agree."""

    @classmethod
    def of(cls, values, ours=True):
        return cls(median(values), R.interval(values), ours)


@dataclass(frozen=True)
class Change:
    """One thing that both files have timed."""

    name: str
    old: Timing
    new: Timing

    @property
    def percent(self):
        """How much longer it takes now; negative if it became faster."""
        return 100 * (self.new.ms / self.old.ms - 1)

    @property
    def beyond_noise(self):
        return self.new.interval[0] > self.old.interval[1] or self.new.interval[1] < self.old.interval[0]

    def verdict(self, threshold):
        """In words, for changes of at least `threshold` percent."""
        if not self.beyond_noise or abs(self.percent) < threshold:
            return "same"
        return "slower" if self.percent > 0 else "FASTER"


def changes(old, new):
    """Pairs what both results have timed."""
    before, after = dict(_timings(old)), dict(_timings(new))
    return [Change(name, before[name], timing) for name, timing in after.items() if name in before]


def _timings(results):
    """All rows of timings: (name, Timing)."""
    for entry in results["steps"]:
        if entry["rounds"]:
            interval = R.interval(R.independent(entry))
            timing = Timing(R.summary(entry).median, interval, entry["ours"], _is_steady(entry))
            yield f"{entry['label']} ({entry['title']})", timing
    for entry in results["gemm"]:
        name = f"{entry['name']}, {entry['rows']} rows, {entry['dtype']}"
        yield f"gemm {name}", Timing.of(entry["ms"])
        if entry["max_ms"]:
            yield f"MAX {name}", Timing.of(entry["max_ms"], ours=False)
    for entry in results["attention"]:
        yield f"attention forward, T={entry['T']}", Timing.of(entry["ms"])
        yield f"attention backward, T={entry['T']}", Timing.of(entry["backward_ms"])
    for entry in results["memory"]:
        yield entry["name"], Timing.of(entry["ms"])
    for entry in results["scaling"]:
        yield f"scaling, {entry['title']}", Timing.of(entry["ms"])
    for entry in results["generation"]:
        ms = [1000 / speed for speed in entry["tokens_per_second"]]
        yield f"{entry['label']} ({entry['title']}), ms a token", Timing.of(ms, entry["ours"])
    for entry in results["tokens"]:
        ms = [1000 / rate for rate in entry["mb_per_second"]]
        yield f"{entry['label']} ({entry['text']}), ms a MB of text", Timing.of(ms, entry["ours"])


def _is_steady(entry):
    return all(contestant.steady for contestant in CONTESTANTS if contestant.name == entry["contestant"])


def overtakings(old, new, threshold):
    """Who was ahead of whom in one file and behind in the other, by title: pairs of labels.

    Two that are less than `threshold` percent apart in both share a place.
    """
    found = {}
    for size, title in R.sizes(old).items():
        before, after = (
            {e["label"]: R.summary(e).median for e in R.steps_of(file, size) if _is_steady(e)} for file in (old, new)
        )
        common = [label for label in before if label in after]
        apart = 1 + threshold / 100
        found[title] = [
            (a, b)
            for a, b in combinations(common, 2)
            if after[a] > after[b] and (before[b] > apart * before[a] or after[a] > apart * after[b])
        ]
    return found


def compare(old_path, new_path, threshold):
    """Prints the comparison. Raises Error if something of ours became slower by more than `threshold` percent."""
    old, new = R.read(old_path), R.read(new_path)
    if old["machine"] != new["machine"]:
        print(f"not the same machine: {old['machine']['cpu']} and {new['machine']['cpu']}, or parts of it")
    found = changes(old, new)
    if not found:
        raise Error(f"bench compare: {old_path} and {new_path} have nothing in common")
    if old["limits"] and new["limits"]:
        for key, what in (("gflops", "GFLOP/s of multiply-adds"), ("adamw_gbs", "GB/s of memory")):
            print(f"{R.limits(old)[key]:10.1f} {R.limits(new)[key]:10.1f}        {what}")
    print("    old ms     new ms   change  verdict")
    for change in found:
        print(
            f"{change.old.ms:10.2f} {change.new.ms:10.2f} {change.percent:+7.1f}%  "
            f"{change.verdict(threshold):7}  {change.name}"
        )
    _print_repeatability(found, overtakings(old, new, threshold), threshold)
    slower = [change.name for change in found if change.new.ours and change.verdict(threshold) == "slower"]
    if slower:
        raise Error(f"{len(slower)} slower by more than {threshold:g}%, beyond noise: {'; '.join(slower)}")


def _print_repeatability(found, overtakings, threshold):
    """Says whether the two agree, as two runs of the same programs should."""
    for title, pairs in overtakings.items():
        swapped = "; ".join(f"{a} and {b} have changed places" for a, b in pairs)
        print(f"ranking: {swapped or 'the same'}, {title}")
    long = [change for change in found if change.new.steady and change.old.ms > LONG_MS]
    within = sum(abs(change.percent) <= threshold for change in long)
    if long:
        print(f"medians: {within} of {len(long)} over {LONG_MS} ms within {threshold:g}%")

"""`python -m llm_mojo bench compare OLD.json NEW.json`: what became faster or slower, and whether it means anything.

A difference is beyond noise if the middle halves of the two rows of timings do not overlap. Times of others are shown
beside ours: when they moved as well, the machine did.
"""

from dataclasses import dataclass

from llm_mojo import Error
from llm_mojo.bench import results as R


@dataclass(frozen=True)
class Change:
    """One thing that both files have timed."""

    name: str
    ours: bool
    old: R.Summary
    new: R.Summary

    @property
    def percent(self):
        """How much longer it takes now; negative if it became faster."""
        return 100 * (self.new.median / self.old.median - 1)

    @property
    def beyond_noise(self):
        return self.new.quarter > self.old.three_quarters or self.new.three_quarters < self.old.quarter

    def verdict(self, threshold):
        """In words, for changes of at least `threshold` percent."""
        if not self.beyond_noise or abs(self.percent) < threshold:
            return "same"
        return "slower" if self.percent > 0 else "FASTER"


def changes(old, new):
    """Pairs what both results have timed."""
    before, after = dict(_timings(old)), dict(_timings(new))
    return [
        Change(name, ours, R.Summary.of(before[name, ours]), R.Summary.of(ms))
        for (name, ours), ms in after.items()
        if (name, ours) in before
    ]


def _timings(results):
    """All rows of timings: ((name, whether it is ours), milliseconds)."""
    for entry in results["steps"]:
        if entry["rounds"]:
            yield (f"{entry['label']} ({entry['title']})", entry["ours"]), R.timings(entry)
    for entry in results["gemm"]:
        yield (f"gemm {entry['name']}, {entry['rows']} rows", True), entry["ms"]
        yield (f"MAX {entry['name']}, {entry['rows']} rows", False), entry["max_ms"]
    for entry in results["attention"]:
        yield (f"attention forward, T={entry['T']}", True), entry["ms"]
        yield (f"attention backward, T={entry['T']}", True), entry["backward_ms"]
    for entry in results["memory"]:
        yield (entry["name"], True), entry["ms"]
    for entry in results["scaling"]:
        yield (f"scaling, {entry['title']}", True), entry["ms"]
    for entry in results["generation"]:
        ms = [1000 / speed for speed in entry["tokens_per_second"]]
        yield (f"{entry['label']} ({entry['title']}), ms a token", entry["ours"]), ms


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
            f"{change.old.median:10.2f} {change.new.median:10.2f} {change.percent:+7.1f}%  "
            f"{change.verdict(threshold):7}  {change.name}"
        )
    slower = [change.name for change in found if change.ours and change.verdict(threshold) == "slower"]
    if slower:
        raise Error(f"{len(slower)} slower by more than {threshold:g}%, beyond noise: {'; '.join(slower)}")

"""The numbers of docs/speed.md: from bench/story/story.json, so that the page cannot say others."""

import json
from pathlib import Path

STORY = json.loads((Path(__file__).parents[2] / "bench/story/story.json").read_text())
RUNGS = {rung["name"]: min(rung["ms"]) for rung in STORY["ladder"]["rungs"]}


def ms(series: str, who: str) -> float:
    """The milliseconds of the least disturbed step."""
    return min(STORY["series"][series]["ms"][who])


def value(path: str) -> str:
    """What stands for `{{ story: PATH }}` in a page: 124m/HEAD train_gpt2, ladder/vectors, or A over B as how many times."""
    if " over " in path:
        first, second = (_milliseconds(part) for part in path.split(" over "))
        return f"{first / second:.2g}"
    if path.startswith("gflops/"):
        M, N, K = (STORY["ladder"][size] for size in "MNK")
        speed = 2 * M * N * K / RUNGS[path.partition("/")[2]] / 1e6
        return f"{speed:.1f}" if speed < 10 else f"{speed:.0f}"
    if path in STORY["ladder"]:
        return f"{STORY['ladder'][path]:.0f}"
    milliseconds = _milliseconds(path)
    return f"{milliseconds / 1000:.1f} s" if milliseconds >= 1000 else f"{milliseconds:.3g} ms"


def _milliseconds(path):
    series, _, who = path.partition("/")
    if series == "ladder":
        return RUNGS[who]
    return ms(series, who if " " in who else f"{who} train_gpt2")


def table() -> str:
    """The steps of 124M as a table: commit, idea, time."""
    rows = ["| commit | what it had | ms a step |", "| --- | --- | ---: |"]
    for point in STORY["points"]:
        if point["name"] in STORY["series"]["124m"]["ms"]:
            rows.append(f"| `{point['commit'][:7]}` | {point['idea']} | {ms('124m', point['name']):,.0f} |")
        elif why := STORY["not_built"].get(point["name"]):
            rows.append(f"| `{point['commit'][:7]}` | {point['idea']} | not built: {why} |")
    return "\n".join(rows)

"""What README.md shows of the bench: one table of steps, a column for each size and kind of machine, and two charts."""

import math

from llm_mojo import charts
from llm_mojo.bench import results as R
from llm_mojo.bench.contestants import CONTESTANTS

README_CHARTS = ("training_loop_times_chart", "loss_over_seconds")
"""bench/README.md shows all."""
SHORT = {"124m": "124M, B=4, T=64", "characters": "characters, B=12, T=64", "124m-t1024": "124M, B=4, T=1024"}
"""The sizes of the table, in its order, and how its head calls them."""


def section(machines):
    """What stands between the markers of README.md: who needs how long for a step, on each machine."""
    from llm_mojo.bench.charts import CHARTS

    text = ""
    for source, results in machines.items():
        machine, best = results["machine"], R.limits(results)
        text += (
            f"\n{R.kind(results)}: {machine['cores']} cores of an {machine['cpu']} (family/model {machine['family']}), "
            f"{best['gflops']:.0f} GFLOP/s at most; [all timings]({source}), {results['date'][:10]}.\n"
        )
    text += "\n" + step_table(machines) + "\n" + _behind(machines)
    shown = [
        charts.picture(f"imgs/{R.chart_name(name, results)}.png", f"{CHARTS[name].shows}, {R.kind(results)}")
        for name in README_CHARTS
        for results in machines.values()
        if CHARTS[name].data(results)
    ]
    return text + "\n" + "\n\n".join(shown) + "\n"


def step_table(machines):
    """Milliseconds a step as Markdown: contestants down, sizes and machines across; the fastest of a precision is bold."""
    columns = [(size, results) for size in SHORT for results in machines.values()]
    columns = [(size, results) for size, results in columns if R.steps_of(results, size)]
    heads = [f"{SHORT[size]}, {R.kind(results)}" for size, results in columns]
    lines = [f"| ms a step | {' | '.join(heads)} |", "| --- " + "| ---: " * len(columns) + "|"]
    cells = [
        {e["contestant"]: (e["precision"], R.summary(e).median) for e in R.steps_of(results, size)}
        for size, results in columns
    ]
    best = [
        {precision: min(ms for each, ms in column.values() if each == precision) for precision, _ in column.values()}
        for column in cells
    ]
    labels = {e["contestant"]: e["label"] for results in machines.values() for e in results["steps"] if e["rounds"]}
    order = {contestant.name: place for place, contestant in enumerate(CONTESTANTS)}
    # What shows a cost of PyTorch's defaults is in bench/README.md.
    unsteady = {contestant.name for contestant in CONTESTANTS if not contestant.steady}
    for name in sorted(labels.keys() - unsteady, key=lambda name: order.get(name, len(order))):
        row = []
        for column, fastest in zip(cells, best):
            precision, ms = column.get(name, ("", None))
            text = milliseconds(ms) if ms else ""
            row.append(f"**{text}**" if ms and ms == fastest[precision] else text)
        lines.append(f"| {labels[name]} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _behind(machines):
    """Where someone else is first, in a sentence."""
    behind = []
    for size in SHORT:
        for results in machines.values():
            entries = R.steps_of(results, size)
            for precision in dict.fromkeys(entry["precision"] for entry in entries):
                ms = {e["label"]: (R.summary(e).median, e["ours"]) for e in entries if e["precision"] == precision}
                ours = min((each for each, is_ours in ms.values() if is_ours), default=math.inf)
                label, (first, is_ours) = min(ms.items(), key=lambda item: item[1][0])
                if not is_ours and math.isfinite(ours):
                    share = f"{label} takes {first / ours:.2f} of our time"
                    behind.append(f"{SHORT[size]}, {R.kind(results)}, {precision}: {share}")
    if not behind:
        return "In every column ours is the fastest of its precision.\n"
    return f"Not first: {'; '.join(behind)}.\n"


def milliseconds(value):
    """A time with three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"

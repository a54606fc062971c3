"""The bench's charts: for each a function from results to data, which go into the picture too, and one that draws."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import matplotlib.ticker

from llm_mojo import charts
from llm_mojo.bench import results as R
from llm_mojo.bench.loss import TARGET


def draw_all(machines, folder):
    """Draws the charts that the files of results have data for, and removes all others; returns the paths."""
    folder = Path(folder)
    paths = []
    for results in machines.values():
        for name, chart in CHARTS.items():
            data = chart.data(results)
            if not data:
                continue

            def fill(figure, theme, draw=chart.draw, data=data, results=results):
                draw(figure, theme, data)
                figure.suptitle(f"{figure.get_suptitle()} ({R.kind(results)})", x=0.01, ha="left", weight="bold")

            paths += charts.save(fill, folder / f"{R.chart_name(name, results)}.png", chart.height(data), data)
    for name in CHARTS:
        for path in folder.glob(f"{name}*.png"):
            if path not in paths:
                path.unlink()
    return paths


# ----- data: plain lists and dicts, all of it from the file of results


def step_times(results, size):
    """The bars of one size: median, least and most milliseconds of each contestant, and its floor."""
    entries = R.steps_of(results, size)
    if not entries:
        return None
    bars = []
    for entry in entries:
        s = R.summary(entry)
        bar = {"label": entry["label"], "ours": entry["ours"], "ms": s.median, "low": s.low, "high": s.high}
        bars.append(bar | {"floor_ms": R.floor_ms(entry, results)})
    return {"title": entries[0]["title"], "bars": bars}


def per_size(results, value):
    """For each size, one number of each contestant."""
    panels = []
    for size, title in R.sizes(results).items():
        bars = [{"label": e["label"], "ours": e["ours"], "value": value(e)} for e in R.steps_of(results, size)]
        if bars:
            panels.append({"title": title, "bars": bars})
    return panels


def roofline(results):
    """Arithmetic per byte and GFLOP/s of each kernel, and the two limits that no kernel can pass."""
    points = []
    for entry in results["gemm"]:
        shared = {"intensity": _gemm_intensity(entry), "detail": f"{entry['name']}, {entry['rows']} rows"}
        ours = "matrix products" if entry["dtype"] == "fp32" else "matrix products, bf16"
        for label, key in ((ours, "ms"), ("matrix products by MAX", "max_ms")):
            if entry[key]:
                points.append({"label": label, "gflops": 1000 * entry["gflop"] / median(entry[key])} | shared)
    for entry in results["attention"]:
        for way, gflop, ms in (("forward", "gflop", "ms"), ("backward", "backward_gflop", "backward_ms")):
            points.append(
                {
                    "label": "attention",
                    "gflops": 1000 * entry[gflop] / median(entry[ms]),
                    "intensity": _attention_intensity(entry, way),
                    "detail": f"{way}, T={entry['T']}",
                }
            )
    for entry in results["memory"]:
        intensity = _OPERATIONS_PER_BYTE[entry["name"]]
        gbs = 1000 * entry["gigabytes"] / median(entry["ms"])
        shared = {"intensity": intensity, "detail": entry["name"]}
        points.append({"label": "AdamW and layernorms", "gflops": intensity * gbs} | shared)
    if not points:
        return None
    best = R.limits(results)
    peaks = {"peak_gflops": best["gflops"], "bf16_peak_gflops": best["bf16_gflops"]}
    return peaks | {"gbs": best["adamw_gbs"], "points": points}


KINDS = {"gemm": "matrix products", "attention": "attention", "layernorm": "layernorms", "adamw": "AdamW"}
"""What operations are called together, by how their names begin."""
THE_REST = "the rest"


def operations(results):
    """Kind and milliseconds of each operation of a step of GPT-2 124M."""
    panels = []
    for entry in results["operations"]:
        parts = []
        for row in entry["rows"]:
            kind = next((kind for begin, kind in KINDS.items() if row["operation"].startswith(begin)), THE_REST)
            parts.append({"kind": kind, "operation": row["operation"], "ms": row["ms"]})
        panels.append({"title": f"B={entry['B']}, T={entry['T']}, {entry['dtype']}", "parts": parts})
    return panels or None


def scaling(results):
    """Microseconds a token over T and over the model, with the floor of each."""
    if not results["scaling"]:
        return None
    points = []
    for entry in results["scaling"]:
        s, tokens = R.Summary.of(entry["ms"]), entry["B"] * entry["T"]
        points.append(
            {
                "name": entry["name"],
                "title": entry["title"],
                "T": entry["T"],
                "gflop_per_token": entry["gflop"] / tokens,
                "us": 1000 * s.median / tokens,
                "low": 1000 * s.low / tokens,
                "high": 1000 * s.high / tokens,
                "floor_us": 1000 * R.floor_ms(entry, results) / tokens,
            }
        )
    return points


def generation(results):
    """Tokens a second of each contestant and task."""
    panels: dict[str, list] = {}
    for entry in results["generation"]:
        bar = {"label": entry["label"], "ours": entry["ours"], "value": median(entry["tokens_per_second"])}
        panels.setdefault(entry["title"], []).append(bar)
    return [
        {"title": title, "bars": sorted(bars, key=lambda bar: -bar["value"])} for title, bars in panels.items()
    ] or None


def loss_over_seconds(results):
    """The curves of each contestant, one for each seed."""
    lines: dict[str, dict] = {}
    for entry in results["loss"]:
        line = lines.setdefault(entry["label"], {"label": entry["label"], "ours": entry["ours"], "curves": []})
        line["curves"].append([[point["seconds"], point["val_loss"]] for point in entry["curve"]])
    return list(lines.values()) or None


_OPERATIONS_PER_BYTE = {"adamw_update": 15 / 28, "layernorm_forward": 8 / 8, "layernorm_backward": 14 / 16}
"""Additions, multiplications, divisions and roots for an element over the bytes that it moves."""


def _gemm_intensity(entry):
    M, N, K = entry["M"], entry["N"], entry["K"]
    operand = 4 if entry["dtype"] == "fp32" else 2
    return 2 * M * N * K / (operand * (M * K + K * N) + 4 * M * N)


def _attention_intensity(entry, way):
    # qkv in, output out; backward also reads both, the output's gradient, and writes the gradient of qkv.
    channels, positions = 768, 4096
    floats = positions * channels * (4 if way == "forward" else 8)
    gflop = entry["gflop"] if way == "forward" else entry["backward_gflop"]
    return gflop * 1e9 / (4 * floats)


# ----- drawing


def draw_step_times(figure, theme, data):
    figure.suptitle(f"Milliseconds a step: {data['title']}", x=0.01, ha="left", weight="bold")
    axes = figure.add_subplot()
    bars = data["bars"][::-1]
    medians = [bar["ms"] for bar in bars]
    spread = [[bar["ms"] - bar["low"] for bar in bars], [bar["high"] - bar["ms"] for bar in bars]]
    axes.barh([bar["label"] for bar in bars], medians, color=_colours(theme, bars), height=0.7)
    axes.errorbar(medians, range(len(bars)), xerr=spread, fmt="none", ecolor=theme.text, elinewidth=1, capsize=2)
    is_log = max(medians) > 5 * min(medians)
    scale = ", logarithmic scale" if is_log else ""
    what = f"milliseconds a step{scale}; bars are medians, whiskers reach from the least to the most"
    figure.supxlabel(what, fontsize=9)
    if is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axes.set_xlim(min(bar["floor_ms"] for bar in bars) / 1.6, max(bar["high"] for bar in bars) * 2)
    else:
        axes.set_xlim(0, max(bar["high"] for bar in bars) * 1.15)
    for i, bar in enumerate(bars):
        axes.annotate(_number(bar["ms"]), (bar["high"], i), (5, 0), textcoords="offset points", va="center")
    for i, bar in enumerate(bars):
        axes.plot([bar["floor_ms"]] * 2, [i - 0.45, i + 0.45], color=theme.text, linestyle=":", linewidth=2)
    axes.annotate(
        "floor",
        (bars[-1]["floor_ms"], 1),
        (0, 2),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="center",
        fontsize=8,
    )
    axes.grid(axis="x")
    _plain_numbers(axes.xaxis)
    axes.margins(y=0.02)


def draw_panels(what, decimals=0):
    """A drawing of panels of bars, one below the other."""

    def draw(figure, theme, panels):
        figure.suptitle(what, x=0.01, ha="left", weight="bold")
        figure.supxlabel(what, fontsize=9)
        heights = [len(panel["bars"]) + 1.5 for panel in panels]
        for axes, panel in zip(figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights).flat, panels):
            bars = panel["bars"][::-1]
            values = [bar["value"] for bar in bars]
            axes.barh([bar["label"] for bar in bars], values, color=_colours(theme, bars), height=0.7)
            for i, value in enumerate(values):
                axes.annotate(f"{value:,.{decimals}f}", (value, i), (4, 0), textcoords="offset points", va="center")
            axes.set_xlim(0, 1.12 * max(values))
            axes.set_title(panel["title"])
            axes.grid(axis="x")
            _plain_numbers(axes.xaxis)

    return draw


def draw_roofline(figure, theme, data):
    axes = figure.add_subplot()
    intensities = [point["intensity"] for point in data["points"]]
    left, right = min(intensities) / 2, max(intensities) * 2
    kinds = {point["label"] for point in data["points"]}
    roofs = [("peak_gflops", "float32", "-")]
    if "matrix products, bf16" in kinds:
        roofs.append(("bf16_peak_gflops", "bfloat16", "--"))
    for key, dtype, line in roofs:
        peak = data[key]
        corners = [left, max(peak / data["gbs"], left), right]
        axes.plot(corners, [min(peak, x * data["gbs"]) for x in corners], line, color=theme.text, linewidth=1.5)
        text = f"{peak:,.0f} GFLOP/s of {dtype} multiply-adds"
        axes.annotate(text, (right, peak), (-4, 4), textcoords="offset points", ha="right")
    axes.annotate(f"{data['gbs']:.0f} GB/s of memory", (1, data["gbs"]), (8, -4), textcoords="offset points")
    for label, marker, colour in (
        ("matrix products by MAX", "s", theme.series[0]),
        ("matrix products", "o", theme.accent),
        ("matrix products, bf16", "P", theme.accent),
        ("attention", "^", theme.series[1]),
        ("AdamW and layernorms", "D", theme.series[2]),
    ):
        points = [point for point in data["points"] if point["label"] == label]
        if points:
            axes.plot(
                [point["intensity"] for point in points],
                [point["gflops"] for point in points],
                marker,
                color=colour,
                markerfacecolor="none" if marker == "s" else colour,
                label=label,
                markersize=5,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(min(point["gflops"] for point in data["points"]) / 1.5, data[roofs[-1][0]] * 1.6)
    axes.set_xlabel("operations for each byte that has to move, logarithmic scale")
    axes.set_ylabel("GFLOP/s, logarithmic scale")
    figure.suptitle("The kernels of GPT-2 124M and what the machine can do", x=0.01, ha="left", weight="bold")
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.legend(loc="lower right")
    axes.grid(which="major")
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)


def draw_operations(figure, theme, panels):
    figure.suptitle("Where the time of a step goes, train_gpt2.mojo", x=0.01, ha="left", weight="bold")
    found = {part["kind"] for panel in panels for part in panel["parts"]}
    kinds = [kind for kind in (*KINDS.values(), THE_REST) if kind in found]
    colours = dict(zip(kinds, [theme.accent, *theme.series]))
    axes = figure.add_subplot()
    for row, panel in enumerate(panels[::-1]):
        total, left = sum(part["ms"] for part in panel["parts"]), 0.0
        for kind in kinds:
            share = 100 * sum(part["ms"] for part in panel["parts"] if part["kind"] == kind) / total
            axes.barh(row, share, left=left, color=colours[kind], height=0.6, label=kind if row == 0 else None)
            if share > 3:
                middle = (left + share / 2, row)
                axes.annotate(f"{share:.0f}%", middle, ha="center", va="center", color=theme.background, fontsize=8)
            left += share
        axes.annotate(f"{_number(total)} ms", (100, row), (5, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(panels)), [panel["title"] for panel in panels[::-1]])
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("percent of the step")
    figure.legend(loc="outside lower center", ncols=3)


def draw_scaling(figure, theme, points):
    figure.suptitle("Microseconds a token, train_gpt2.mojo", x=0.01, ha="left", weight="bold")
    panels = figure.subplots(1, 2)
    over_T = [point for point in points if point["name"].startswith("124m")]
    over_models = [point for point in points if not point["name"].startswith("124m")]
    for axes, part, x, label in (
        (panels[0], over_T, "T", "context T, GPT-2 124M"),
        (panels[1], over_models, "gflop_per_token", "GFLOP a token: models of 30, 124, 354 million"),
    ):
        xs = [point[x] for point in part]
        us = [point["us"] for point in part]
        spread = [[p["us"] - p["low"] for p in part], [p["high"] - p["us"] for p in part]]
        axes.errorbar(xs, us, yerr=spread, color=theme.accent, marker="o", capsize=2, label="measured")
        axes.plot(xs, [p["floor_us"] for p in part], color=theme.text, linestyle="--", linewidth=1, label="floor")
        axes.set_ylim(0, 1.15 * max(point["high"] for point in part))
        axes.set_xlabel(label)
        axes.set_ylabel("microseconds a token")
        axes.grid()
        axes.legend()
    panels[0].set_xscale("log", base=2)
    panels[0].set_xlabel("context T, GPT-2 124M, logarithmic scale")
    panels[1].annotate("whiskers: least to most", (0.02, 0.02), xycoords="axes fraction", fontsize=8)
    _plain_numbers(panels[0].xaxis)


def draw_loss(figure, theme, lines):
    figure.suptitle(
        "Validation loss over seconds of training, nanoGPT's character model", x=0.01, ha="left", weight="bold"
    )
    axes = figure.add_subplot()
    dashes = {True: iter(("-", "--", ":")), False: iter(("-", "--"))}
    for line in lines:
        colour, style = theme.accent if line["ours"] else theme.series[0], next(dashes[line["ours"]])
        for number, curve in enumerate(line["curves"]):
            seconds, losses = zip(*curve)
            name = f"{'llm.mojo: ' if line['ours'] else ''}{line['label']}"
            axes.plot(seconds, losses, style, color=colour, linewidth=1.2, label=name if number == 0 else None)
    axes.axhline(TARGET, color=theme.text, linewidth=1, linestyle=(0, (1, 3)))
    axes.annotate(
        f"{TARGET}: where nanoGPT's recipe ends",
        (1, TARGET),
        (-4, -11),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        fontsize=8,
    )
    ends = [curve[-1][1] for line in lines for curve in line["curves"]]
    axes.set_ylim(min(ends) - 0.05, 2.7)
    axes.set_xlim(left=0)
    axes.set_xlabel("seconds of training steps; a line for each seed; losses begin above 0")
    axes.set_ylabel("validation loss, nats a character")
    axes.legend()
    axes.grid()


def _colours(theme, bars):
    return [theme.accent if bar["ours"] else theme.series[0] for bar in bars]


def _number(ms):
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}"


def _plain_numbers(axis):
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")
    axis.set_minor_formatter(lambda value, _: "")


def _panels_height(panels):
    return sum(0.3 * len(panel["bars"]) + 0.6 for panel in panels)


def _bars_height(data):
    return 0.32 * len(data["bars"]) + 0.9


@dataclass(frozen=True)
class Chart:
    """A picture in imgs/."""

    shows: str
    """In words, for those who do not see it."""
    data: Callable
    """data(results) is what it shows, or nothing."""
    draw: Callable
    """draw(figure, theme, data)"""
    height: Callable
    """height(data) in inches"""


CHARTS = {
    "training_loop_times_chart": Chart(
        "Milliseconds a step of GPT-2 124M: llm.mojo beside C, OpenMP, llm.c and PyTorch",
        lambda results: step_times(results, "124m"),
        draw_step_times,
        _bars_height,
    ),
    "step_times_t1024": Chart(
        "Step times at T=1024", lambda results: step_times(results, "124m-t1024"), draw_step_times, _bars_height
    ),
    "step_times_characters": Chart(
        "Step times of the character model",
        lambda results: step_times(results, "characters"),
        draw_step_times,
        _bars_height,
    ),
    "throughput": Chart(
        "Tokens a second",
        lambda results: per_size(results, R.tokens_per_second),
        draw_panels("Tokens a second"),
        _panels_height,
    ),
    "memory": Chart(
        "Memory",
        lambda results: per_size(results, lambda entry: R.peak_mb(entry) / 1000),
        draw_panels("Memory: GB at most", 2),
        _panels_height,
    ),
    "generation": Chart(
        "Tokens generated a second, beside transformers",
        generation,
        draw_panels("Tokens a second: reading and writing", 0),
        _panels_height,
    ),
    "roofline": Chart("The kernels beside what the machine can do", roofline, draw_roofline, lambda data: 4.6),
    "loss_over_seconds": Chart(
        "Validation loss over seconds: llm.mojo with Muon and AdamW beside nanoGPT's recipe on PyTorch",
        loss_over_seconds,
        draw_loss,
        lambda data: 4.2,
    ),
    "operations": Chart("Where the time of a step goes", operations, draw_operations, lambda data: 3.6),
    "scaling": Chart("Time a token over context and model size", scaling, draw_scaling, lambda data: 3.4),
}

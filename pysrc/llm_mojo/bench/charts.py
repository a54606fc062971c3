"""The bench's charts. Each is a function from results to data, which go into the picture as well, and one that draws."""

from pathlib import Path

import matplotlib.ticker

from llm_mojo import charts
from llm_mojo.bench import results as R


def draw_all(results, folder):
    """Draws the charts that the results have data for; returns the paths."""
    folder = Path(folder)
    paths = []
    for name, (data_of, draw, height_of) in CHARTS.items():
        data = data_of(results)
        if data:

            def fill(figure, theme, draw=draw, data=data):
                draw(figure, theme, data)

            paths += charts.save(fill, folder / f"{name}.png", height_of(data), data)
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
        for label, key in (("matrix products", "ms"), ("the same by MAX", "max_ms")):
            points.append({"label": label, "gflops": 1000 * entry["gflop"] / R.Summary.of(entry[key]).median} | shared)
    for entry in results["attention"]:
        for way, gflop, ms in (("forward", "gflop", "ms"), ("backward", "backward_gflop", "backward_ms")):
            points.append(
                {
                    "label": "attention",
                    "gflops": 1000 * entry[gflop] / R.Summary.of(entry[ms]).median,
                    "intensity": _attention_intensity(entry, way),
                    "detail": f"{way}, T={entry['T']}",
                }
            )
    for entry in results["memory"]:
        intensity = _OPERATIONS_PER_BYTE[entry["name"]]
        gbs = 1000 * entry["gigabytes"] / R.Summary.of(entry["ms"]).median
        shared = {"intensity": intensity, "detail": entry["name"]}
        points.append({"label": "AdamW and layernorms", "gflops": intensity * gbs} | shared)
    if not points:
        return None
    best = R.limits(results)
    return {"peak_gflops": best["gflops"], "gbs": best["adamw_gbs"], "points": points}


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
    panels = {}
    for entry in results["generation"]:
        bar = {"label": entry["label"], "ours": entry["ours"], "value": R.Summary.of(entry["tokens_per_second"]).median}
        panels.setdefault(entry["title"], []).append(bar)
    return [
        {"title": title, "bars": sorted(bars, key=lambda bar: -bar["value"])} for title, bars in panels.items()
    ] or None


_OPERATIONS_PER_BYTE = {"adamw_update": 15 / 28, "layernorm_forward": 8 / 8, "layernorm_backward": 14 / 16}
"""Additions, multiplications, divisions and roots for an element over the bytes that it moves."""


def _gemm_intensity(entry):
    M, N, K = entry["M"], entry["N"], entry["K"]
    return 2 * M * N * K / (4 * (M * K + K * N + M * N))


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
    if max(medians) > 5 * min(medians):
        axes.set_xscale("log")
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
    ridge = data["peak_gflops"] / data["gbs"]
    corners = [left, max(ridge, left), right]
    roof = [min(data["peak_gflops"], x * data["gbs"]) for x in corners]
    axes.plot(corners, roof, color=theme.text, linewidth=1.5)
    axes.annotate(
        f"{data['peak_gflops']:.0f} GFLOP/s of multiply-adds",
        (right, data["peak_gflops"]),
        (-4, 4),
        textcoords="offset points",
        ha="right",
    )
    axes.annotate(f"{data['gbs']:.0f} GB/s of memory", (1, data["gbs"]), (-6, 4), textcoords="offset points", ha="right")
    markers = {"matrix products": "o", "the same by MAX": "s", "attention": "^", "AdamW and layernorms": "D"}
    colours = dict(zip(markers, (theme.accent, *theme.series[:3])))
    for label, marker in markers.items():
        points = [point for point in data["points"] if point["label"] == label]
        axes.plot(
            [point["intensity"] for point in points],
            [point["gflops"] for point in points],
            marker,
            color=colours[label],
            label=label,
            markersize=5,
            alpha=0.85,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.set_ylim(min(point["gflops"] for point in data["points"]) / 1.5, data["peak_gflops"] * 1.4)
    axes.set_xlabel("operations for each byte that has to move")
    axes.set_ylabel("GFLOP/s")
    axes.set_title("The kernels of GPT-2 124M and what the machine can do")
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.legend(loc="lower right")
    axes.grid(which="major")
    _plain_numbers(axes.xaxis)
    _plain_numbers(axes.yaxis)


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
        axes.grid()
        axes.legend()
    panels[0].set_xscale("log", base=2)
    _plain_numbers(panels[0].xaxis)


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


CHARTS = {  # name of the picture: data of results, drawing, height in inches for the data
    "training_loop_times_chart": (lambda results: step_times(results, "124m"), draw_step_times, _bars_height),
    "step_times_t1024": (lambda results: step_times(results, "124m-t1024"), draw_step_times, _bars_height),
    "step_times_characters": (lambda results: step_times(results, "characters"), draw_step_times, _bars_height),
    "throughput": (lambda r: per_size(r, R.tokens_per_second), draw_panels("Tokens a second"), _panels_height),
    "memory": (lambda r: per_size(r, lambda e: R.peak_mb(e) / 1000), draw_panels("Memory: GB at most", 2), _panels_height),
    "roofline": (roofline, draw_roofline, lambda data: 4.2),
    "scaling": (scaling, draw_scaling, lambda data: 3.4),
    "generation": (generation, draw_panels("Tokens generated a second", 1), _panels_height),
}

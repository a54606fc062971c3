"""The site's drawings, as SVG in the colour of the text around them. Each function is one figure and takes nothing."""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import story as measured
from charts import Curve, bars, curves
from figures_base import line, svg, text

ACCENT = "var(--md-typeset-a-color)"


def curve(function: Callable[[float], float], x0: float, x1: float, y0: float, y1: float, title: str) -> str:
    """Returns the graph of a function with its axes and their ends."""
    width, height, left, top = 420, 220, 40, 10
    xs = [x0 + (x1 - x0) * i / 200 for i in range(201)]

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (x - x0) / (x1 - x0) * (width - left - 10), top + (y1 - y) / (y1 - y0) * (height - top - 30)

    parts = [line([place(x0, max(y0, 0)), place(x1, max(y0, 0))]), line([place(max(x0, 0), y0), place(max(x0, 0), y1)])]
    parts.append(line([place(x, function(x)) for x in xs], ACCENT, 2.5))
    parts += [text(left, height - 5, f"{x0:g}"), text(width - 20, height - 5, f"{x1:g}")]
    parts += [
        text(left - 6, place(x0, y1)[1] + 10, f"{y1:g}", "end"),
        text(left - 6, place(x0, y0)[1], f"{y0:g}", "end"),
    ]
    return svg(width, height, title, parts)


def gelu() -> str:
    """GELU from -4 to 4."""
    return curve(
        lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), -4, 4, -1, 4, "GELU"
    )


def surprise() -> str:
    """The loss of one prediction, -log p, over the probability of the right answer."""
    return curve(lambda p: -math.log(max(p, 0.007)), 0, 1, 0, 5, "The loss -log p falls from 5 to 0 as p grows to 1")


def schedule() -> str:
    """Warm-up, then a cosine down to a tenth."""

    def rate(s: float) -> float:
        return s / 10 if s < 10 else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (s - 10) / 90))

    return curve(rate, 0, 100, 0, 1, "The learning rate: ten steps of warm-up, then a cosine down to a tenth")


def attention() -> str:
    """Who may look at whom: a triangle of weights, each row a softmax of made scores."""
    words = ["the", "cat", "sat", "on", "the", "mat"]
    cell, left, top = 42, 60, 40
    parts = []
    for t, word in enumerate(words):
        scores = [math.cos(1.3 * t + 2.1 * t2) + (1.2 if t2 == t - 1 else 0) for t2 in range(t + 1)]
        total = sum(math.exp(s) for s in scores)
        parts.append(text(left - 8, top + cell * (t + 0.6), word, "end"))
        parts.append(text(left + cell * (t + 0.5), top - 10, word))
        for t2 in range(len(words)):
            x, y = left + cell * t2, top + cell * t
            weight = math.exp(scores[t2]) / total if t2 <= t else 0
            parts.append(
                f'<rect x="{x}" y="{y}" width="{cell - 2}" height="{cell - 2}" fill="{ACCENT}" fill-opacity="{0.45 * weight:.2f}" '
                'stroke="currentColor" stroke-opacity="0.3"/>'
            )
            if t2 <= t:
                parts.append(text(x + cell / 2 - 1, y + cell * 0.58, f"{weight:.2f}"))
    return svg(left + cell * 6 + 10, top + cell * 6 + 10, "Attention weights: each row looks at itself and back", parts)


def block() -> str:
    """One block: two side trips off a straight road."""
    parts = [line([(60, 10), (60, 300)], "currentColor", 3)]
    for top, names in (
        (30, ["layernorm", "attention", "projection"]),
        (170, ["layernorm", "C to 4C, GELU", "4C to C"]),
    ):
        parts.append(line([(60, top), (200, top)], ACCENT, 2))
        for i, name in enumerate(names):
            y = top + 10 + 32 * i
            parts.append(
                f'<rect x="130" y="{y}" width="140" height="26" rx="4" fill="none" stroke="currentColor"/>'
                + text(200, y + 18, name)
            )
        parts.append(line([(200, top + 104), (60, top + 104)], ACCENT, 2))
        parts.append(text(48, top + 109, "+", "end"))
    parts.append(text(60, 318, "on to the next block"))
    return svg(300, 325, "A block adds what attention says and then what the MLP says", parts)


# ----- docs/speed.md: bench/story/story.json


def ladder() -> str:
    """One product, rung by rung."""
    speeds = {name: float(measured.value(f"gflops/{name}")) for name in measured.RUNGS}
    speeds["what two cores can do"] = measured.STORY["ladder"]["peak_gflops"]
    return bars("GFLOP/s of one matrix product, written faster and faster", speeds, "GFLOP/s", list(measured.RUNGS))


def story() -> str:
    """The step of 124M, commit by commit."""
    ideas = {point["name"]: point["idea"] for point in measured.STORY["points"]}
    times = {ideas[who]: measured.ms("124m", who) for who in measured.STORY["series"]["124m"]["ms"]}
    return bars("Milliseconds of a step at commits of the history", times, "ms", ["when this was measured"])


def floor() -> str:
    """Today's step beside its arithmetic at the speed of registers."""
    L, C, V, B, T = 12, 768, 50304, 4, 64
    operations = 6 * (12 * L * C * C + V * C) * B * T + 6 * L * C * T * T * B
    times = {
        "the first product in five loops": measured.ms("124m", "1c524ae early"),
        "when this was measured": measured.ms("124m", "HEAD train_gpt2"),
        "the arithmetic alone, at the peak": operations / measured.STORY["ladder"]["peak_gflops"] / 1e6,
    }
    return bars("Milliseconds of a step beside its floor", times, "ms", ["when this was measured"])


# ----- docs/guides/wrong.md: docs/tools/failures.json


@cache
def failures() -> dict[str, Any]:
    """The runs that went wrong, by name."""
    return json.loads((Path(__file__).parent / "failures.json").read_text())["runs"]


def of_run(path: str) -> str:
    """What stands for `{{ run: NAME/WHAT }}` in a page: the last loss or val, the best or worst val, the largest norm or that of a step, skipped."""
    name, _, what = path.rpartition("/")
    run = failures()[name]
    if what == "skipped":
        *steps, last = run["skipped"]
        return f"{', '.join(map(str, steps))} and {last}"
    if what.startswith("norm@"):
        return f"{dict(map(tuple, run['norm']))[int(what[5:])]:.1f}"
    if what == "norm":
        return f"{max(norm for _, norm in run['norm']):.1f}"
    values = [value for _, value in run["loss" if what == "loss" else "val"]]
    return f"{ {'best': min, 'worst': max}[what](values) if what in ('best', 'worst') else values[-1]:.2f}"


def loss(run: str, name: str, colour: int) -> Curve:
    """The training loss of a run."""
    return Curve(name, failures()[run]["loss"], colour)


def val(run: str, name: str, colour: int) -> Curve:
    """Its validation loss, by points."""
    return Curve(name, failures()[run]["val"], colour, dots=True)


def wrong_rate() -> str:
    """The same run at five rates."""
    lines = [loss(f"rate {rate}", rate, i) for i, rate in ((4, "3e-5"), (1, "3e-2"), (2, "1e-1"), (3, "1"))]
    return curves("Training loss at five learning rates", [loss("good", "3e-3", 0), *lines], (2, 6))


def wrong_warmup() -> str:
    """A rate of 1e-2 with and without warm-up."""
    lines = [loss("rate 1e-2, warm-up", "with warm-up", 1), loss("rate 1e-2, no warm-up", "without", 0)]
    return curves("Training loss at a rate of 1e-2 with and without warm-up", lines, (2.4, 4.4))


def wrong_shuffled() -> str:
    """Text whose order is lost."""
    lines = [loss("shuffled", "shuffled", 0), val("shuffled", "validation", 3), loss("good", "as it should", 1)]
    return curves("Loss of text whose bytes are shuffled stays at that of their frequencies", lines, (2, 6))


def wrong_repeated() -> str:
    """Two pages a hundred times."""
    return curves(
        "Training loss of repeated text falls to nothing while validation climbs",
        [loss("repeated", "training", 1), val("repeated", "validation", 0)],
        (0, 6),
    )


def wrong_order() -> str:
    """Half of one kind, and then half of another."""
    return curves(
        "Training loss is level where the text changes in the middle; validation climbs",
        [loss("in order", "training", 1), val("in order", "validation", 0)],
        (2, 6),
    )


def wrong_garbage() -> str:
    """Four batches of random bytes."""
    return curves("Training loss with four spikes where batches are garbage", [loss("garbage", "training", 1)], (2, 9))


def wrong_overfitting() -> str:
    """A model that learns a short text by heart, and one that is hindered."""
    return curves(
        "Overfitting: training loss falls on, validation turns up; with dropout it falls later and longer",
        [
            loss("overfitting", "training", 1),
            val("overfitting", "validation", 0),
            loss("overfitting, dropout", "dropout: train.", 4),
            val("overfitting, dropout", "dropout: valid.", 3),
        ],
        (0.5, 4.5),
    )

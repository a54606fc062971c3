"""The site's drawings, as SVG in the colour of the text around them. Each function is one figure and takes nothing."""

import math
from collections.abc import Callable, Sequence

ACCENT = "var(--md-typeset-a-color)"


def svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    """Returns a drawing; `title` is read out in place of it."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{title}" font-size="13" fill="currentColor" font-family="inherit">{"".join(parts)}</svg>'
    )


def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    """Returns words whose middle, start or end is at (x, y)."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{words}</text>'


def line(points: Sequence[tuple[float, float]], colour: str = "currentColor", width: float = 1.0) -> str:
    """Returns a line through points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


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

"""Charts of measured numbers as SVG: curves over steps, and bars. Colours are the page's own, so that they follow its theme."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from figures_base import line, svg, text

WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 46, 108, 24, 40
COLOURS = [f"var(--chart-{i})" for i in range(1, 6)]
FAINT = 'stroke="currentColor" stroke-opacity="0.18"'
LABEL_HEIGHT = 15


class Curve(NamedTuple):
    """Points (x, y), and a name at their end; dots mark what was measured now and then."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dots: bool = False


class Axes:
    """Where values lie."""

    def __init__(self, xs: tuple[float, float], ys: tuple[float, float]):
        self.xs, self.ys = xs, ys

    def place(self, x: float, y: float) -> tuple[float, float]:
        """The place of a value; what is beyond the axes lies on their end."""
        up = (y - self.ys[0]) / (self.ys[1] - self.ys[0])
        across = (x - self.xs[0]) / (self.xs[1] - self.xs[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), TOP + (1 - min(max(up, 0), 1)) * (HEIGHT - TOP - BOTTOM)


def curves(title: str, lines: Sequence[Curve], ys: tuple[float, float]) -> str:
    """Losses over steps, with the names of the curves at the right."""
    steps = max(x for each in lines for x, _ in each.points)
    axes = Axes((0, steps), ys)
    parts = [text(LEFT - 30, TOP - 8, "loss", "start"), text(WIDTH - RIGHT, HEIGHT - 6, "steps", "end")]
    for y in ticks(*ys):
        at = axes.place(0, y)[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" {FAINT}/>')
        parts.append(text(LEFT - 6, at + 4, f"{y:g}", "end"))
    for x in ticks(0, steps):
        parts.append(text(axes.place(x, ys[0])[0], HEIGHT - BOTTOM + 18, f"{x:,.0f}"))
    for each in lines:
        places = [axes.place(x, y) for x, y in each.points]
        if each.dots:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLOURS[each.colour]}"/>' for x, y in places]
        parts.append(line(places, COLOURS[each.colour], 1.2 if each.dots else 2))
    ends = [(axes.place(*each.points[-1])[1], each) for each in lines]
    for at, each in apart(ends):
        x = WIDTH - RIGHT + 6
        parts.append(f'<text x="{x}" y="{at + 4:.1f}" fill="{COLOURS[each.colour]}">{each.name}</text>')
    return svg(WIDTH, HEIGHT, title, parts)


def apart(ends: Sequence[tuple[float, Curve]]) -> list[tuple[float, Curve]]:
    """Moves labels down and up until none lies on another."""
    placed: list[tuple[float, Curve]] = []
    for at, each in sorted(ends, key=lambda end: end[0]):
        placed.append((max(at, placed[-1][0] + LABEL_HEIGHT) if placed else at, each))
    beyond = max(placed[-1][0] - (HEIGHT - BOTTOM + 4), 0)
    lowest = math.inf
    for i in reversed(range(len(placed))):
        lowest = min(placed[i][0] - (beyond if i == len(placed) - 1 else 0), lowest)
        placed[i] = lowest, placed[i][1]
        lowest -= LABEL_HEIGHT
    return placed


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from low to high."""
    raw = (high - low) / 4
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * each for each in (1, 2, 5, 10) if unit * each >= raw)
    return [each * step for each in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


def bars(title: str, values: Mapping[str, float], unit: str, marks: Sequence[str] = ()) -> str:
    """Bars from the left, each under its name and with its value behind it; `marks` are in the accent colour."""
    row, room = 38, 330
    parts = []
    for i, (name, value) in enumerate(values.items()):
        y = 6 + row * i
        length = room * value / max(values.values())
        colour = COLOURS[0] if name in marks else COLOURS[1]
        parts.append(text(2, y + 11, name, "start"))
        parts.append(f'<rect x="2" y="{y + 16}" width="{length:.1f}" height="12" rx="2" fill="{colour}"/>')
        parts.append(text(length + 9, y + 27, f"{value:,.0f} {unit}", "start"))
    return svg(WIDTH, 12 + row * len(values), title, parts)

"""What all drawings of the site are made of: SVG in the colour of the text around it."""

from collections.abc import Sequence


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

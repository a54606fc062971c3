"""The look of all charts: colours that colour-blind readers tell apart, one theme for light pages and one for dark.

A chart is a function of a figure and a theme, and `save` draws it twice, as NAME.png and NAME-dark.png, for a page that
shows the one or the other with `<picture>`. What a chart shows is kept in the file as well, as a PNG text of JSON
(`read_data` returns it), so that each bar can be traced to its source.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from llm_mojo.files import atomic_file

WIDTH = 8.0
"""Inches: 960 pixels, a little more than the text of a page on GitHub is wide."""
DPI = 120
_DATA = "Description"
"""PNG's own word for what a picture shows."""


@dataclass(frozen=True)
class Theme:
    """Colours of a page. The series are Okabe and Ito's, ordered so that neighbours differ in brightness too."""

    name: str
    background: str
    text: str
    faint: str
    accent: str
    """What is ours."""
    series: tuple[str, ...]
    """What is others', or lines among each other."""


LIGHT = Theme(
    name="light",
    background="#ffffff",
    text="#1f2328",
    faint="#d0d7de",
    accent="#d55e00",
    series=("#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f"),
)
DARK = Theme(
    name="dark",
    background="#0d1117",
    text="#e6edf3",
    faint="#30363d",
    accent="#ff7f2a",
    series=("#56b4e9", "#2fc79a", "#e29bc2", "#f0c649", "#3d8fd1", "#a0a0a0"),
)


def save(draw, path, height, data=None):
    """Draws a chart in both themes and returns the two paths.

    `draw(figure, theme)` fills a figure that is WIDTH x height inches; `data` is what it shows, as JSON can hold it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = path, path.with_name(f"{path.stem}-dark{path.suffix}")
    for theme, target in zip((LIGHT, DARK), paths, strict=True):
        with matplotlib.rc_context(settings(theme)):
            figure = Figure(figsize=(WIDTH, height), layout="constrained")
            draw(figure, theme)
            with atomic_file(target) as file:
                # Without Software the bytes follow from the data alone, not from matplotlib's release.
                figure.savefig(file, format="png", dpi=DPI, metadata={_DATA: json.dumps(data), "Software": None})
    return paths


def read_data(path):
    """Returns the data that `save` has put into a PNG, or None if there are none."""
    content = Path(path).read_bytes()
    at = 8
    while at < len(content):
        size, kind = struct.unpack(">I4s", content[at : at + 8])
        body = content[at + 8 : at + 8 + size]
        if kind == b"tEXt":
            keyword, _, text = body.partition(b"\0")
            if keyword.decode() == _DATA:
                return json.loads(text.decode("latin-1"))
        at += 12 + size
    return None


def picture(path, alternative):
    """HTML for a README that shows the chart in the reader's theme."""
    path = Path(path)
    dark = path.with_name(f"{path.stem}-dark{path.suffix}")
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark.as_posix()}">'
        f'<img alt="{alternative}" src="{path.as_posix()}"></picture>'
    )


def settings(theme):
    """Matplotlib's settings for a theme, for `matplotlib.rc_context`."""
    return {
        "font.size": 10,
        "figure.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "axes.edgecolor": theme.faint,
        "axes.labelcolor": theme.text,
        "axes.titlecolor": theme.text,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.prop_cycle": matplotlib.cycler(color=[theme.accent, *theme.series]),
        "grid.color": theme.faint,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "text.color": theme.text,
        "xtick.color": theme.text,
        "ytick.color": theme.text,
    }

"""Draws training and validation loss of one or several runs: the command `python -m llm_mojo plot RUN...`.

A run has one colour. Its training loss is a line, smoothed, over the unsmoothed one in a paler shade; its validation
losses are points.
"""

import argparse
import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llm_mojo import Error
from llm_mojo.callables import callable_module, run_command
from llm_mojo.files import AnyPath, atomic_file
from llm_mojo.run_log import Follower, find_log
from llm_mojo.terminal import line

AXES = {"steps": "step", "tokens": "tokens", "time": "time of training steps"}
HEIGHT = 5.0
DASHES = ["-", "--", ":"]  # for more runs than colours
PRODUCER = "llm.mojo plot"
# What says in a chart that it is ours, where the format can; others are replaced only with --force.
MARK = {"png": {"Software": PRODUCER}, "svg": {"Creator": PRODUCER}, "pdf": {"Creator": PRODUCER}}
SMOOTHED_PART = 50  # by default the mean is taken over one part in so many of a run
SECONDS_PER_UNIT = {"seconds": 1, "minutes": 60, "hours": 3600}


@dataclass
class Curves:
    """The losses of one run. The axes hold, for each step, its number and tokens and seconds up to it."""

    name: str
    axes: dict[str, np.ndarray]
    loss: np.ndarray
    val_at: np.ndarray
    """Steps done before each validation."""
    val_loss: np.ndarray

    def x_of_validations(self, axis: str) -> np.ndarray:
        """Where on an axis the validations are: after their step, or at the start."""
        after = np.searchsorted(self.axes["steps"], self.val_at, side="right")
        return self.val_at if axis == "steps" else np.concatenate([[0], self.axes[axis]])[after]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `python -m llm_mojo plot`."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run (what --out named), or its log.jsonl")
    parser.add_argument("--out", type=Path, default=Path("loss.png"), metavar="FILE", help="default: %(default)s")
    parser.add_argument("--force", action="store_true", help="replace a file that is no chart of ours")
    parser.add_argument("--axis", choices=AXES, default="steps", help="what x is (default: %(default)s)")
    parser.add_argument(
        "--smooth", type=_steps, metavar="N", help="draw means of N training losses (default: 2%% of the run; 1: none)"
    )


def _steps(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of steps, got {text}")
    return int(text)


def run(args: argparse.Namespace) -> None:
    """Runs `python -m llm_mojo plot`."""
    if os.path.lexists(args.out) and not args.force and not _is_chart(args.out):
        raise Error(
            f"plot: {args.out} is there, and is no chart of ours; --force replaces it, --out names another file"
        )
    curves = [read_curves(find_log(run), name) for run, name in zip(args.runs, names_of(args.runs), strict=True)]
    draw(curves, args.out, args.axis, args.smooth)
    for one in curves:
        validations = one.val_loss[np.isfinite(one.val_loss)]
        best = f", validation loss {validations.min():.4f} at best" if validations.size else ""
        print(f"{one.name}: {len(one.loss):,} steps{best}")
    print(f"wrote {args.out}")


def _is_chart(path):
    return path.is_file() and not path.is_symlink() and PRODUCER.encode() in path.read_bytes()


def names_of(runs: Sequence[AnyPath]) -> list[str]:
    """What the runs are called in the legend: their folders without what all paths begin with."""
    folders = [Path(os.path.abspath(run)) for run in runs]
    folders = [folder.parent if folder.is_file() else folder for folder in folders]
    if len(set(folders)) == 1:
        return [folders[0].name] * len(runs)
    above = Path(os.path.commonpath(folders))
    return [str(folder.relative_to(above)) if folder != above else folder.name for folder in folders]


def read_curves(path: AnyPath, name: str) -> Curves:
    """Reads a log into `Curves`. A loss that was not a number is NaN."""
    records = Follower(path).read()
    steps = [record for record in records if "loss" in record]
    validations = [record for record in records if "val_loss" in record]
    if not steps and not validations:
        raise Error(f"{path}: no step is in the log yet; train first, or wait for the first step")
    axes = {
        "steps": _values(steps, "step", path),
        "tokens": np.cumsum(_values(steps, "tokens", path)),
        "time": np.cumsum(_values(steps, "ms", path)) / 1000,
    }
    loss, val_loss = _values(steps, "loss", path), _values(validations, "val_loss", path)
    return Curves(name, axes, loss, _values(validations, "step", path), val_loss)


def _values(records, name, path):
    try:
        return np.array([record[name] for record in records], dtype=float)  # None, the log's NaN, becomes NaN
    except (KeyError, TypeError, ValueError):
        raise Error(f"{path}: expected a number {name} in every record; the log is damaged") from None


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of the `window` values around each, of fewer at the ends; NaN counts for nothing."""
    good = np.isfinite(values)
    sums = np.concatenate([[0], np.cumsum(np.where(good, values, 0))])
    counts = np.concatenate([[0], np.cumsum(good)])
    places = np.arange(len(values))
    start = np.maximum(places - (window - 1) // 2, 0)
    end = np.minimum(places + window // 2 + 1, len(values))
    with np.errstate(invalid="ignore"):
        return (sums[end] - sums[start]) / (counts[end] - counts[start])


def draw(curves: Sequence[Curves], out: Path, axis: str = "steps", window: int | None = None) -> None:
    """Draws the chart to a file; the end of its name says which format (PNG, SVG, PDF)."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from llm_mojo.charts import DPI, LIGHT, WIDTH, settings

    colours = [*LIGHT.series, LIGHT.accent]
    kind = out.suffix.lstrip(".").lower()
    with matplotlib.rc_context(settings(LIGHT)):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        if kind not in figure.canvas.get_supported_filetypes():
            raise Error(f"plot: {out}: expected a name that ends in .png, .svg or .pdf")
        unit, scale = _unit_of_time(curves) if axis == "time" else ("", 1)
        points = {"marker": "o", "markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.8}
        handles = [
            Line2D([], [], color=LIGHT.text, label="training"),
            Line2D([], [], color=LIGHT.text, label="validation", linestyle="", **points),
        ]
        for i, one in enumerate(curves):
            style = {"color": colours[i % len(colours)], "linestyle": DASHES[i // len(colours) % len(DASHES)]}
            steps = window or max(1, len(one.loss) // SMOOTHED_PART)
            x = one.axes[axis] / scale
            if steps > 1:
                axes.plot(x, one.loss, **style, linewidth=0.5, alpha=0.25)
            axes.plot(x, smoothed(one.loss, steps), **style, linewidth=1.6)
            axes.plot(one.x_of_validations(axis) / scale, one.val_loss, **style | {"linestyle": ""}, **points)
            handles.append(Line2D([], [], **style, label=_label(one.name)))
        if len(curves) == 1:
            handles.pop()
            axes.set_title(_label(curves[0].name))
        axes.legend(handles=handles)
        axes.set_ylim(*_limits(curves))
        axes.set_xlabel(AXES[axis] + unit)
        axes.set_ylabel("loss (nats per token)")
        axes.grid()
        with atomic_file(out) as file:
            figure.savefig(file, format=kind, dpi=DPI, metadata=MARK.get(kind))


def _label(name):
    """A name as matplotlib takes texts: it would read formulas between dollars, and hide what begins with a line."""
    text = line(name.encode(errors="backslashreplace").decode()).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _unit_of_time(curves):
    longest = max([one.axes["time"][-1] for one in curves if one.loss.size], default=0)
    unit = [unit for unit, seconds in SECONDS_PER_UNIT.items() if seconds == 1 or longest >= 2 * seconds][-1]
    return f" ({unit})", SECONDS_PER_UNIT[unit]


def _limits(curves):
    """The range of y: all losses but single spikes, which would flatten everything else."""
    values = np.concatenate([np.concatenate([one.loss, one.val_loss]) for one in curves])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0, 1
    low, high = values.min(), np.quantile(values, 0.995)
    high = max([high, *(one.val_loss[np.isfinite(one.val_loss)].max(initial=high) for one in curves)])
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


callable_module(__name__, functools.partial(run_command, "plot"))

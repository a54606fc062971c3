"""Draws the loss of a run in the terminal, and follows a running one: the command `python -m llm_mojo watch RUN`.

On a terminal the picture is drawn anew when the log has grown; elsewhere once, when the run has ended.
"""

import math
import shutil
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from llm_mojo.plot import SMOOTHED_PART, smoothed
from llm_mojo.run_log import Follower, read_settings
from llm_mojo.terminal import line

SECONDS_BETWEEN_LOOKS = 0.5
COLUMNS, ROWS = 80, 24
CLEAR = "\x1b[H\x1b[J"


class Losses:
    """The losses of a run as its log tells them: of steps, of validations, and how fast it is."""

    def __init__(self) -> None:
        self.steps: dict[int, float] = {}
        self.validations: dict[int, float] = {}
        self.tokens_per_second = 0.0

    def take(self, records: Iterable[dict[str, Any]]) -> bool:
        """Adds records; tells whether any was new. A resumed run writes its last steps again: they replace the old ones."""
        changed = False
        for record in records:
            for name, losses in (("loss", self.steps), ("val_loss", self.validations)):
                if name in record:
                    value = record[name]
                    losses[record["step"]] = float(value) if isinstance(value, (int, float)) else math.nan
                    changed = True
            rate = record.get("tokens_per_second", 0)
            self.tokens_per_second = (
                rate if "loss" in record and isinstance(rate, (int, float)) else self.tokens_per_second
            )
        return changed


def follow(log: Path, wait: float = SECONDS_BETWEEN_LOOKS) -> None:
    """Draws until no trainer holds the log; on a terminal at once and again and again, else at the end."""
    follower, losses = Follower(log), Losses()
    steps = read_settings(log.parent / "run.toml").get("max-steps")
    name = line(log.resolve().parent.name)
    lives = sys.stdout.isatty()
    while True:
        # Whether it runs is asked before the reading: what is written in between is not missed.
        running = follower.is_running()
        changed = losses.take(follower.read())
        if lives and (changed or not running):
            sys.stdout.flush()
            sys.stdout.buffer.write(CLEAR.encode())
        if (lives and changed) or not running:
            size = shutil.get_terminal_size((COLUMNS, ROWS))
            print(picture(losses, name, steps, size.columns, size.lines - 1), flush=True)
        if not running:
            return
        time.sleep(wait)


def picture(losses: Losses, name: str, steps: Any, columns: int, rows: int) -> str:
    """The chart, with what matters in numbers above it."""
    import plotext

    if not losses.steps and not losses.validations:
        return f"{name}: no step is in the log yet"
    last = max([*losses.steps, *losses.validations])
    head = f"{name}: step {last:,}" + (f" of {steps:,}" if type(steps) is int and steps > 0 else "")
    if losses.steps:
        head += f" | loss {losses.steps[max(losses.steps)]:.4f}"
    good = {step: loss for step, loss in losses.validations.items() if math.isfinite(loss)}
    if good:
        best = min(good, key=good.__getitem__)
        head += f" | validation {good[max(good)]:.4f}, best {good[best]:.4f} after {best:,}"
    if losses.tokens_per_second:
        head += f" | {losses.tokens_per_second:,.0f} tok/s"
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(columns, max(rows - 1, 8))
    x = np.array(sorted(losses.steps))
    y = smoothed(np.array([losses.steps[step] for step in x.tolist()]), max(1, len(x) // SMOOTHED_PART))
    # Two dots of braille for a column are all that can be seen.
    chosen = (
        np.unique(np.linspace(0, len(x) - 1, min(len(x), 2 * columns)).astype(int)) if len(x) else np.array([], int)
    )
    chosen = chosen[np.isfinite(y[chosen])] if len(x) else chosen
    if len(chosen):
        plotext.plot(x[chosen].tolist(), y[chosen].tolist(), label="training", marker="braille")
    if good:
        plotext.scatter(list(good), list(good.values()), label="validation", marker="o")
    plotext.xlabel("step")
    plotext.ylabel("loss (nats per token)")
    return f"{head[:columns]}\n{plotext.uncolorize(plotext.build()).rstrip()}"

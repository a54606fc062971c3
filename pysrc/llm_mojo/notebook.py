"""A run in a notebook: its loss as a curve that grows, and how far it is."""

import html
import math
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_mojo.training import Training

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 240, 48, 24
POINTS = 400
SECONDS = 0.5  # between two pictures


def is_here() -> bool:
    """Whether this process is the kernel of a notebook, which shows what is not text."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and shell.__class__.__name__ == "ZMQInteractiveShell"


def follow(run: "Training") -> None:
    """Has a run show itself below the cell while somebody iterates over it."""
    from IPython.display import HTML, display

    curve = Curve()
    handle: Any = display(HTML(curve.picture(None)), display_id=True)
    earlier, last = run._on_record, 0.0

    def on_record(record):
        nonlocal last
        curve.add(record)
        steps = run.steps()
        if time.monotonic() - last >= SECONDS or record["step"] == steps:
            last = time.monotonic()
            handle.update(HTML(curve.picture(steps)))
        if earlier:
            earlier(record)

    run._on_record = on_record


class Curve:
    """Losses of a run as an SVG picture, in the colours of the page around it."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float]] = []
        self.validations: list[tuple[int, float]] = []
        self._newest: dict[str, Any] = {}

    def add(self, record: dict[str, Any]) -> None:
        """Takes a record of the log."""
        if isinstance(record.get("loss"), (int, float)):
            self.steps.append((record["step"], float(record["loss"])))
            self._newest = record
        if isinstance(record.get("val_loss"), (int, float)):
            self.validations.append((record["step"], float(record["val_loss"])))

    def picture(self, steps: int | None) -> str:
        """The picture, as HTML; `steps` is where the run will end, if that is known."""
        shown = self.steps[:: max(1, len(self.steps) // POINTS)] + self.steps[-1:]
        losses = [loss for _, loss in shown + self.validations if math.isfinite(loss)]
        last = max((step for step, _ in self.steps), default=0)
        low, high = (min(losses), max(losses)) if losses else (0.0, 1.0)
        low, high = (low, high) if high > low else (low - 0.5, low + 0.5)
        end = max(steps or last, 1)

        def place(step, loss):
            x = LEFT + (WIDTH - LEFT - 8) * step / end
            y = 8 + (HEIGHT - BOTTOM - 16) * (high - loss) / (high - low)
            return f"{x:.1f},{y:.1f}"

        line = " ".join(place(*point) for point in shown if math.isfinite(point[1]))
        dots = [place(*point).split(",") for point in self.validations if math.isfinite(point[1])]
        circles = "".join(f'<circle cx="{x}" cy="{y}" r="3.5" fill="#d9480f"/>' for x, y in dots)
        axis = f"M{LEFT},8 V{HEIGHT - BOTTOM} H{WIDTH - 8}"
        words = 'font-size="11" fill="currentColor" font-family="sans-serif"'
        return (
            f'<div role="img" aria-label="loss over steps">{html.escape(self._caption(steps))}<br>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" style="max-width:{WIDTH}px;width:100%">'
            f'<path d="{axis}" fill="none" stroke="currentColor" stroke-opacity="0.5"/>'
            f'<text x="4" y="16" {words}>{high:.2f}</text><text x="4" y="{HEIGHT - BOTTOM}" {words}>{low:.2f}</text>'
            f'<text x="{LEFT}" y="{HEIGHT - 6}" {words}>loss of each step, and of validations (dots), over steps to {end:,}</text>'
            f'<polyline points="{line}" fill="none" stroke="#1c7ed6" stroke-width="1.5"/>{circles}</svg></div>'
        )

    def _caption(self, steps):
        if not self._newest:
            return "the run begins ..."
        record = self._newest
        parts = [f"step {record['step']:,}" + (f" of {steps:,}" if steps else ""), f"loss {record['loss']:.4f}"]
        if self.validations:
            parts.append(f"val loss {self.validations[-1][1]:.4f}")
        if record.get("tokens_per_second"):
            parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
        if steps and record.get("ms"):
            seconds = (steps - record["step"]) * record["ms"] / 1000
            parts.append(f"{int(seconds) // 60}:{int(seconds) % 60:02} left")
        return " · ".join(parts)

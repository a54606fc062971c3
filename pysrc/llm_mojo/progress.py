"""Shows how far a long job is: a bar on a terminal, now and then a line elsewhere. Writes to stderr."""

import sys
import time

from llm_mojo.terminal import line

LINE_EVERY_SECONDS = 10.0
BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
BAR_WITHOUT_END = "{desc}: {elapsed}{postfix}"


class Progress:
    """A context manager: `with Progress("reading") as progress: progress.show(0.25, 1e6, "3 files")`."""

    def __init__(self, title):
        self.title = title
        self._start = self._last_line = time.monotonic()
        self._bar = None

    def __enter__(self):
        if sys.stderr.isatty():
            from tqdm import tqdm

            # The bar moves the cursor, which llm_mojo.terminal keeps all others from doing.
            self._bar = tqdm(desc=line(self.title), total=1.0, bar_format=BAR, file=sys.__stderr__)
        return self

    def __exit__(self, *exception):
        if self._bar is not None:
            self._bar.close()

    def show(self, fraction, size, note=""):
        """`fraction` of the job is done (None: the end is not known) and `size` bytes since it began."""
        now = time.monotonic()
        text = (
            f"{size / 1e6:,.1f} MB, {size / 1e6 / max(now - self._start, 1e-3):,.1f} MB/s{', ' if note else ''}{note}"
        )
        if self._bar is not None:
            self._bar.bar_format = BAR_WITHOUT_END if fraction is None else BAR
            self._bar.set_postfix_str(line(text), refresh=False)
            self._bar.update((fraction or 0.0) - self._bar.n)
        elif now - self._last_line >= LINE_EVERY_SECONDS:
            self._last_line = now
            share = ""
            if fraction:
                left = (now - self._start) * (1 - fraction) / fraction
                share = (
                    f"{100 * fraction:.0f}%, {left / 60:.0f} min left, "
                    if left >= 60
                    else f"{100 * fraction:.0f}%, {left:.0f} s left, "
                )
            print(f"{self.title}: {share}{text}", file=sys.stderr, flush=True)

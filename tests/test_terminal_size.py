"""A run on terminals of the usual sizes, drawn by pyte, an emulator that is not ours."""

import fcntl
import os
import struct
import subprocess
import termios

import pyte
import pytest

from mojo_programs import ENVIRONMENT
from tiny_run import SIZES


@pytest.fixture(scope="module")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


class Emulator(pyte.HistoryScreen):
    """Notes what a terminal would have wrapped."""

    wraps = 0

    def draw(self, data):
        before = self.cursor.y
        if self.cursor.x + len(data) > self.columns:
            self.wraps += 1
        super().draw(data)
        assert self.cursor.y - before < self.lines


def watch(command, columns, rows, resize=None):
    """Runs a command on a terminal; `resize` are its columns from the first step on."""
    screen = Emulator(columns, rows, history=100_000)
    stream = pyte.Stream(screen)
    terminal, other_end = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    process = subprocess.Popen([str(word) for word in command], stdout=other_end, env=ENVIRONMENT | {"TERM": "xterm"})
    os.close(other_end)
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65536)
        except OSError:  # how the end of a terminal is told
            break
        if resize and b"| loss" in shown:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", rows, resize, 0, 0))
            resize = None
    os.close(terminal)
    assert process.wait() == 0
    stream.feed(shown.decode())
    lines = ["".join(line[x].data for x in range(columns)).rstrip() for line in screen.history.top]
    return screen, lines + [line.rstrip() for line in screen.display], shown.decode()


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (120, 40)])
def test_no_line_wraps_and_few_stay(columns, rows, program, data):
    """A run of 3,000 steps, z-scores and ten validations, called where its data are."""
    place = ["-i", "train_*.bin", "-j", "val_*.bin", *SIZES, "-x", 3000, "-v", 300, "-s", 0, "-sl", 6]
    cwd = os.getcwd()
    os.chdir(data)
    try:
        screen, lines, shown = watch([program.path, *place], columns, rows)
    finally:
        os.chdir(cwd)
    assert screen.wraps == 0
    assert len(screen.history.top) < 40
    assert sum("val loss" in line for line in lines) == 11
    # Of the line that lives nothing is left.
    assert "tok/s" in shown and not any("tok/s" in line for line in lines)
    assert lines[0].startswith("settings    train-data train_*.bin, val-data val_*.bin, n-layer 2")


def test_the_line_that_lives_follows_the_window(program, data):
    place = ["-i", data / "train_*.bin", "-j", data / "val_*.bin", *SIZES, "-x", 20_000, "-v", 10_000, "-s", 0]
    shown = watch([program.path, *place], 80, 24, resize=40)[2]
    live = [line.split("\x1b[K")[-1] for line in shown.split("\r") if "| loss" in line]
    assert len(live[0]) > 40 and len(live[-1]) < 40

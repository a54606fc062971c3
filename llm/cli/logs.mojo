"""The logs of a run, which a resumed run continues without the steps that it does again."""

from llm.base.files import read_text
from llm.base.written_files import AppendedFile

comptime _LARGEST_LOG = 1 << 32


@fieldwise_init
struct LogEnd(Copyable, Movable):
    """Where the logs of a resumed run go on."""

    var step: Int
    """Steps done."""
    var evaluated: Bool
    """Whether the validation after them is done."""


def open_log(path: String, resume: Optional[LogEnd]) raises -> AppendedFile:
    """Opens a log, empty or up to where a resumed run goes on.

    Raises:
        If it cannot be made, or another run is writing to it.
    """
    var file = AppendedFile("report", path, keep=True)
    if not file.lock():
        raise Error(t"report: {path} is in use by another run; give each run its own --out")
    var size = 0
    if resume:
        size = lines_to_keep(read_text("report", path, _LARGEST_LOG), resume.value().step, resume.value().evaluated)
    file.truncate(size)
    return file^


def lines_to_keep(text: String, step: Int, evaluated: Bool) -> Int:
    """Returns the bytes of a log up to the last line that a run resumed after `step` steps will not write again.

    A line of `log.jsonl` begins `{"step": N`, one of llm.c's `main.log` with `s:N`, where N counts the steps before.
    """
    var bytes = text.as_bytes()
    var end = text.byte_length()
    while end > 0:
        # The line before `end`, with its newline; a line without one was cut off.
        var start = end - 1
        while start > 0 and bytes[start - 1] != UInt8(ord("\n")):
            start -= 1
        if bytes[end - 1] == UInt8(ord("\n")) and _stays(text[byte=start:end], step, evaluated):
            return end
        end = start
    return 0


def _stays(line: StringSlice, step: Int, evaluated: Bool) -> Bool:
    var of_c = line.startswith("s:")
    if not of_c and not line.startswith('{"step": '):
        return True
    var digits = line.removeprefix("s:") if of_c else line.removeprefix('{"step": ')
    var number = 0
    for c in digits.as_bytes():
        if c < UInt8(ord("0")) or c > UInt8(ord("9")):
            break
        number = min(number * 10 + Int(c) - ord("0"), Int(Int32.MAX))
    # What is written of an evaluation is written again with it; a sample's text may spell any of the others.
    if "tel:" in line or "val_loss" in line or "eval:" in line or "hellaswag" in line or "sample_text" in line:
        return number < step or (number == step and evaluated)
    return number < step or (number == step and not of_c)

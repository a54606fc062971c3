"""Small tools of the benches."""

from std.time import sleep

from llm.base.formatting import fixed


def let_threads_sleep():
    """Waits until the threads of whoever ran last have stopped spinning for more work."""
    sleep(0.01)


def median(values: List[Float64]) -> Float64:
    """Returns the middle one, the lower of two."""
    var sorted = values.copy()
    sort(sorted)
    return sorted[(len(sorted) - 1) // 2]


def json_list(values: List[Float64]) -> String:
    """Writes seconds as a JSON list of milliseconds."""
    var text = String()
    for value in values:
        text += (", " if text else "") + fixed(1000 * value, 4)
    return "[" + text + "]"

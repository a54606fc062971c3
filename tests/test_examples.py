"""The programs in examples/ do what they say."""

import math
import re


def test_ten_steps_on_an_array(mojo_program):
    """A model that has learned to count in ten steps; and the same in a second model of two threads, in the same process."""
    output = mojo_program("examples/train_ten_steps.mojo").output()
    first, second = re.findall(r"((?:step \d+ loss \S+\n){10})((?:\d ){10}\d)\n", output)
    assert output == "".join(losses + text + "\n" for losses, text in (first, second))
    losses = [float(line.split()[3]) for line in first[0].splitlines()]
    # Parameters near zero know nothing: every digit is as likely as the others.
    assert abs(losses[0] - math.log(10)) < 0.2
    assert losses == sorted(losses, reverse=True) and losses[-1] < 1
    assert first[1] == "2 3 4 5 6 7 8 9 0 1 2"
    assert second == first

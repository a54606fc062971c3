"""The programs in examples/ do what they say."""

import math
import re


def test_ten_steps_on_an_array(mojo_program):
    """A model that has learned to count in ten steps; and the same in a second model of two threads, in the same process."""
    output, refused = mojo_program("examples/train_ten_steps.mojo").output().split("refused", 1)
    first, second = re.findall(r"((?:step \d+ loss \S+\n){10})((?:\d ){10}\d)\n", output)
    assert output == "".join(losses + text + "\n" for losses, text in (first, second))
    losses = [float(line.split()[3]) for line in first[0].splitlines()]
    # Parameters near zero know nothing: every digit is as likely as the others.
    assert abs(losses[0] - math.log(10)) < 0.2
    assert losses == sorted(losses, reverse=True) and losses[-1] < 1
    assert first[1] == "2 3 4 5 6 7 8 9 0 1 2"
    assert second == first
    # Out of order, of a wrong size, after the memory is used up, outside the vocabulary.
    whys = ["backward: expected a forward pass", "forward: expected 96 tokens", "losses: expected a forward pass"]
    whys += ["token 10 at position 5 of the batch is not in this model's vocabulary of 10"]
    lines = refused.splitlines()
    assert len(lines) == 4 and all(why in line for why, line in zip(whys, lines))

"""What a model thinks of questions with several answers, and how often it is right."""

from llm.base.formatting import fixed, grouped
from llm.base.json import json_numbers
from llm.eval.intervals import wilson_interval


struct Judgement(Copyable, Movable):
    """What a model thinks of one example."""

    var label: Int
    """The ending that is right."""
    var losses: List[Float64]
    """Cross entropy of each ending given the context, summed over its tokens."""
    var lengths: List[Int]
    """Tokens of each ending."""

    def __init__(out self, label: Int):
        """Starts without endings."""
        self.label = label
        self.losses = List[Float64]()
        self.lengths = List[Int]()

    def json(self) -> String:
        """Writes the object for a program to read."""
        var lengths = List[Float64]()
        for length in self.lengths:
            lengths.append(Float64(length))
        return String(
            t'{{"label": {self.label}, "likeliest": {self.likeliest()}, "likeliest_per_token":'
            t' {self.likeliest_per_token()}, "losses": {json_numbers(self.losses)}, "lengths":'
            t" {json_numbers(lengths)}}}"
        )

    def likeliest(self) -> Int:
        """Returns the ending of the highest probability."""
        return self._lowest(per_token=False)

    def likeliest_per_token(self) -> Int:
        """Returns the ending of the highest probability per token, the geometric mean."""
        return self._lowest(per_token=True)

    def _lowest(self, *, per_token: Bool) -> Int:
        var best = 0
        for i in range(1, len(self.losses)):
            var loss, lowest = self.losses[i], self.losses[best]
            if per_token:
                loss /= Float64(self.lengths[i])
                lowest /= Float64(self.lengths[best])
            if loss < lowest:
                best = i
        return best


struct Accuracy(Copyable, Movable):
    """How many examples a model got right."""

    var examples: Int
    var right: Int
    """By the probability of the whole ending: acc."""
    var right_per_token: Int
    """By the probability per token: acc_norm, which is what llm.c reports."""

    def __init__(out self):
        """Starts with nothing."""
        self.examples = 0
        self.right = 0
        self.right_per_token = 0

    def __init__(out self, judgements: List[Judgement]):
        """Counts."""
        self = Self()
        for ref judgement in judgements:
            self.add(judgement)

    def add(mut self, judgement: Judgement):
        """Takes what a model thinks of one more example."""
        self.examples += 1
        self.right += Int(judgement.likeliest() == judgement.label)
        self.right_per_token += Int(judgement.likeliest_per_token() == judgement.label)

    def acc(self) -> Float64:
        """Returns the share of right answers."""
        return Float64(self.right) / Float64(self.examples)

    def acc_norm(self) -> Float64:
        """Returns the share of right answers by the probability per token."""
        return Float64(self.right_per_token) / Float64(self.examples)

    def lines(self) -> String:
        """Writes both for the screen, each with its confidence interval."""
        return (
            _share("acc     ", self.right, self.examples)
            + "\n"
            + _share("acc_norm", self.right_per_token, self.examples)
        )


def _share(name: String, right: Int, examples: Int) -> String:
    var low, high = wilson_interval(right, examples)
    return String(
        t"{name} {fixed(Float64(right) / Float64(examples), 4)} ({grouped(right)} of {grouped(examples)}) | 95%"
        t" interval {fixed(low, 4)} to {fixed(high, 4)} (Wilson)"
    )

"""The loss of a model on token shards, read through a sliding window.

A window is T inputs and the T tokens that follow each of them; the next one begins `stride` tokens later. Of the first
window of a shard all targets count, of each later one the last `stride`, those that no window before has had. So each
token but a shard's first is a target just once, and beyond the first window sees at least T - stride + 1 tokens.
"""

from std.math import exp, isfinite, log, sqrt
from std.utils.numerics import nan

from llm.base.files import glob_files
from llm.base.formatting import fixed
from llm.base.json import json_number
from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.data.token_shard import TokenShard
from llm.eval.intervals import Z_95
from llm.eval.watcher import Unwatched, Watcher
from llm.model.gpt2 import GPT2
from llm.text.tokenizer import Tokenizer

comptime F64 = DType.float64
comptime I32 = DType.int32
comptime _NO_TARGET = Int32(-1)


struct SlidingWindow(Movable):
    """The windows over some shards."""

    var T: Int
    var stride: Int
    var paths: List[String]
    var num_targets: Int
    """Tokens that are predicted."""
    var num_windows: Int
    var _lengths: List[Int]
    """Tokens of each shard."""

    def __init__(out self, pattern: String, T: Int, stride: Int) raises:
        """Checks every shard that matches the pattern. The stride is from 1 to T.

        Raises:
            If there is none, or one is damaged or has no token to predict.
        """
        self.T = T
        self.stride = stride
        self.paths = glob_files(pattern)
        self.num_targets = 0
        self.num_windows = 0
        self._lengths = List[Int]()
        if len(self.paths) == 0:
            raise Error(
                t"data: no file matches {pattern}; check the name, or make token shards with `python -m llm_mojo"
                t" prepare`"
            )
        for path in self.paths:
            var tokens = TokenShard(path).num_tokens
            if tokens < 2:
                raise Error(
                    t"data: {path}: expected at least 2 tokens, one to predict from the other, found {tokens}; give"
                    t" more text"
                )
            self._lengths.append(tokens)
            self.num_targets += tokens - 1
            self.num_windows += self.windows_of(tokens)

    def windows_of(self, tokens: Int) -> Int:
        """Counts the windows over a shard of so many tokens: those that have a target of their own."""
        return 1 + max(0, (tokens - 1 - self.T + self.stride - 1) // self.stride)


struct LossEstimate(Copyable, Movable):
    """A mean over targets that come in windows, and how far it may be off.

    The error is that of a mean of clusters: windows are taken as independent, the targets within one are not.
    """

    var targets: Int
    var windows: Int
    var sum: Float64
    """Of the losses of all targets."""
    var bytes: Int
    """Of the text that the targets spell, if that is known, or 0."""
    # Sums over windows, of their loss S and their targets n: S^2, S n, n^2.
    var _loss_loss: Float64
    var _loss_targets: Float64
    var _targets_targets: Float64

    def __init__(out self):
        """Starts with nothing."""
        self.targets = 0
        self.windows = 0
        self.sum = 0
        self.bytes = 0
        self._loss_loss = 0
        self._loss_targets = 0
        self._targets_targets = 0

    def add(mut self, loss: Float64, targets: Int, bytes: Int):
        """Takes the summed loss of a window."""
        self.targets += targets
        self.bytes += bytes
        self.windows += 1
        self.sum += loss
        self._loss_loss += loss * loss
        self._loss_targets += loss * Float64(targets)
        self._targets_targets += Float64(targets) * Float64(targets)

    def mean(self) -> Float64:
        """Returns the loss per target, in nats."""
        return self.sum / Float64(self.targets)

    def bits_per_byte(self) -> Float64:
        """Returns what a byte of the text costs, by which models of different vocabularies compare; NaN if unknown."""
        return self.sum / log(Float64(2)) / Float64(self.bytes) if self.bytes > 0 else nan[F64]()

    def standard_error(self) -> Float64:
        """Returns the standard error of the mean; NaN for a single window, which tells nothing of it."""
        var m = self.mean()
        var squares = self._loss_loss - 2 * m * self._loss_targets + m * m * self._targets_targets
        var n = Float64(self.windows)
        return sqrt(max(squares, 0.0) * n / (n - 1)) / Float64(self.targets) if n > 1 else nan[F64]()

    def interval(self) -> Tuple[Float64, Float64]:
        """Returns the 95% confidence interval of the mean."""
        var half = Z_95 * self.standard_error()
        return (self.mean() - half, self.mean() + half)

    def line(self) -> String:
        """Writes it for the screen."""
        var line = String(t"loss {fixed(self.mean(), 6)} | perplexity {fixed(exp(self.mean()), 3)}")
        if self.bytes > 0:
            line += String(t" | {fixed(self.bits_per_byte(), 4)} bits per byte")
        if self.windows > 1:
            var low, high = self.interval()
            line += String(
                t" | 95% interval {fixed(low, 4)} to {fixed(high, 4)}, {fixed(exp(low), 2)} to {fixed(exp(high), 2)}"
                t" (windows taken as independent)"
            )
        return line^

    def json_members(self) -> String:
        """Writes the members of an object for a program to read."""
        return String(
            t'"windows": {self.windows}, "targets": {self.targets}, "loss": {json_number(self.mean())}, "perplexity":'
            t' {json_number(exp(self.mean()))}, "standard_error": {json_number(self.standard_error())},'
            t' "bits_per_byte": {json_number(self.bits_per_byte())}'
        )


def evaluate_shards[
    dtype: DType, W: Watcher = Unwatched
](
    mut model: GPT2[dtype], windows: SlidingWindow, lengths: List[Int] = [], var watcher: W = Unwatched()
) raises -> LossEstimate:
    """Computes the loss of a model over all windows, or fewer if the watcher ends it.

    As many windows run side by side as the model has room for. `lengths` are the `token_lengths`, or nothing.

    Raises:
        If a token is not in the vocabulary, a loss is not a number, or a shard has changed since it was checked.
    """
    var T = windows.T
    var most = model.acts.rows // T
    var arena = Arena(2 * aligned_bytes[I32](most * T))
    var inputs = arena.carve[I32](most * T)
    var targets = arena.carve[I32](most * T)
    var estimate = LossEstimate()
    for path in windows.paths:
        var shard = TokenShard(path)
        var predicted = shard.num_tokens - 1
        var last = windows.windows_of(shard.num_tokens) - 1
        var first = 0
        while first <= last and not watcher.stopped():
            # The last window of a shard is shorter than the others, and so alone.
            var B = 1 if first == last else min(most, last - first)
            var length = min(T, predicted - first * windows.stride)
            for b in range(B):
                var start = (first + b) * windows.stride
                var fresh = length if first + b == 0 else length - (T - windows.stride)
                var counted = targets.slice(b * length, length)
                shard.read_pairs(start, inputs.slice(b * length, length), counted, model.config.vocab_size)
                counted.slice(0, length - fresh).fill(_NO_TARGET)
            try:
                model.forward(inputs.slice(0, B * length), B, length)
                var losses = model.losses(targets.slice(0, B * length))
                for b in range(B):
                    var row = b * length
                    _add_window(estimate, losses.slice(row, length), targets.slice(row, length), lengths)
            except error:
                raise Error(t"evaluate: {path}: after token {first * windows.stride}: {error}")
            first += B
            watcher.show(estimate.windows, windows.num_windows, String(t"loss {fixed(estimate.mean(), 4)}"))
    _ = arena^
    return estimate^


def token_lengths(tokenizer: Tokenizer) raises -> List[Int]:
    """Returns how many bytes of text each token stands for; the end of a text stands for none."""
    var lengths = List[Int](capacity=tokenizer.vocab_size)
    for token in range(tokenizer.vocab_size):
        lengths.append(0 if token == tokenizer.end_of_text else len(tokenizer.decode(token)))
    return lengths^


def _add_window(
    mut estimate: LossEstimate, losses: Tensor[DType.float32], targets: Tensor[I32], lengths: List[Int]
) raises:
    var sum = Float64(0)
    var count = 0
    var bytes = 0
    for t in range(losses.size):
        if targets[t] >= 0:
            sum += losses[t].cast[F64]()
            count += 1
            bytes += lengths[Int(targets[t])] if len(lengths) > 0 else 0
    if not isfinite(sum):
        raise Error(
            t"the loss is {sum}: the model's parameters are not finite or have diverged; use an earlier checkpoint"
        )
    estimate.add(sum, count, bytes)

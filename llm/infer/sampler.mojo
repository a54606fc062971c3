"""The choice of the next token from the logits: greedy, or a draw from their softmax, cut by top-k and top-p."""

from std.builtin.sort import sort
from std.math import isfinite
from std.utils.numerics import max_finite

from llm.base.memory import Tensor
from llm.base.random import Xorshift
from llm.cpu.simd.vector_math import exp

comptime F32 = DType.float32
comptime F64 = DType.float64
comptime _LANES = 16
"""Whatever the machine's vectors are: the order of sums, and with it the text, is the same everywhere."""
comptime _BUCKETS = 4096


struct Sampler(Copyable, Movable):
    """Draws tokens, reproducibly by seed. As it is made it follows llm.c's CPU program: softmax, then one draw."""

    var temperature: Float32
    """Logits are divided by it; 0 takes the most likely token."""
    var top_k: Int
    """Only this many of the most likely tokens take part (more if several share the last place); 0: all."""
    var top_p: Float64
    """Of these only the fewest whose probability adds up to this (more if several share the last place); 1: all, 0: the
    most likely."""
    var _rng: Xorshift
    var _likelihoods: List[Float32]

    def __init__(out self, *, seed: Int = 1337, temperature: Float64 = 1, top_k: Int = 0, top_p: Float64 = 1) raises:
        """Starts a sampler.

        Raises:
            If the temperature or top_k is negative, or top_p is not from 0 to 1.
        """
        if not isfinite(temperature) or temperature < 0 or top_k < 0:
            raise Error(
                t"sampler: expected a temperature and a top_k of at least 0, got temperature={temperature},"
                t" top_k={top_k}"
            )
        if not (top_p >= 0 and top_p <= 1):
            raise Error(t"sampler: expected a top_p from 0 to 1, got top_p={top_p}")
        self.temperature = Float32(temperature)
        self.top_k = top_k
        self.top_p = top_p
        self._rng = Xorshift(seed)
        self._likelihoods = List[Float32]()

    def rng_state(self) -> UInt64:
        """Returns the state of the generator, from which the draws can go on later."""
        return self._rng.state

    def set_rng_state(mut self, state: UInt64):
        """Goes on with the draws that follow a state."""
        self._rng.state = state

    def sample(mut self, logits: Tensor[F32]) raises -> Int:
        """Chooses a token; `logits` (V) without the padding.

        Raises:
            If a logit is not a finite number: the model has diverged.
        """
        if self.temperature == 0:
            return _first(logits, _range(logits)[1])
        return self._draw(self.weigh(logits))

    def weigh(mut self, logits: Tensor[F32]) raises -> Float64:
        """Computes the likelihood of every token, and returns their sum; `likelihood` then tells each.

        Raises:
            If a logit is not a finite number.
        """
        var lowest, highest = _range(logits)
        if self.top_k > 0 and self.top_k < logits.size:
            lowest = self._cut[by_count=True](logits, lowest, highest, Float64(self.top_k))
        var total = self._fill_likelihoods(logits, lowest, highest)
        if self.top_p < 1:
            lowest = self._cut[by_count=False](logits, lowest, highest, self.top_p * total)
            total = self._fill_likelihoods(logits, lowest, highest)
        return total

    def likelihood(self, token: Int) -> Float32:
        """Returns the chance of a token, relative to the most likely one; 0 if it was cut off."""
        return self._likelihoods[token]

    def _fill_likelihoods(mut self, logits: Tensor[F32], lowest: Float32, highest: Float32) -> Float64:
        """Computes e^((logit - highest) / temperature), 0 for logits below `lowest`, and returns the sum."""
        var padded = (logits.size + _LANES - 1) // _LANES * _LANES
        self._likelihoods.resize(padded, 0)
        var sum = SIMD[F64, _LANES](0)
        for i in range(0, padded, _LANES):
            var x = SIMD[F32, _LANES](-max_finite[F32]())
            if i + _LANES <= logits.size:
                x = logits.load[_LANES](i)
            else:
                for j in range(i, logits.size):
                    x[j - i] = logits[j]
            var likelihood = exp((x - highest) / self.temperature)
            likelihood = x.ge(lowest).select(likelihood, SIMD[F32, _LANES](0))
            if i + _LANES > logits.size:
                for j in range(logits.size - i, _LANES):
                    likelihood[j] = 0
            self._likelihoods.unsafe_ptr().unsafe_offset(i).unsafe_store(likelihood)
            sum += likelihood.cast[F64]()
        return sum.reduce_add()

    def _cut[by_count: Bool](self, logits: Tensor[F32], lowest: Float32, highest: Float32, target: Float64) -> Float32:
        """Returns the smallest logit of the fewest largest ones that together reach a number, or a likelihood.

        Logits are thrown into buckets by size, so that only those around the cut have to be sorted.
        """
        var scale = Float64(_BUCKETS - 1) / max(Float64(highest) - Float64(lowest), 1e-300)
        var sums = List[Float64](length=_BUCKETS, fill=0)
        for i in range(logits.size):
            if logits[i] >= lowest:
                sums[_bucket(logits[i], highest, scale)] += 1 if by_count else Float64(self._likelihoods[i])
        var above = Float64(0)
        var bucket = 0
        while bucket < _BUCKETS - 1 and above + sums[bucket] < target:
            above += sums[bucket]
            bucket += 1
        var around = List[_Candidate]()
        for i in range(logits.size):
            if logits[i] >= lowest and _bucket(logits[i], highest, scale) == bucket:
                around.append(_Candidate(logits[i], 1 if by_count else Float64(self._likelihoods[i])))

        def more_likely(a: _Candidate, b: _Candidate) {} -> Bool:
            return a.logit > b.logit

        sort(Span(around), more_likely)
        var last = highest
        for candidate in around:
            if above >= target:
                break
            last = candidate.logit
            above += candidate.weight
        return last

    def _draw(mut self, total: Float64) -> Int:
        """Draws a token with a probability proportional to its likelihood."""
        var coin = Float64(self._rng.next_float32()) * total
        var cumulative = Float64(0)
        for i in range(0, len(self._likelihoods), _LANES):
            var block = self._likelihoods.unsafe_ptr().unsafe_offset(i).unsafe_load[width=_LANES]().cast[F64]()
            var sum = block.reduce_add()
            if cumulative + sum > coin:
                for j in range(_LANES):
                    cumulative += block[j]
                    if cumulative > coin:
                        return i + j
                return self._last(i + _LANES)
            cumulative += sum
        return self._last(len(self._likelihoods))

    def _last(self, end: Int) -> Int:
        """Returns the last token before `end` that can be drawn: where a coin lands that rounding has put too far."""
        for i in range(end - 1, -1, -1):
            if self._likelihoods[i] > 0:
                return i
        return 0


@fieldwise_init
struct _Candidate(Copyable, Movable, TrivialRegisterPassable):
    var logit: Float32
    var weight: Float64


@always_inline
def _bucket(logit: Float32, highest: Float32, scale: Float64) -> Int:
    return Int(min((Float64(highest) - Float64(logit)) * scale, Float64(_BUCKETS - 1)))


def _range(logits: Tensor[F32]) raises -> Tuple[Float32, Float32]:
    """Returns the smallest and the largest logit.

    Raises:
        If one is not a finite number.
    """
    var lowest = SIMD[F32, _LANES](logits[0])
    var highest = lowest
    var finite = SIMD[DType.bool, _LANES](fill=True)
    var full = logits.size - logits.size % _LANES
    for i in range(0, full, _LANES):
        var x = logits.load[_LANES](i)
        lowest = min(lowest, x)
        highest = max(highest, x)
        finite = finite & abs(x).le(max_finite[F32]())
    for i in range(full, logits.size):
        lowest[0] = min(lowest[0], logits[i])
        highest[0] = max(highest[0], logits[i])
        finite[0] = finite[0] and isfinite(logits[i])
    if not finite.reduce_and():
        for i in range(logits.size):
            if not isfinite(logits[i]):
                raise Error(
                    t"sampler: the logit of token {i} is {logits[i]}; the model has diverged: go back to an earlier"
                    t" checkpoint or lower --learning-rate"
                )
    return lowest.reduce_min(), highest.reduce_max()


def _first(logits: Tensor[F32], value: Float32) -> Int:
    """Returns the first token with this logit."""
    for i in range(logits.size):
        if logits[i] == value:
            return i
    return 0

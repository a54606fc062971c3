"""The choice of the next token from the logits."""

from std.builtin.sort import partition
from std.math import exp, isfinite

from llm.memory import Tensor
from llm.random import Xorshift

comptime F32 = DType.float32


struct Sampler(Movable):
    """Draws tokens, reproducibly by seed. As it is made it follows llm.c's CPU program: softmax, then one draw."""

    var temperature: Float32
    """Logits are divided by it; 0 takes the most likely token."""
    var top_k: Int
    """Only this many of the most likely tokens take part (more if several share the last place); 0: all."""
    var _rng: Xorshift
    var _scratch: List[Float32]

    def __init__(out self, *, seed: Int = 1337, temperature: Float64 = 1, top_k: Int = 0) raises:
        """Starts a sampler.

        Raises:
            If the temperature or top_k is negative.
        """
        if not isfinite(temperature) or temperature < 0 or top_k < 0:
            raise Error(
                t"sampler: expected a temperature and a top_k of at least 0, got temperature={temperature},"
                t" top_k={top_k}"
            )
        self.temperature = Float32(temperature)
        self.top_k = top_k
        self._rng = Xorshift(seed)
        self._scratch = List[Float32]()

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
        var best = 0
        for i in range(logits.size):
            if not isfinite(logits[i]):
                raise Error(
                    t"sampler: the logit of token {i} is {logits[i]}; the model has diverged: go back to an earlier"
                    t" checkpoint or lower --learning-rate"
                )
            if logits[i] > logits[best]:
                best = i
        if self.temperature == 0:
            return best
        var largest = logits[best]
        var lowest = self._lowest(logits)

        # Each probability is computed twice instead of being kept: V is large and the draw mostly ends early.
        var total = Float32(0)
        for i in range(logits.size):
            if logits[i] >= lowest:
                total += exp((logits[i] - largest) / self.temperature)
        var coin = self._rng.next_float32()
        var cumulative = Float32(0)
        var last = best
        for i in range(logits.size):
            if logits[i] >= lowest:
                cumulative += exp((logits[i] - largest) / self.temperature) / total
                last = i
                if coin < cumulative:
                    break
        return last

    def _lowest(mut self, logits: Tensor[F32]) -> Float32:
        """Returns the smallest logit that takes part."""
        if self.top_k == 0 or self.top_k >= logits.size:
            return Float32.MIN_FINITE
        self._scratch.clear()
        for i in range(logits.size):
            self._scratch.append(logits[i])

        def more_likely(a: Float32, b: Float32) {} -> Bool:
            return a > b

        partition(Span(self._scratch), self.top_k, more_likely)
        var lowest = self._scratch[0]
        for i in range(1, self.top_k):
            lowest = min(lowest, self._scratch[i])
        return lowest

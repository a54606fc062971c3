"""Random numbers: llm.c's two generators, mt19937 for the order of the data and xorshift for sampling text, and one
without a state, for draws that follow from their place alone."""

comptime _N = 624
comptime _M = 397


struct Mt19937(Copyable, Movable):
    """The Mersenne twister of Matsumoto and Nishimura (1998), in step with PyTorch's CPU generator."""

    var state: List[UInt32]
    """The 624 words."""
    var next: Int
    """The word that comes next; 624 when all are used."""

    def __init__(out self, seed: Int):
        """Seeds as `torch.manual_seed` does; the lower 32 bits count."""
        self.state = List[UInt32](length=_N, fill=0)
        self.next = _N
        self.state[0] = UInt32(seed & 0xFFFFFFFF)
        for i in range(1, _N):
            var last = self.state[i - 1]
            self.state[i] = 1812433253 * (last ^ (last >> 30)) + UInt32(i)

    def next_uint32(mut self) -> UInt32:
        """Draws 32 bits."""
        if self.next == _N:
            self._twist()
        var y = self.state[self.next]
        self.next += 1
        y ^= y >> 11
        y ^= (y << 7) & 0x9D2C5680
        y ^= (y << 15) & 0xEFC60000
        return y ^ (y >> 18)

    def permute(mut self, mut items: List[Int]):
        """Shuffles as llm.c does: from the last place down, each swapped with one drawn from those up to it.

        The draw is taken modulo the number of places: the tiny bias belongs to the order that llm.c's users know.
        """
        for i in range(len(items) - 1, 0, -1):
            var j = Int(self.next_uint32()) % (i + 1)
            items.swap_elements(i, j)

    def _twist(mut self):
        for i in range(_N):
            var y = (self.state[i] & 0x80000000) | (self.state[(i + 1) % _N] & 0x7FFFFFFF)
            var odd = UInt32(0x9908B0DF) if y & 1 == 1 else UInt32(0)
            self.state[i] = self.state[(i + _M) % _N] ^ (y >> 1) ^ odd
        self.next = 0


struct Xorshift(Copyable, Movable):
    """Vigna's xorshift64* generator, as llm.c's sampler uses it."""

    var state: UInt64
    """All there is; never 0."""

    def __init__(out self, seed: Int):
        """Seeds; 0, from which the generator would never move, is taken as 1."""
        self.state = UInt64(seed) if seed != 0 else 1

    def next_uint32(mut self) -> UInt32:
        """Draws 32 bits."""
        self.state ^= self.state >> 12
        self.state ^= self.state << 25
        self.state ^= self.state >> 27
        return UInt32((self.state * 0x2545F4914F6CDD1D) >> 32)

    def next_float32(mut self) -> Float32:
        """Draws a number from [0, 1): a multiple of 2^-24."""
        return Float32(self.next_uint32() >> 8) / 16777216


@always_inline
def draw_at(key: UInt64, place: UInt64) -> UInt64:
    """Draws 64 bits that follow from key and place alone; make the key with `scramble` if seeds are close together."""
    return scramble(key + place * 0x9E3779B97F4A7C15)


@always_inline
def scramble(x: UInt64) -> UInt64:
    """Scrambles 64 bits: the output function of splitmix64 (Steele, Lea and Flood, 2014)."""
    var z = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return z ^ (z >> 31)


def mixed_seed(seed: Int) -> Int:
    """Scrambles a seed, so that generators with neighbouring seeds have nothing in common (splitmix64's output)."""
    var z = UInt64(seed) * 0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    return Int(z ^ (z >> 31))


def identity_permutation(count: Int) -> List[Int]:
    """Lists 0 .. count - 1."""
    var items = List[Int](capacity=count)
    for i in range(count):
        items.append(i)
    return items^

"""Sums over replicas, pairwise in one fixed order, and the two halves of sharing them out.

Of the gradients g[0] .. g[R - 1] of R replicas, neighbours are added first, then neighbouring pairs, and so on:
((g[0] + g[1]) + (g[2] + g[3])) + .. A process that has 2^k neighbouring replicas adds up a whole branch of that tree, so it
does not matter for a single bit how many processes there are.

What is shared out comes in chunks, lists of them by the rank that owns them. Each rank gets the others' parts of its own
chunks, adds them and later sends the results to all: each byte goes where it is needed and nowhere else, as in recursive
halving and doubling: (size - 1) / size of all bytes leave each rank in either half.
"""

from std.sys import simd_width_of
from std.utils.numerics import FlushDenormals

from llm.base.memory import Arena, Tensor, aligned_bytes
from llm.dist.ranks import Ranks

comptime F32 = DType.float32
comptime W = simd_width_of[F32]()
comptime CHUNK = 1 << 20
"""Scalars of a message at most."""
comptime _AHEAD = 3
"""Rounds of messages that are on their way at a time."""

comptime Chunks = List[List[Tensor[F32]]]
"""By the rank that owns them; each at most CHUNK scalars."""


def add(sum: Tensor[F32], other: Tensor[F32]):
    """Adds `other` to `sum`."""
    # As in a crew's threads.
    with FlushDenormals():
        var full = sum.size - sum.size % W
        for i in range(0, full, W):
            sum.store(i, sum.load[W](i) + other.load[W](i))
        for i in range(full, sum.size):
            sum[i] = sum[i] + other[i]


struct Exchange(Movable):
    """Room for the chunks that come from other ranks."""

    var _room: List[Tensor[F32]]
    var _arena: Arena

    def __init__(out self, size: Int) raises:
        """Reserves room for the messages of so many ranks.

        Raises:
            If the system has no room.
        """
        var places = _AHEAD * (size - 1)
        self._arena = Arena(max(places * aligned_bytes[F32](CHUNK), 1))
        self._room = List[Tensor[F32]]()
        for _ in range(places):
            self._room.append(self._arena.carve[F32](CHUNK))

    def sum(mut self, mut ranks: Ranks, chunks: Chunks) raises:
        """Adds up the chunks that this rank owns over all ranks; what is in the others' chunks is no longer of use.

        Raises:
            If MPI fails.
        """
        var rounds = _rounds(chunks)
        var sends = List[Int]()
        var receives = List[List[Int]]()
        ref own = chunks[ranks.rank]
        for round in range(rounds + _AHEAD):
            if round >= _AHEAD and round - _AHEAD < len(own):
                ranks.wait_for_all(receives[round - _AHEAD])
                self._add(ranks, own[round - _AHEAD], round - _AHEAD)
            if round >= rounds:
                continue
            receives.append(List[Int]())
            for peer in range(ranks.size):
                if peer == ranks.rank:
                    continue
                if round < len(own):
                    var place = self._place(ranks, round, peer).slice(0, own[round].size)
                    receives[round].append(ranks.receive(place, peer))
                if round < len(chunks[peer]):
                    sends.append(ranks.send(chunks[peer][round], peer))
            _settle(ranks, sends, 2 * _AHEAD * ranks.size)
        ranks.wait_for_all(sends)

    def spread(mut self, mut ranks: Ranks, chunks: Chunks) raises:
        """Gives every rank what each has in its own chunks.

        Raises:
            If MPI fails.
        """
        var messages = List[Int]()
        for round in range(_rounds(chunks)):
            for peer in range(ranks.size):
                if peer == ranks.rank:
                    continue
                if round < len(chunks[peer]):
                    messages.append(ranks.receive(chunks[peer][round], peer))
                if round < len(chunks[ranks.rank]):
                    messages.append(ranks.send(chunks[ranks.rank][round], peer))
            _settle(ranks, messages, 2 * _AHEAD * ranks.size)
        ranks.wait_for_all(messages)

    def _place(self, ranks: Ranks, round: Int, peer: Int) -> Tensor[F32]:
        var other = peer if peer < ranks.rank else peer - 1
        return self._room[(round % _AHEAD) * (ranks.size - 1) + other]

    def _add(self, ranks: Ranks, own: Tensor[F32], round: Int):
        """Adds up what the ranks have of a chunk, pairwise in the order of their numbers."""
        var parts = List[Tensor[F32]]()
        for rank in range(ranks.size):
            parts.append(own if rank == ranks.rank else self._place(ranks, round, rank).slice(0, own.size))
        var distance = 1
        while distance < ranks.size:
            for i in range(0, ranks.size - distance, 2 * distance):
                # The sum stays where it has to end; x + y is y + x.
                if Int(parts[i + distance].ptr) == Int(own.ptr):
                    add(parts[i + distance], parts[i])
                    parts[i] = parts[i + distance]
                else:
                    add(parts[i], parts[i + distance])
            distance *= 2


def gather(mut ranks: Ranks, chunks: Chunks) raises:
    """Gives rank 0 what each rank has in its own chunks.

    Raises:
        If MPI fails.
    """
    _one_to_all(ranks, chunks, to_first=True)


def scatter(mut ranks: Ranks, chunks: Chunks) raises:
    """Gives each rank what rank 0 has in that rank's chunks.

    Raises:
        If MPI fails.
    """
    _one_to_all(ranks, chunks, to_first=False)


def _one_to_all(mut ranks: Ranks, chunks: Chunks, *, to_first: Bool) raises:
    var messages = List[Int]()
    for owner in range(1, ranks.size):
        if ranks.rank != 0 and ranks.rank != owner:
            continue
        for chunk in chunks[owner]:
            if (ranks.rank == 0) == to_first:
                messages.append(ranks.receive(chunk, owner if ranks.rank == 0 else 0))
            else:
                messages.append(ranks.send(chunk, owner if ranks.rank == 0 else 0))
            _settle(ranks, messages, 2 * _AHEAD)
    ranks.wait_for_all(messages)


def _settle(mut ranks: Ranks, mut messages: List[Int], most: Int) raises:
    """Waits until no more than so many messages are on their way."""
    if len(messages) <= most:
        return
    var rest = List[Int]()
    for i, message in enumerate(messages):
        if i < len(messages) - most:
            ranks.wait(message)
        else:
            rest.append(message)
    messages = rest^


def _rounds(chunks: Chunks) -> Int:
    var rounds = 0
    for ref own in chunks:
        rounds = max(rounds, len(own))
    return rounds

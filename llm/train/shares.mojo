"""How ranks share out the optimizer's state: by the blocks that norms are summed over, of all tensors in their order.

Blocks are dealt out in stripes, so that each rank has its share of whatever becomes final together, and of every message.
"""

from llm.base.memory import Tensor
from llm.cpu.global_norm import NORM_BLOCK, num_norm_blocks
from llm.cpu.threads.crew import share
from llm.dist.reduction import CHUNK, Chunks
from llm.formats.training_state import STRIPE

comptime F32 = DType.float32


def stripes(blocks: Int, size: Int, rank: Int) -> List[Tuple[Int, Int]]:
    """Returns which of so many blocks a rank has, as ranges [first, last): of each `size * STRIPE` blocks the rank-th
    STRIPE, and of the fewer that are left in the end an even share.
    """
    var rounds = 0 if size == 1 else blocks // (size * STRIPE)
    var own = List[Tuple[Int, Int]]()
    for round in range(rounds):
        var first = (round * size + rank) * STRIPE
        own.append((first, first + STRIPE))
    var dealt = rounds * size * STRIPE
    var left = share(blocks - dealt, size, rank)
    own.append((dealt + left[0], dealt + left[1]))
    return own^


def shares(tensors: List[Tensor[F32]], size: Int) -> Chunks:
    """Parts tensors into as many shares as there are ranks, in chunks, each of whole blocks of one tensor."""
    var windows = List[Tuple[Int, Int]]()
    for tensor in tensors:
        windows.append((0, tensor.size))
    return shares_within(tensors, windows, size)


def shares_within(tensors: List[Tensor[F32]], windows: List[Tuple[Int, Int]], size: Int) -> Chunks:
    """Of each of those shares what lies within [begin, end) of each tensor."""
    var all = num_blocks(tensors)
    var chunks = Chunks()
    for rank in range(size):
        var ranges = stripes(all, size, rank)
        var own = List[Tensor[F32]]()
        var before = 0
        for i, tensor in enumerate(tensors):
            var blocks = num_norm_blocks(tensor.size)
            for first, last in ranges:
                var begin = max(max(first - before, 0) * NORM_BLOCK, windows[i][0])
                var end = min(min(last - before, blocks) * NORM_BLOCK, windows[i][1])
                for at in range(begin, end, CHUNK):
                    own.append(tensor.slice(at, min(CHUNK, end - at)))
            before += blocks
        chunks.append(own^)
    return chunks^


def share_of(slots: List[List[Tensor[F32]]], rank: Int, size: Int) -> List[Tensor[F32]]:
    """Returns a rank's share of the optimizer's state, slot after slot; of a single one all of it."""
    var own = List[Tensor[F32]]()
    for ref tensors in slots:
        own.extend(shares(tensors, size)[rank].copy())
    return own^


def num_blocks(tensors: List[Tensor[F32]]) -> Int:
    """Counts the blocks of all tensors."""
    var blocks = 0
    for tensor in tensors:
        blocks += num_norm_blocks(tensor.size)
    return blocks

"""The parts of a batch that are trained on side by side: which data each takes, and how their gradients become one.

A run has `count` replicas, shared out evenly over its ranks. A replica has the number that a process would have in llm.c:
its data comes in the order of that rank, and its gradient is that of its own passes. Gradients of replicas are added
pairwise in one order (see `llm/dist/reduction.mojo`), so a run comes out the same on any number of ranks.

Rank 0 decides what is done next and tells the others, who follow; all of them do each step in the same way.
"""

from llm.base.memory import Tensor
from llm.base.shared_counter import SharedCounter
from llm.data.loader import DataLoader
from llm.dist.courier import Courier, Stage
from llm.dist.ranks import Ranks
from llm.dist.reduction import CHUNK, Chunks, Exchange, add, gather, scatter
from llm.model.config import GPT2Config
from llm.model.tensors import FCW, NUM_TENSORS, ParameterTensors, is_of_blocks
from llm.train.shares import num_blocks, shares, shares_within, stripes

comptime F32 = DType.float32
comptime _STAGE = 1 << 21
"""Scalars of gradients that are worth to leave before the others."""

# What rank 0 has the others do.
comptime STEP = 1
comptime VALIDATE = 2
comptime ANSWER = 3
comptime SAVE = 4
comptime END = 5


struct Replicas(Movable):
    """Those of a run that this process takes care of, and the ranks that have the others."""

    var count: Int
    """Replicas of the run."""
    var here: Int
    """Replicas of this process, a power of two of them unless there is one rank: `rank * here` is the first."""
    var ranks: Ranks
    var shards_state: Bool
    """Whether each rank keeps the optimizer's state for its share of the parameters alone (ZeRO stage 1)."""
    var saves_parts: Bool
    """Whether each rank writes its share of the state itself, on a disk that all of them have."""
    var loaders: List[DataLoader]
    """Data of this process's replicas but the first, whose data the trainer has."""
    var batches: Int
    """Those that each replica had taken when the run was resumed."""
    var _sums: List[ParameterTensors[F32]]
    """Sums of 2^i neighbouring replicas that wait for the next 2^i."""
    var _exchange: Exchange
    var _courier: Courier

    def __init__(out self) raises:
        """One replica in one process."""
        self = Self(1, Ranks(), List[DataLoader]())

    def __init__(
        out self,
        count: Int,
        var ranks: Ranks,
        var loaders: List[DataLoader],
        *,
        shards_state: Bool = True,
        saves_parts: Bool = False,
    ) raises:
        """Shares replicas out over ranks.

        Raises:
            If they cannot be, or the system has no room.
        """
        check_replicas(count, ranks.size)
        self.count = count
        self.here = count // ranks.size
        self.shards_state = shards_state and ranks.size > 1
        self.saves_parts = saves_parts and self.shards_state
        self._exchange = Exchange(ranks.size)
        self._courier = Courier()
        self.ranks = ranks^
        self.loaders = loaders^
        self.batches = 0
        self._sums = List[ParameterTensors[F32]]()

    @no_inline
    def __deinit__(deinit self):
        """Frees what it owns. Not inlined, because every call that may raise is followed by a copy."""
        pass

    # ----- who does what

    def lead(mut self, what: Int, a: Int = 0, b: Int = 0) raises:
        """Tells the other ranks, if this is rank 0, what is done next.

        Raises:
            If MPI fails.
        """
        if self.ranks.size > 1 and self.ranks.leads():
            _ = self._hand_out(what, a, b)

    def next(mut self) raises -> List[Int]:
        """Waits until rank 0 tells what is done next: what, and two numbers.

        Raises:
            If MPI fails.
        """
        return self._hand_out(0, 0, 0)

    def _hand_out(mut self, what: Int, a: Int, b: Int) raises -> List[Int]:
        var numbers: List[Int64] = [Int64(what), Int64(a), Int64(b)]
        self.ranks.hand_out(Tensor(viewing=Span(numbers)))
        return [Int(numbers[0]), Int(numbers[1]), Int(numbers[2])]

    # ----- gradients

    def add_gradient(mut self, grads: ParameterTensors[F32], config: GPT2Config, i: Int) raises:
        """Takes the gradient of this process's i-th replica; after the last one `grads` has the sum of all here.

        Raises:
            If the system has no room.
        """
        var is_last = i + 1 == self.here
        if is_last:
            # Else `begin_to_reduce` has seen to it.
            if self.ranks.size == 1:
                for level in self._waiting():
                    for tensor in range(NUM_TENSORS):
                        add(grads[tensor], self._sums[level][tensor])
            return
        var level = 0
        while (i >> level) & 1 == 1:
            for tensor in range(NUM_TENSORS):
                add(grads[tensor], self._sums[level][tensor])
            level += 1
        if level == len(self._sums):
            self._sums.append(ParameterTensors[F32](config, place=1))
        for tensor in range(NUM_TENSORS):
            _copy(self._sums[level][tensor], grads[tensor])

    def _waiting(self) -> List[Int]:
        """The sums to which this process's last replica is added, in their order."""
        var levels = List[Int]()
        for level in range(len(self._sums)):
            if ((self.here - 1) >> level) & 1 == 1:
                levels.append(level)
        return levels^

    def begin_to_reduce(mut self, grads: ParameterTensors[F32], finished: SharedCounter) raises:
        """Before the last backward pass of a step: has gradients added up over the ranks as soon as they are final.

        Which blocks are, the last one first, `finished` says; in the end it is one more than there are. Until `reduce` has
        returned nothing else may be asked of the ranks.

        Raises:
            If the system refuses a thread.
        """
        if self.ranks.size == 1:
            return
        var blocks = grads.specs[FCW].layers
        var in_block = 0
        for tensor in range(NUM_TENSORS):
            in_block += grads.specs[tensor].layer_size() if is_of_blocks(tensor) else 0
        # Messages cost time of their own: blocks leave together that are worth it, and small models at once in the end.
        var together = (_STAGE + in_block - 1) // in_block
        var stages = List[Stage]()
        var sent = 0
        if in_block * blocks >= _STAGE:
            while sent < blocks:
                stages.append(self._stage(grads, sent, min(sent + together, blocks)))
                sent = min(sent + together, blocks)
        stages.append(self._stage(grads, sent, blocks + 1))
        self._courier.send(self.ranks, self._exchange, stages^, finished.address())

    def _stage(self, grads: ParameterTensors[F32], first: Int, last: Int) -> Stage:
        """What is final after `last` blocks, and is not after `first`; blocks count from the last one down, and after all of
        them comes what is in no block.
        """
        var blocks = grads.specs[FCW].layers
        var windows = List[Tuple[Int, Int]]()
        for tensor in range(NUM_TENSORS):
            var size = grads.specs[tensor].layer_size()
            if is_of_blocks(tensor):
                windows.append((max(blocks - last, 0) * size, (blocks - first) * size))
            else:
                windows.append((0, size if last > blocks else 0))
        var sums = List[Tensor[F32]]()
        var parts = List[Tensor[F32]]()
        for level in self._waiting():
            for tensor in range(NUM_TENSORS):
                var begin, end = windows[tensor]
                if end > begin:
                    sums.append(grads[tensor].slice(begin, end - begin))
                    parts.append(self._sums[level][tensor].slice(begin, end - begin))
        return Stage(last, sums^, parts^, shares_within(grads.tensors(), windows, self.ranks.size))

    def give_up(mut self) raises:
        """After a mistake between `begin_to_reduce` and `reduce`.

        Raises:
            That there is no going on, if there are other ranks.
        """
        self.ranks.give_up()
        self._courier.join(self.ranks)

    def reduce(mut self, grads: ParameterTensors[F32]) raises:
        """Waits until the gradients of all ranks are added up: each rank's share of them, or if it keeps all of the
        state, all.

        Raises:
            If MPI fails.
        """
        self._courier.join(self.ranks)
        if self.ranks.size > 1 and not self.shards_state:
            self._exchange.spread(self.ranks, shares(grads.tensors(), self.ranks.size))

    def blocks(self, params: ParameterTensors[F32]) -> List[Tuple[Int, Int]]:
        """Returns which of the blocks that norms are summed over this rank updates, as ranges [first, last)."""
        var all = num_blocks(params.tensors())
        return stripes(all, self.ranks.size, self.ranks.rank) if self.shards_state else stripes(all, 1, 0)

    def spread_sums(mut self, block_sums: Tensor[F32]) raises:
        """Completes the sums of squares of the blocks by those of the other ranks.

        Raises:
            If MPI fails.
        """
        if not self.shards_state:
            return
        var chunks = Chunks()
        for rank in range(self.ranks.size):
            var own = List[Tensor[F32]]()
            for first, last in stripes(block_sums.size, self.ranks.size, rank):
                own.append(block_sums.slice(first, last - first))
            chunks.append(own^)
        self._exchange.spread(self.ranks, chunks)

    def spread_parameters(mut self, params: ParameterTensors[F32]) raises:
        """Completes the parameters by what the other ranks have updated.

        Raises:
            If MPI fails.
        """
        if self.shards_state:
            self._exchange.spread(self.ranks, shares(params.tensors(), self.ranks.size))

    # ----- checkpoints

    def collect(mut self, slots: List[List[Tensor[F32]]]) raises:
        """Gives rank 0 the whole state of the optimizer, slot after slot.

        Raises:
            If MPI fails.
        """
        if self.shards_state:
            for ref tensors in slots:
                gather(self.ranks, shares(tensors, self.ranks.size))

    def deal(mut self, slots: List[List[Tensor[F32]]]) raises:
        """Gives each rank its share of the state that rank 0 has, or all of it.

        Raises:
            If MPI fails.
        """
        for ref tensors in slots:
            if self.shards_state:
                scatter(self.ranks, shares(tensors, self.ranks.size))
            else:
                self.hand_out(tensors)

    def hand_out(mut self, tensors: List[Tensor[F32]]) raises:
        """Gives each rank what rank 0 has.

        Raises:
            If MPI fails.
        """
        if self.ranks.size == 1:
            return
        for tensor in tensors:
            for at in range(0, tensor.size, CHUNK):
                self.ranks.hand_out(tensor.slice(at, min(CHUNK, tensor.size - at)))

    def release_others(self, slots: List[List[Tensor[F32]]]):
        """Returns the memory for the state that is other ranks' business."""
        if not self.shards_state:
            return
        for ref tensors in slots:
            for rank, ref chunks in enumerate(shares(tensors, self.ranks.size)):
                if rank != self.ranks.rank:
                    for chunk in chunks:
                        chunk.release()


def check_replicas(count: Int, ranks: Int) raises:
    """Raises if so many ranks cannot share out so many replicas and add them up in the order of one process."""
    var here = count // ranks
    if count < 1 or count % ranks != 0 or (ranks > 1 and here & (here - 1) != 0):
        raise Error(
            t"replicas: {count} on {ranks} ranks: expected as many for each rank, and of those 1, 2, 4, 8 ..; use"
            t" another number of ranks (mpiexec -n), or --replicas {ranks} in a new run"
        )


def _copy(to: Tensor[F32], source: Tensor[F32]):
    to.span().copy_from(source.span())

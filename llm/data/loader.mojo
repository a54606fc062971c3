"""Batches from token shards, of which one is open at a time."""

from llm.base.file_identity import FileIdentity
from llm.base.files import glob_files
from llm.base.memory import Tensor
from llm.base.random import Mt19937, draw_at, identity_permutation, scramble
from llm.data.token_shard import TokenShard
from llm.formats.training_state import IN_ORDER, RANDOM_WINDOWS, SHUFFLED, DataPosition

comptime I32 = DType.int32
comptime SHUFFLE_SEED = 42
"""Seed of the order that llm.c reads training data in; each further process adds its rank."""


struct DataLoader(Movable):
    """Serves batches of B sequences of T tokens in one of three orders, epoch after epoch.

    A sample is a run of B*T + 1 tokens of one shard; the next one starts B*T tokens later. `SHUFFLED`, each epoch puts
    the shards in a new order, and each shard its samples; `IN_ORDER` both come as they are. What is left at a shard's
    end is skipped. With several processes each takes its own B*T of every num_processes*B*T tokens.

    `RANDOM_WINDOWS` draws each sequence by itself, from anywhere in the data, with replacement. The sequences of a
    batch then have nothing in common, where those of a sample are one passage: on small data that learns better.
    """

    var B: Int
    var T: Int
    var num_tokens: Int
    """Tokens in all shards."""
    var num_batches: Int
    """Batches in one epoch."""
    var current_shard: Int
    """Place, in this epoch's order, of the shard that the next batch comes from (or of the one just used up)."""
    var current_sample: Int
    """Place, in the shard's order, of the sample that the next batch is; of random windows, the batches so far."""
    var epoch: Int
    """Epochs begun before this one; of random windows, how often as many tokens as there are have been drawn."""
    var has_failed: Bool
    """Data could not be read, or was wrong."""
    var _paths: List[String]
    var _identities: List[FileIdentity]
    """Of the shards, as they were when they were checked."""
    var _vocab_size: Int
    var _rank: Int
    var _num_processes: Int
    var _order: Int
    var _key: UInt64
    var _rng: Mt19937
    var _shard_order: List[Int]
    var _sample_order: List[Int]
    var _shard: TokenShard
    var _opened: Int
    """Which of the paths the open shard has."""
    var _windows: List[Int]
    """Of random windows: how many begin in the shards up to and including each."""
    # The place that `rewind` goes back to.
    var _marked_shard: Int
    var _marked_sample: Int
    var _marked_epoch: Int
    var _marked_position: Optional[DataPosition]
    """If the orders have changed since."""

    def __init__(
        out self,
        pattern: String,
        B: Int,
        T: Int,
        *,
        vocab_size: Int,
        order: Int = IN_ORDER,
        seed: Int = SHUFFLE_SEED,
        rank: Int = 0,
        num_processes: Int = 1,
    ) raises:
        """Checks every shard that matches the pattern and starts the first epoch. The seed is that of random windows.

        Raises:
            If there is none, one is damaged, or one is too short for a single batch.
        """
        self._paths = glob_files(pattern)
        if len(self._paths) == 0:
            raise Error(
                t"data: no file matches {pattern}; check the name, or make token shards with `python -m llm_mojo"
                t" prepare`"
            )
        self.B = B
        self.T = T
        self._vocab_size = vocab_size
        self._rank = rank
        self._num_processes = num_processes
        self.num_tokens = 0
        self.num_batches = 0
        self.has_failed = False
        self._identities = List[FileIdentity](capacity=len(self._paths))
        self._windows = List[Int]()
        var windows = 0
        var needed = num_processes * B * T + 1
        for path in self._paths:
            var shard = TokenShard(path)
            if shard.num_tokens < needed:
                raise Error(
                    t"data: {path}: expected at least {needed} tokens for one batch of B={B}, T={T}, found"
                    t" {shard.num_tokens}; use a smaller --batch-size or --seq-len, or more text"
                )
            self.num_tokens += shard.num_tokens
            self.num_batches += _num_samples(shard, B * T * num_processes)
            windows += shard.num_tokens - T
            self._windows.append(windows)
            self._identities.append(shard.identity.copy())
        self._order = order
        self._key = scramble(UInt64(seed))
        self._rng = Mt19937(SHUFFLE_SEED + rank)
        self._shard_order = identity_permutation(len(self._paths))
        self._sample_order = List[Int]()
        self._shard = TokenShard(self._paths[0], self._identities[0].copy())
        self._opened = 0
        self.current_shard = 0
        self.current_sample = 0
        self.epoch = 0
        self._marked_shard = 0
        self._marked_sample = 0
        self._marked_epoch = 0
        self._marked_position = None
        self._start_epoch()

    @no_inline
    def __deinit__(deinit self):
        """Frees what it owns. Not inlined, because every call that may raise is followed by a copy."""
        pass

    def reset(mut self) raises:
        """Starts over: with the first batch, but shuffled in the next order that the generator gives.

        Raises:
            If a shard has changed since it was checked.
        """
        self._keep_mark()
        self.epoch = 0
        try:
            self._start_epoch()
        except error:
            self.has_failed = True
            raise error^

    def position(self) -> DataPosition:
        """Tells where the next batch comes from."""
        var position = DataPosition(order=self._order, shard=self.current_shard, sample=self.current_sample)
        position.epoch = self.epoch
        if self._order == SHUFFLED:
            position.shard_order = self._shard_order.copy()
            position.sample_order = self._sample_order.copy()
        position.rng = self._rng.copy()
        return position^

    def resume(mut self, position: DataPosition) raises:
        """Goes on from a position.

        Raises:
            If the position is not one of this data with this batch size, or a shard has changed since it was checked.
        """
        if position.order != self._order:
            raise Error(
                t"the order of the data was saved with --shuffle {position.order}, this run has --shuffle"
                t" {self._order}; use the same"
            )
        if self._order == RANDOM_WINDOWS:
            self.current_sample = position.sample
            self.epoch = position.epoch
            return
        var shuffled = self._order == SHUFFLED
        if position.shard < 0 or position.shard >= len(self._paths):
            raise _other_data("shards", len(self._paths), "the number of the current one is", position.shard)
        if shuffled and not _is_permutation(position.shard_order, len(self._paths)):
            raise _other_data("shards", len(self._paths), "the order has", len(position.shard_order))
        self._open(position.shard_order[position.shard] if shuffled else position.shard)
        var samples = _num_samples(self._shard, self._stride())
        if position.sample < 0 or position.sample > samples:
            raise _other_data("samples in the current shard", samples, "the number of the next one is", position.sample)
        if shuffled and not _is_permutation(position.sample_order, samples):
            raise _other_data("samples in the current shard", samples, "the order has", len(position.sample_order))
        self.current_shard = position.shard
        self.current_sample = position.sample
        self.epoch = position.epoch
        if shuffled:
            self._set_order(position)

    def batches_until(mut self, position: DataPosition) raises -> Int:
        """Counts the batches from the beginning, where this loader has to be, to a position that it once had; it is left
        on the way there.

        Raises:
            If a shard has changed since it was checked.
        """
        if self._order == RANDOM_WINDOWS:
            return position.sample
        var batches = position.sample
        while self.epoch < position.epoch or (self.epoch == position.epoch and self.current_shard < position.shard):
            batches += _num_samples(self._shard, self._stride())
            self._advance()
        return batches

    def catch_up(mut self, batches: Int) raises:
        """Goes past so many batches from the beginning, where this loader has to be; its orders are drawn on the way.

        Raises:
            If a shard has changed since it was checked.
        """
        self.current_sample = batches
        if self._order == RANDOM_WINDOWS:
            return
        while self.current_sample > _num_samples(self._shard, self._stride()):
            var rest = self.current_sample - _num_samples(self._shard, self._stride())
            self._advance()
            self.current_sample = rest

    def mark(mut self):
        """Notes the place of the next batch, which `rewind` goes back to."""
        self._marked_shard = self.current_shard
        self._marked_sample = self.current_sample
        self._marked_epoch = self.epoch
        self._marked_position = None

    def rewind(mut self):
        """Goes back to the place that was marked, whatever has failed since."""
        self.current_shard = self._marked_shard
        self.current_sample = self._marked_sample
        self.epoch = self._marked_epoch
        if self._marked_position and self._order == SHUFFLED:
            var position = self._marked_position.take()
            self._set_order(position)
        self._marked_position = None

    def next_batch(mut self, inputs: Tensor[I32], targets: Tensor[I32]) raises:
        """Fills inputs (B,T) and targets (B,T), the tokens that follow each of the inputs.

        Raises:
            If a token is not in the vocabulary, or a shard has changed since it was checked.
        """
        try:
            self._fill(inputs, targets)
        except error:
            self.has_failed = True
            raise error^
        self.current_sample += 1

    def _fill(mut self, inputs: Tensor[I32], targets: Tensor[I32]) raises:
        if self._order == RANDOM_WINDOWS:
            self.epoch = self.current_sample // self.num_batches
            for b in range(self.B):
                var start = self._draw_window(b)
                var row = inputs.slice(b * self.T, self.T)
                self._shard.read_pairs(start, row, targets.slice(b * self.T, self.T), self._vocab_size)
        else:
            if self._opened != self._shard_order[self.current_shard]:
                self._open(self._shard_order[self.current_shard])
            if self.current_sample >= _num_samples(self._shard, self._stride()):
                self._advance()
            var sample = self.current_sample
            if self._order == SHUFFLED:
                sample = self._sample_order[sample]
            var start = sample * self._stride() + self._rank * self.B * self.T
            self._shard.read_pairs(start, inputs, targets, self._vocab_size)

    def _draw_window(mut self, b: Int) raises -> Int:
        """Opens the shard of this batch's sequence `b`, and returns where in it the sequence starts."""
        var place = (self.current_sample * self._num_processes + self._rank) * self.B + b
        var uniform = Float64(draw_at(self._key, UInt64(place)) >> 11) / Float64(1 << 53)
        var window = Int(uniform * Float64(self._windows[len(self._windows) - 1]))
        var shard = 0
        while window >= self._windows[shard]:
            shard += 1
        if shard != self._opened:
            self._open(shard)
        self.current_shard = shard
        return window - (self._windows[shard - 1] if shard > 0 else 0)

    def _stride(self) -> Int:
        return self.B * self.T * self._num_processes

    def _start_epoch(mut self) raises:
        if self._order == SHUFFLED:
            self._rng.permute(self._shard_order)
        self._open_shard(0)

    def _advance(mut self) raises:
        self._keep_mark()
        if self.current_shard + 1 < len(self._paths):
            self._open_shard(self.current_shard + 1)
        else:
            self.epoch += 1
            self._start_epoch()

    def _open_shard(mut self, place: Int) raises:
        self.current_shard = place
        self.current_sample = 0
        self._open(self._shard_order[place])
        if self._order == SHUFFLED:
            self._sample_order = identity_permutation(_num_samples(self._shard, self._stride()))
            self._rng.permute(self._sample_order)

    def _open(mut self, shard: Int) raises:
        self._shard = TokenShard(self._paths[shard], self._identities[shard].copy())
        self._opened = shard

    def _keep_mark(mut self):
        """Keeps the orders as they were at the mark, before they change."""
        if not self._marked_position:
            var position = self.position()
            position.shard = self._marked_shard
            position.sample = self._marked_sample
            self._marked_position = position^

    def _set_order(mut self, position: DataPosition):
        self._shard_order = position.shard_order.copy()
        self._sample_order = position.sample_order.copy()
        self._rng = position.rng.copy()


def _num_samples(shard: TokenShard, stride: Int) -> Int:
    """Counts the samples of a shard; each needs one token beyond its stride."""
    return (shard.num_tokens - 1) // stride


def _is_permutation(order: List[Int], count: Int) -> Bool:
    if len(order) != count:
        return False
    var seen = List[Bool](length=count, fill=False)
    for i in order:
        if i < 0 or i >= count or seen[i]:
            return False
        seen[i] = True
    return True


def _other_data(what: String, found: Int, problem: String, saved: Int) -> Error:
    return Error(
        t"the data has {found} {what}, but {problem} {saved}; resume with the training data, --batch-size and --seq-len"
        t" that the state was saved with"
    )

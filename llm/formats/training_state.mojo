"""Training state in llm.c's format: the optimizer's state (AdamW's m and v) and the place in the data, beside a model."""

from std.sys import size_of

from llm.base.files import InputFile
from llm.base.memory import Tensor
from llm.base.random import Mt19937
from llm.base.written_files import AtomicFile
from llm.formats.header import HEADER_BYTES, STATE_MAGIC, Header, read_header

comptime F32 = DType.float32
comptime I32 = DType.int32
comptime U32 = DType.uint32
comptime U64 = DType.uint64
comptime STATE_VERSION = 1

# The orders that data comes in: as it lies there, llm.c's (samples shuffled in shuffled shards), nanoGPT's.
comptime IN_ORDER = 0
comptime SHUFFLED = 1
comptime RANDOM_WINDOWS = 2

# Fields of the header.
comptime _PROCESSES = 2
comptime _RANK = 3
comptime _MASTER_WEIGHTS = 4
comptime _SHUFFLED = 5
comptime _STRIPE = 8
"""How the state of several processes is parted; llm.c, which parts it in a way of its own, has 0 here."""
comptime _STEP = 10
comptime _RNG = 20
comptime _RNG_LAST_UPDATE = 22
comptime _SHARD = 30
comptime _SAMPLE = 32

comptime _ROUNDING_SEED = UInt64(13371337)
"""llm.c's generator for stochastic rounding to bfloat16, which training in float32 never draws from."""
comptime _MAX_SHARDS = 1 << 24
comptime _MAX_PARTS = 100_000
comptime STRIPE = 16
"""Blocks that norms are summed over, which the parts have in turn."""


struct DataPosition(Movable):
    """Where a loader is in its data, and in which order the rest comes: all that a resumed run needs."""

    var shard: Int
    """Place of the current shard in this epoch's order."""
    var sample: Int
    """Place of the next sample in the shard's order; of random windows, the number of batches so far."""
    var order: Int
    var epoch: Int
    """Epochs begun before this one; llm.c's format does not hold it: 0 as it is read."""
    var shard_order: List[Int]
    """Empty if not shuffled, as are the samples."""
    var sample_order: List[Int]
    var rng: Mt19937

    def __init__(out self, *, order: Int = IN_ORDER, shard: Int = 0, sample: Int = 0):
        """A place in an order that nothing has shuffled yet."""
        self.shard = shard
        self.sample = sample
        self.order = order
        self.epoch = 0
        self.shard_order = List[Int]()
        self.sample_order = List[Int]()
        self.rng = Mt19937(0)


def state_file(
    path: String,
    step: Int,
    states: List[Tensor[F32]],
    params: List[Tensor[F32]],
    position: DataPosition,
    *,
    rank: Int = 0,
    parts: Int = 1,
) raises -> AtomicFile:
    """Writes a state, or a rank's part of it, up to the last byte; it appears under its name when the caller commits the
    file.

    `states` are the tensors that the optimizer keeps, slot after slot, or pieces of them; `params` are the parameters in
    float32 of a model whose own file is bfloat16, and otherwise none.

    Raises:
        If the file cannot be written.
    """
    var header = Header(STATE_MAGIC, STATE_VERSION)
    header[_PROCESSES] = parts
    header[_RANK] = rank
    header[_STRIPE] = STRIPE if parts > 1 else 0
    header[_MASTER_WEIGHTS] = Int(len(params) > 0)
    header[_SHUFFLED] = Int(position.order == SHUFFLED)
    header[_STEP] = step
    header.set64(_RNG, _ROUNDING_SEED)
    header.set64(_RNG_LAST_UPDATE, _ROUNDING_SEED)
    header.set64(_SHARD, UInt64(position.shard))
    header.set64(_SAMPLE, UInt64(position.sample))
    var file = AtomicFile("save", path)
    header.write(file)
    _write_tensors(file, states)
    _write_tensors(file, params)
    if position.order == SHUFFLED:
        _write_order(file, position.shard_order)
        _write_order(file, position.sample_order)
        _write_rng(file, position.rng)
    file.flush()
    return file^


def count_parts(path: String) raises -> Int:
    """Returns in how many files the state is of which this is the first.

    Raises:
        If there is no state under this name, or it is parted in another way than ours.
    """
    var file = InputFile("resume", path)
    var header = read_header(file, STATE_MAGIC, [STATE_VERSION])
    var parts = header[_PROCESSES]
    if parts < 1 or parts > _MAX_PARTS or (parts > 1 and header[_STRIPE] != STRIPE):
        raise file.error(
            String(
                t"expected the state of a run of ours, found one of {parts} processes of llm.c; resume it where it was"
                t" made, or start from its model with --init"
            )
        )
    return parts


def read_state(
    path: String,
    step: Int,
    states: List[Tensor[F32]],
    params: List[Tensor[F32]],
    mut position: DataPosition,
    *,
    rank: Int = 0,
    parts: Int = 1,
) raises:
    """Sets the position and fills the optimizer's tensors, and the parameters if the state has them beside a bfloat16 model.

    Raises:
        If there is no good state under this name, or it belongs to another model, step or rank.
    """
    var file = InputFile("resume", path)
    var header = read_header(file, STATE_MAGIC, [STATE_VERSION])
    if header[_PROCESSES] != parts or header[_RANK] != rank:
        raise file.error(
            String(
                t"expected part {rank} of the {parts} parts of a state, found part {header[_RANK]} of"
                t" {header[_PROCESSES]}; restore the file of the same checkpoint"
            )
        )
    if header[_STEP] != step:
        raise file.error(
            String(t"expected the state after {step} steps, found {header[_STEP]} steps in the header; check the file")
        )
    _check_flag(file, header, _MASTER_WEIGHTS)
    _check_flag(file, header, _SHUFFLED)
    var has_params = header[_MASTER_WEIGHTS] == 1
    var scalars = _count(states) + (_count(params) if has_params else 0)
    var tail = HEADER_BYTES + scalars * size_of[Float32]()
    # The length is checked before anything is changed.
    position = _read_position(file, header, tail)
    var offset = HEADER_BYTES
    _read_tensors(file, offset, states)
    if has_params:
        _read_tensors(file, offset, params)


def _read_position(file: InputFile, header: Header, tail: Int) raises -> DataPosition:
    var position = DataPosition(
        shard=_place(file, header, _SHARD),
        sample=_place(file, header, _SAMPLE),
        order=SHUFFLED if header[_SHUFFLED] == 1 else IN_ORDER,
    )
    if position.order == IN_ORDER:
        file.expect_size(tail, "the moments of this model after the header")
        return position^
    var offset = tail
    position.shard_order = _read_order(file, offset, "shards", _MAX_SHARDS)
    position.sample_order = _read_order(file, offset, "samples", Int(Int32.MAX))
    file.expect_size(offset + _RNG_BYTES, "the moments of this model, the order of its data and a random generator")
    position.rng = _read_rng(file, offset)
    return position^


def _check_flag(file: InputFile, header: Header, field: Int) raises:
    if header[field] != 0 and header[field] != 1:
        raise file.error(
            String(t"expected 0 or 1 in field {field} of the header, found {header[field]}; the file is damaged")
        )


def _place(file: InputFile, header: Header, field: Int) raises -> Int:
    var value = header.get64(field)
    if value > UInt64(Int32.MAX):
        raise file.error(String(t"expected a place in the data in the header, found {value}; the file is damaged"))
    return Int(value)


def _count(tensors: List[Tensor[F32]]) -> Int:
    var scalars = 0
    for tensor in tensors:
        scalars += tensor.size
    return scalars


def _write_tensors(mut file: AtomicFile, tensors: List[Tensor[F32]]) raises:
    for tensor in tensors:
        file.write(tensor)


def _read_tensors(file: InputFile, mut offset: Int, tensors: List[Tensor[F32]]) raises:
    for tensor in tensors:
        file.read(offset, tensor)
        offset += tensor.size * size_of[Float32]()


# ----- the order of the data: a 64-bit count, then int32


def _write_order(mut file: AtomicFile, order: List[Int]) raises:
    var count = List[UInt64](length=1, fill=UInt64(len(order)))
    var items = List[Int32](capacity=len(order))
    for i in order:
        items.append(Int32(i))
    file.write(Tensor(viewing=Span(count)))
    file.write(Tensor(viewing=Span(items)))
    _ = count^
    _ = items^


def _read_order(file: InputFile, mut offset: Int, what: String, limit: Int) raises -> List[Int]:
    var count = List[UInt64](length=1, fill=0)
    file.read(offset, Tensor(viewing=Span(count)))
    offset += size_of[UInt64]()
    # Checked before the memory is claimed: the file must be long enough to hold them.
    if count[0] > UInt64(limit) or Int(count[0]) * size_of[Int32]() > file.size - offset:
        raise file.error(
            String(
                t"expected the order of the {what} in the {file.size - offset} bytes that are left, found {count[0]}"
                t" {what}; the file is damaged or belongs to a model of another size"
            )
        )
    var items = List[Int32](length=Int(count[0]), fill=0)
    file.read(offset, Tensor(viewing=Span(items)))
    offset += len(items) * size_of[Int32]()
    var order = List[Int](capacity=len(items))
    for item in items:
        order.append(Int(item))
    return order^


# ----- llm.c's mt19937_state: seed, draws left + 1, next word, 624 words, two constants

comptime _WORDS = 624
comptime _RNG_BYTES = 8 + 4 + 4 + 4 * _WORDS + 8
comptime _LEFT = 2
comptime _NEXT = 3
comptime _FIRST_WORD = 4
comptime _MATRIX_A = UInt32(0x9908B0DF)


def _write_rng(mut file: AtomicFile, rng: Mt19937) raises:
    var words = List[UInt32](length=_RNG_BYTES // 4, fill=0)
    words[_LEFT] = UInt32(_WORDS + 1 - rng.next)
    words[_NEXT] = UInt32(rng.next)
    for i in range(_WORDS):
        words[_FIRST_WORD + i] = rng.state[i]
    words[_FIRST_WORD + _WORDS + 1] = _MATRIX_A
    file.write(Tensor(viewing=Span(words)))
    _ = words^


def _read_rng(file: InputFile, offset: Int) raises -> Mt19937:
    var words = List[UInt32](length=_RNG_BYTES // 4, fill=0)
    file.read(offset, Tensor(viewing=Span(words)))
    var rng = Mt19937(0)
    var left = Int(words[_LEFT].cast[I32]())
    # As it is seeded, llm.c's generator has left 1 and next 0: all words used, as with next 624.
    rng.next = _WORDS if left <= 1 else Int(words[_NEXT])
    var good = left >= 0 and left <= _WORDS and rng.next <= _WORDS and (left <= 1 or left + rng.next == _WORDS + 1)
    if not good or words[_FIRST_WORD + _WORDS + 1] != _MATRIX_A:
        raise file.error(
            String(t"expected llm.c's random generator at byte {offset}, found something else; the file is damaged")
        )
    for i in range(_WORDS):
        rng.state[i] = words[_FIRST_WORD + i]
    return rng^

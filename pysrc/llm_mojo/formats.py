"""Reads and writes the files shared with the Mojo programs and llm.c. The only Python file that knows magic numbers.

All values are little-endian. A file starts with a header of 256 int32 (1024 bytes), unused fields zero. Readers check the
magic number, the version and the sizes against the length of the file, and raise FormatError. Writers are atomic: they
write beside the file under a temporary name, flush it to the disk and rename, so a file is either whole or not there.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from llm_mojo import Error
from llm_mojo.files import AnyPath, atomic_file

HEADER_INTS = 256
HEADER_BYTES = HEADER_INTS * 4
INT32_MAX = 2**31 - 1

CHECKPOINT_MAGIC = 20240326
DEBUG_STATE_MAGIC = 20240327
TOKENIZER_MAGIC = 20240328
TOKENS_MAGIC = 20240520
TOKENS_UINT32_MAGIC = 20240801
CHOICES_MAGIC = 20240522
STATE_MAGIC = 20240527

CHECKPOINT_VERSIONS = {3: "float32", 5: "bfloat16"}
DEBUG_STATE_VERSIONS = {2: None}
TOKENIZER_VERSIONS = {2: None}
TOKENS_VERSIONS = {1: "<u2"}
TOKENS_UINT32_VERSIONS = {7: "<u4"}
CHOICES_VERSIONS = {1: None}
STATE_VERSIONS = {1: None}
NPY_MAGIC = b"\x93NUMPY"

KINDS = {
    CHECKPOINT_MAGIC: "a model checkpoint",
    DEBUG_STATE_MAGIC: "a debug state",
    TOKENIZER_MAGIC: "a tokenizer file",
    TOKENS_MAGIC: "a token shard (uint16)",
    TOKENS_UINT32_MAGIC: "a token shard (uint32)",
    CHOICES_MAGIC: "a multiple-choice evaluation",
    STATE_MAGIC: "a training state",
}

CHECKPOINT_BYTES = {"float32": 4, "bfloat16": 2}
BLOCK_VALUES = 1 << 22


class FormatError(Error):
    """A file is missing, damaged, of another kind, or cannot hold what it is asked to hold."""


# ---------------------------------------------------------------------------------------------------------------------
# model sizes and the one list of tensors


def pad_vocab(vocab_size: int) -> int:
    """The vocabulary padded up to a multiple of 128, as llm.c stores it."""
    return -(-vocab_size // 128) * 128


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of a GPT-2. `padded_vocab_size` (Vp) is pad_vocab(vocab_size) unless given."""

    max_seq_len: int
    vocab_size: int
    num_layers: int
    num_heads: int
    channels: int
    padded_vocab_size: int = None  # type: ignore[assignment]  # replaced when it is made

    def __post_init__(self):
        if self.padded_vocab_size is None:
            object.__setattr__(self, "padded_vocab_size", pad_vocab(self.vocab_size))


TENSORS = (
    ("wte", lambda V, T, L, C: (V, C)),
    ("wpe", lambda V, T, L, C: (T, C)),
    ("ln1w", lambda V, T, L, C: (L, C)),
    ("ln1b", lambda V, T, L, C: (L, C)),
    ("qkvw", lambda V, T, L, C: (L, 3 * C, C)),
    ("qkvb", lambda V, T, L, C: (L, 3 * C)),
    ("attprojw", lambda V, T, L, C: (L, C, C)),
    ("attprojb", lambda V, T, L, C: (L, C)),
    ("ln2w", lambda V, T, L, C: (L, C)),
    ("ln2b", lambda V, T, L, C: (L, C)),
    ("fcw", lambda V, T, L, C: (L, 4 * C, C)),
    ("fcb", lambda V, T, L, C: (L, 4 * C)),
    ("fcprojw", lambda V, T, L, C: (L, C, 4 * C)),
    ("fcprojb", lambda V, T, L, C: (L, C)),
    ("lnfw", lambda V, T, L, C: (C,)),
    ("lnfb", lambda V, T, L, C: (C,)),
)


def parameter_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The 16 tensors of a model in file order: name -> shape. Linear weights are (L, out, in); wte has Vp rows."""
    sizes = config.padded_vocab_size, config.max_seq_len, config.num_layers, config.channels
    return {name: shape(*sizes) for name, shape in TENSORS}


def num_parameters(config: ModelConfig) -> int:
    """How many values the 16 tensors hold, the padding rows of wte included."""
    return sum(_count(shape) for shape in parameter_shapes(config).values())


def _count(shape):
    count = 1
    for size in shape:
        count *= int(size)
    return count


# ---------------------------------------------------------------------------------------------------------------------
# bfloat16, which numpy does not have: kept as uint16 bit patterns, the upper half of a float32


def float32_to_bfloat16(values: ArrayLike) -> np.ndarray:
    """float32 -> uint16 bit patterns, rounded to nearest even. NaN stays NaN."""
    values = np.ascontiguousarray(values, dtype="<f4")
    bits = values.view("<u4")
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16
    return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype("<u2")


def bfloat16_to_float32(bits: ArrayLike) -> np.ndarray:
    """uint16 bit patterns -> float32, exactly."""
    return (np.asarray(bits).astype("<u4") << 16).view("<f4")


# ---------------------------------------------------------------------------------------------------------------------
# headers


def _pack_header(fields):
    """fields: index -> value. Returns the 1024 bytes."""
    header = np.zeros(HEADER_INTS, dtype="<i4")
    for index, value in fields.items():
        header[index] = value
    return header.tobytes()


def _open(who, path):
    try:
        return open(path, "rb")
    except OSError as error:
        raise FormatError(f"{who}: cannot open {path}: {error.strerror}; check the path or make the file") from None


def _read_header(who, path, file, kinds):
    """Returns (header, what kinds says about this magic and version). kinds: magic -> {version: anything}."""
    raw = file.read(HEADER_BYTES)
    wanted = " or ".join(KINDS[magic] for magic in kinds)
    if len(raw) < HEADER_BYTES:
        raise FormatError(
            f"{who}: {path}: expected {wanted} with a header of {HEADER_BYTES} bytes, found {len(raw)} bytes;"
            " the file is cut off or not of this kind: make it again"
        )
    header = np.frombuffer(raw, dtype="<i4")
    magic, version = int(header[0]), int(header[1])
    if magic not in kinds:
        found = f"{KINDS[magic]} ({magic})" if magic in KINDS else f"unknown magic number {magic}"
        wanted = " or ".join(f"{KINDS[magic]} ({magic})" for magic in kinds)
        raise FormatError(f"{who}: {path}: expected {wanted}, found {found}; give the right file")
    if version not in kinds[magic]:
        versions = " or ".join(str(known) for known in kinds[magic])
        raise FormatError(
            f"{who}: {path}: expected version {versions} of {KINDS[magic]}, found version {version};"
            " make the file again with this version of the tools"
        )
    return header, kinds[magic][version]


def _check_size(who, path, expected, because):
    found = os.path.getsize(path)
    if found != expected:
        raise FormatError(
            f"{who}: {path}: expected {expected:,} bytes ({because}), found {found:,} bytes;"
            f" the file is {'cut off' if found < expected else 'too long'}: make it or download it again"
        )


def _map(path, dtype, offset, shape):
    """A read-only memory map; numpy cannot map nothing, so an empty one is an ordinary array."""
    if _count(shape) == 0:
        return np.zeros(shape, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=tuple(shape))


def _check_shape(who, name, array, shape):
    if tuple(array.shape) != tuple(shape):
        raise FormatError(
            f"{who}: expected {name} of shape {tuple(shape)}, got {tuple(array.shape)}; check the configuration"
        )


# ---------------------------------------------------------------------------------------------------------------------
# model checkpoint


def write_checkpoint(
    path: AnyPath, config: ModelConfig, tensors: Mapping[str, np.ndarray], dtype: str = "float32"
) -> None:
    """Writes a model. `tensors`: name -> array of the shape that parameter_shapes gives; dtype "float32" or "bfloat16"."""
    for name, shape in parameter_shapes(config).items():
        if name not in tensors:
            raise FormatError(
                f"write_checkpoint: {path}: expected tensors {', '.join(parameter_shapes(config))}; {name} is missing"
            )
        _check_shape("write_checkpoint", name, tensors[name], shape)
    write_checkpoint_blocks(path, config, lambda name: [tensors[name]], dtype)


def write_checkpoint_blocks(
    path: AnyPath,
    config: ModelConfig,
    blocks: Callable[[str], Iterable[np.ndarray]],
    dtype: str = "float32",
    replace: bool = True,
) -> None:
    """Writes a model without holding it. `blocks(name)`: arrays which, one after the other, make up that tensor.

    Without `replace` a file that is there stays; it is an error if it is not the same.
    """
    _check_config("write_checkpoint", path, config)
    versions = {name: version for version, name in CHECKPOINT_VERSIONS.items()}
    if dtype not in versions:
        raise FormatError(f"write_checkpoint: expected dtype {' or '.join(versions)}, got {dtype}")
    sizes = (
        config.max_seq_len,
        config.vocab_size,
        config.num_layers,
        config.num_heads,
        config.channels,
        config.padded_vocab_size,
    )
    fields = dict(enumerate((CHECKPOINT_MAGIC, versions[dtype], *sizes)))
    with atomic_file(path, replace) as file:
        file.write(_pack_header(fields))
        for name, shape in parameter_shapes(config).items():
            written = 0
            for block in blocks(name):
                for rows in _rows(block):
                    file.write(_pack_values(rows, dtype).data)
                written += block.size
            if written != _count(shape):
                raise FormatError(
                    f"write_checkpoint: {path}: expected {_count(shape):,} values in {name} {shape}, got {written:,}"
                )


def _pack_values(values, dtype):
    return float32_to_bfloat16(values) if dtype == "bfloat16" else np.ascontiguousarray(values, dtype="<f4")


def _rows(block):
    """Cuts an array along its first axis, so that converting it needs little memory."""
    step = max(1, BLOCK_VALUES * len(block) // max(1, block.size))
    for start in range(0, len(block), step):
        yield block[start : start + step]


def read_checkpoint(path: AnyPath) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """Returns (ModelConfig, name -> float32 array). fp32 tensors are read-only memory maps; bf16 are widened copies."""
    config, dtype, tensors = map_checkpoint(path)
    if dtype == "bfloat16":
        tensors = {name: bfloat16_to_float32(bits) for name, bits in tensors.items()}
    return config, tensors


def map_checkpoint(path: AnyPath) -> tuple[ModelConfig, str, dict[str, np.ndarray]]:
    """Returns (ModelConfig, "float32" or "bfloat16", name -> read-only memory map; bf16 as uint16 bit patterns)."""
    who = "read_checkpoint"
    with _open(who, path) as file:
        header, dtype = _read_header(who, path, file, {CHECKPOINT_MAGIC: CHECKPOINT_VERSIONS})
    config = ModelConfig(*(int(value) for value in header[2:8]))
    _check_config(who, path, config)
    item = CHECKPOINT_BYTES[dtype]
    because = f"{num_parameters(config):,} {dtype} parameters after the header"
    _check_size(who, path, HEADER_BYTES + num_parameters(config) * item, because)
    tensors, offset = {}, HEADER_BYTES
    for name, shape in parameter_shapes(config).items():
        tensors[name] = _map(path, "<u2" if dtype == "bfloat16" else "<f4", offset, shape)
        offset += _count(shape) * item
    return config, dtype, tensors


def _check_config(who, path, config):
    problems = [f"{field}={value}" for field, value in vars(config).items() if not 0 < value <= INT32_MAX]
    if not problems and config.channels % config.num_heads:
        problems.append(f"channels={config.channels} is not a multiple of num_heads={config.num_heads}")
    if not problems and config.padded_vocab_size < config.vocab_size:
        problems.append(f"padded_vocab_size={config.padded_vocab_size} is less than vocab_size={config.vocab_size}")
    if problems:
        raise FormatError(
            f"{who}: {path}: not the sizes of a GPT-2: {', '.join(problems)}; the file or the request is wrong"
        )


# ---------------------------------------------------------------------------------------------------------------------
# training state, which lies beside the model that it belongs to

MUON_TENSORS = ("qkvw", "attprojw", "fcw", "fcprojw")
STATE_RNG = np.dtype([("seed", "<u8"), ("left", "<i4"), ("next", "<u4"), ("words", "<u4", 624), ("matrix", "<u4", 2)])


@dataclass
class TrainingState:
    """Where a run is. `m`, `v` and `master` (or None) are flat float32 arrays, all 16 tensors one after the other.

    Muon has no `v` for the tensors of MUON_TENSORS.
    """

    step: int
    shard: int
    sample: int
    m: np.ndarray
    v: np.ndarray
    master: np.ndarray | None = None
    shard_order: np.ndarray | None = None  # None: the data is not shuffled
    sample_order: np.ndarray | None = None
    rng: np.ndarray | None = None  # one STATE_RNG
    processes: int = 1
    rank: int = 0


def write_state(path: AnyPath, state: TrainingState) -> None:
    """Writes a training state."""
    shuffled = state.shard_order is not None
    fields = {0: STATE_MAGIC, 1: min(STATE_VERSIONS), 2: state.processes, 3: state.rank, 10: state.step}
    fields |= {4: int(state.master is not None), 5: int(shuffled), 30: state.shard, 32: state.sample}
    with atomic_file(path) as file:
        file.write(_pack_header(fields))
        for values in (state.m, state.v, state.master):
            if values is not None:
                file.write(np.ascontiguousarray(values, dtype="<f4").data)
        if shuffled:
            for order in (state.shard_order, state.sample_order):
                assert order is not None  # there are both or none
                file.write(np.array([len(order)], dtype="<u8").tobytes())
                file.write(np.ascontiguousarray(order, dtype="<i4").tobytes())
            file.write(np.asarray(state.rng, dtype=STATE_RNG).tobytes())


def read_state(path: AnyPath, config: ModelConfig, optimizer: str = "adamw") -> TrainingState:
    """Reads the training state of a model of these sizes, of "adamw" or "muon"."""
    who = "read_state"
    shapes = parameter_shapes(config)
    count, left_out = num_parameters(config), MUON_TENSORS if optimizer == "muon" else ()
    count_v = count - sum(math.prod(shapes[name]) for name in left_out)
    with _open(who, path) as file:
        header, _ = _read_header(who, path, file, {STATE_MAGIC: STATE_VERSIONS})
        scalars = count + count_v + (count if header[4] else 0)
        _check_state_size(who, path, file, scalars, shuffled=bool(header[5]))
        m, v = (_read_array(who, path, file, "<f4", each) for each in (count, count_v))
        master = _read_array(who, path, file, "<f4", count) if header[4] else None
        state = TrainingState(int(header[10]), int(header[30]), int(header[32]), m, v, master)
        state.processes, state.rank = int(header[2]), int(header[3])
        if header[5]:
            for name in ("shard_order", "sample_order"):
                length = int(_read_array(who, path, file, "<u8", 1)[0])
                setattr(state, name, _read_array(who, path, file, "<i4", length))
            state.rng = _read_array(who, path, file, STATE_RNG, 1)[0]
    return state


def _check_state_size(who, path, file, scalars, shuffled):
    """Compares the sizes in a state with that of the file before anything is read."""
    size, left = HEADER_BYTES + 4 * scalars, os.path.getsize(path)
    for _ in range(2 if shuffled else 0):
        file.seek(size)
        length = int.from_bytes(file.read(8), "little")
        size += 8 + 4 * length
        if length > INT32_MAX or size > left:
            raise FormatError(
                f"{who}: {path}: expected an order of {length:,} at byte {size:,}, found a file of {left:,} bytes; the file"
                " is cut off or damaged"
            )
    _check_size(who, path, size + (STATE_RNG.itemsize if shuffled else 0), "what the header says")
    file.seek(HEADER_BYTES)


def _read_array(who, path, file, dtype, count):
    left = os.path.getsize(path) - file.tell()
    if count * np.dtype(dtype).itemsize > left:
        raise FormatError(
            f"{who}: {path}: expected {count:,} values, found {left:,} bytes; the file is cut off or damaged"
        )
    return np.frombuffer(file.read(count * np.dtype(dtype).itemsize), dtype=dtype)


# ---------------------------------------------------------------------------------------------------------------------
# debug state


class DebugState(NamedTuple):
    """One training step of the reference: x, y int32 (B,T); logits float32 (B,T,V); loss float; grads name -> float32."""

    x: np.ndarray
    y: np.ndarray
    logits: np.ndarray
    loss: float
    grads: dict[str, np.ndarray]


def write_debug_state(
    path: AnyPath,
    x: ArrayLike,
    y: ArrayLike,
    logits: np.ndarray,
    loss: float,
    grads: Mapping[str, np.ndarray],
    config: ModelConfig,
) -> None:
    """Writes one step. x, y int (B,T); logits (B,T,V), not padded; loss a number; grads as parameter_shapes(config)."""
    who = "write_debug_state"
    x, y = np.asarray(x), np.asarray(y)
    B, T = x.shape
    _check_shape(who, "y", y, (B, T))
    _check_shape(who, "logits", logits, (B, T, config.vocab_size))
    for name, shape in parameter_shapes(config).items():
        _check_shape(who, f"gradient of {name}", grads[name], shape)
    with atomic_file(path) as file:
        file.write(_pack_header(dict(enumerate((DEBUG_STATE_MAGIC, min(DEBUG_STATE_VERSIONS), B, T)))))
        for tokens in (x, y):
            file.write(np.ascontiguousarray(tokens, dtype="<i4").data)
        for values in (logits, [float(loss)], *(grads[name] for name in parameter_shapes(config))):
            file.write(np.ascontiguousarray(values, dtype="<f4").data)


def read_debug_state(path: AnyPath, config: ModelConfig) -> DebugState:
    """Returns a DebugState of memory maps. The file holds no sizes but B and T: `config` must be its model's."""
    who = "read_debug_state"
    with _open(who, path) as file:
        header, _ = _read_header(who, path, file, {DEBUG_STATE_MAGIC: DEBUG_STATE_VERSIONS})
    B, T = int(header[2]), int(header[3])
    if B <= 0 or T <= 0:
        raise FormatError(f"{who}: {path}: expected B and T of at least 1, found B={B} T={T}; make the file again")
    shapes = {"x": (B, T), "y": (B, T), "logits": (B, T, config.vocab_size), "loss": (1,)}
    dtypes = {"x": "<i4", "y": "<i4"}
    shapes.update(parameter_shapes(config))
    total = 4 * sum(_count(shape) for shape in shapes.values())
    _check_size(who, path, HEADER_BYTES + total, f"B={B} T={T} and a model of {config}")
    arrays, offset = {}, HEADER_BYTES
    for name, shape in shapes.items():
        arrays[name] = _map(path, dtypes.get(name, "<f4"), offset, shape)
        offset += 4 * _count(shape)
    grads = {name: arrays[name] for name in parameter_shapes(config)}
    return DebugState(arrays["x"], arrays["y"], arrays["logits"], float(arrays["loss"][0]), grads)


# ---------------------------------------------------------------------------------------------------------------------
# token shards


def token_dtype(vocab_size: int) -> np.dtype:
    """The type of the ids in a shard: uint16, or uint32 (llm.c's Llama-3 variant) for more than 65,536 tokens."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def tokens_header(count: int, dtype: DTypeLike) -> bytes:
    """The 1024 bytes before the ids of a shard."""
    if count > INT32_MAX:
        raise FormatError(
            f"write_tokens: a shard holds at most {INT32_MAX:,} tokens, not {count:,}; use --shard-tokens"
        )
    kinds = {TOKENS_MAGIC: TOKENS_VERSIONS, TOKENS_UINT32_MAGIC: TOKENS_UINT32_VERSIONS}
    for magic, versions in kinds.items():
        for version, kind in versions.items():
            if kind == np.dtype(dtype):
                return _pack_header({0: magic, 1: version, 2: count})
    raise FormatError(f"write_tokens: expected ids of type uint16 or uint32, got {dtype}")


def write_tokens(path: AnyPath, tokens: ArrayLike, dtype: DTypeLike = "<u2") -> None:
    """Writes a token shard of uint16 or uint32 ids."""
    ids, largest = np.asarray(tokens), np.iinfo(dtype).max
    if ids.size and (ids.min() < 0 or ids.max() > largest):
        raise FormatError(f"write_tokens: {path}: expected ids from 0 to {largest}, got {ids.min()} to {ids.max()}")
    with atomic_file(path) as file:
        file.write(tokens_header(ids.size, dtype))
        file.write(np.ascontiguousarray(ids, dtype=dtype).data)


def read_tokens(path: AnyPath) -> np.ndarray:
    """Returns a memory map of the ids of a shard: llm.c's, build-nanogpt's (.npy), or nanoGPT's uint16 without a header."""
    who = "read_tokens"
    with _open(who, path) as file:
        start = file.read(8)
        if start[:6] == NPY_MAGIC:
            return _read_npy(who, path)
        if str(path).endswith(".bin") and int.from_bytes(start[:4], "little") not in KINDS:
            return _read_headerless(who, path)
        file.seek(0)
        kinds = {TOKENS_MAGIC: TOKENS_VERSIONS, TOKENS_UINT32_MAGIC: TOKENS_UINT32_VERSIONS}
        header, dtype = _read_header(who, path, file, kinds)
    count = int(header[2])
    if count < 0:
        raise FormatError(
            f"{who}: {path}: expected a number of tokens, found {count} in the header; make the file again"
        )
    _check_size(who, path, HEADER_BYTES + count * np.dtype(dtype).itemsize, f"{count:,} tokens after the header")
    return _map(path, dtype, HEADER_BYTES, (count,))


def _read_npy(who, path):
    try:
        tokens = np.load(path, mmap_mode="r")
    except Exception as error:  # of many kinds: the header is a text in Python's syntax
        raise FormatError(f"{who}: {path}: not a whole .npy file ({error}); make it again") from None
    if tokens.ndim != 1 or tokens.dtype not in (np.dtype("<u2"), np.dtype("<u4")):
        raise FormatError(
            f"{who}: {path}: expected one row of uint16 or uint32, found {tokens.dtype} of shape {tokens.shape}"
        )
    return tokens


def _read_headerless(who, path):
    size = os.path.getsize(path)
    if size == 0 or size % 2:
        raise FormatError(
            f"{who}: {path}: expected llm.c's header, or nanoGPT's uint16 ids without one, found {size:,} bytes;"
            " the file is cut off or of another kind: make it again"
        )
    return _map(path, "<u2", 0, (size // 2,))


# ---------------------------------------------------------------------------------------------------------------------
# multiple-choice evaluation: llm.c's HellaSwag file

CHOICES_START = 65535
NUM_ENDINGS = 4


class Choice(NamedTuple):
    """An example: the ids of the context, those of four endings, and which of the endings is right."""

    context: Sequence[int]
    endings: Sequence[Sequence[int]]
    label: int


def write_hellaswag(path: AnyPath, examples: Iterable[Choice]) -> int:
    """Writes examples (an iterable of Choice); the context and each ending have at least one token. Returns how many.

    A stream of uint16, for each example: 65535, its size in bytes, its index, the label, the number of endings, and
    then the context and each ending, their ids preceded by how many there are.
    """
    who = "write_hellaswag"
    count = longest = 0
    with atomic_file(path) as file:
        file.write(_pack_header({}))
        for example in examples:
            where = f"{who}: {path}: example {count}"
            if count > CHOICES_START:
                raise FormatError(f"{who}: {path}: expected at most {CHOICES_START + 1:,} examples, got more")
            if len(example.endings) != NUM_ENDINGS or not 0 <= example.label < NUM_ENDINGS:
                raise FormatError(
                    f"{where}: expected {NUM_ENDINGS} endings and a label below, got {len(example.endings)} endings and"
                    f" label {example.label}"
                )
            stream = [CHOICES_START, 0, count, example.label, NUM_ENDINGS]
            for ids in (example.context, *example.endings):
                if len(ids) == 0 or min(ids) < 0 or max(ids) >= CHOICES_START:
                    raise FormatError(
                        f"{where}: expected one or more ids from 0 to {CHOICES_START - 1} in the context and each"
                        f" ending, got {list(ids)}"
                    )
                stream += [len(ids), *ids]
            stream[1] = 2 * len(stream)
            if stream[1] > CHOICES_START:
                raise FormatError(f"{where}: expected at most {CHOICES_START:,} bytes, got {stream[1]:,}")
            file.write(np.array(stream, dtype="<u2").tobytes())
            count, longest = count + 1, max(longest, stream[1])
        file.seek(0)
        file.write(_pack_header({0: CHOICES_MAGIC, 1: min(CHOICES_VERSIONS), 2: count, 3: longest}))
    return count


def read_hellaswag(path: AnyPath) -> list[Choice]:
    """Returns the examples, a list of Choice."""
    who = "read_hellaswag"
    with _open(who, path) as file:
        header, _ = _read_header(who, path, file, {CHOICES_MAGIC: CHOICES_VERSIONS})
    stream = _map(path, "<u2", HEADER_BYTES, ((os.path.getsize(path) - HEADER_BYTES) // 2,))
    examples, position = [], 0
    for index in range(int(header[2])):
        start, size, number, label, endings = (stream[position : position + 5].tolist() + [-1] * 5)[:5]
        end = position + size // 2
        if (start, number, endings) != (CHOICES_START, index, NUM_ENDINGS) or end > len(stream) or label >= NUM_ENDINGS:
            raise FormatError(
                f"{who}: {path}: expected example {index} of {header[2]}, found something else; the file is damaged:"
                " make it again"
            )
        position += 5
        parts = []
        while position < end:
            count = int(stream[position])
            parts.append(stream[position + 1 : position + 1 + count].tolist())
            position += 1 + count
        if position != end or len(parts) != 1 + NUM_ENDINGS or not all(parts):
            raise FormatError(
                f"{who}: {path}: example {index}: its {size} bytes do not hold a context and {NUM_ENDINGS} endings; the"
                " file is damaged: make it again"
            )
        examples.append(Choice(parts[0], parts[1:], label))
    _check_size(who, path, HEADER_BYTES + 2 * position, f"{len(examples):,} examples after the header")
    return examples


# ---------------------------------------------------------------------------------------------------------------------
# tokenizer


LARGEST_VOCABULARY = 1 << 21  # tokens
LONGEST_TOKEN = 255  # bytes
ADDED_AT = 4  # in the header: how many ranges of added tokens there are, and then the first and last id of each
ADDED_RANGES = (HEADER_INTS - ADDED_AT - 1) // 2


def write_tokenizer(
    path: AnyPath, tokens: Sequence[bytes], eot: int | None, added: Iterable[int] = (), replace: bool = True
) -> None:
    """Writes the bytes of every token, in id order, and the end-of-text id (None is written as -1).

    `added`: the ids of tokens that no merge makes, and that a text has where it has all their bytes; end of text is not
    among them. They are said in fields of the header that llm.c leaves zero.
    """
    for id, token in enumerate(tokens):
        if not 1 <= len(token) <= LONGEST_TOKEN:
            raise FormatError(f"write_tokenizer: {path}: token {id} has {len(token)} bytes, the file can hold 1 to 255")
    if eot is not None and not 0 <= eot < len(tokens):
        raise FormatError(f"write_tokenizer: {path}: end of text is {eot}, but there are {len(tokens)} tokens")
    ranges: list[list[int]] = []
    for id in sorted(added):
        if ranges and ranges[-1][1] == id - 1:
            ranges[-1][1] = id
        else:
            ranges.append([id, id])
    if len(ranges) > ADDED_RANGES:
        raise FormatError(
            f"write_tokenizer: {path}: expected added tokens in at most {ADDED_RANGES} stretches, got {len(ranges)}"
        )
    with atomic_file(path, replace) as file:
        fields = [TOKENIZER_MAGIC, min(TOKENIZER_VERSIONS), len(tokens), -1 if eot is None else eot]
        fields += [len(ranges), *(id for ends in ranges for id in ends)]
        file.write(_pack_header(dict(enumerate(fields))))
        file.write(b"".join(bytes([len(token)]) + token for token in tokens))


def read_tokenizer(path: AnyPath) -> tuple[list[bytes], int | None]:
    """Returns (list of bytes, end-of-text id or None)."""
    who = "read_tokenizer"
    with _open(who, path) as file:
        header, count, eot = _read_tokenizer_header(who, path, file)
        raw = file.read(count * (1 + LONGEST_TOKEN) + 1)
    tokens, position = split_tokens(raw, count)
    if b"" in tokens:
        raise FormatError(f"{who}: {path}: token {tokens.index(b'')} is empty; the file is damaged: make it again")
    if len(tokens) < count or position != len(raw):
        raise FormatError(
            f"{who}: {path}: expected {count} tokens in {len(raw)} bytes, found {len(tokens)} tokens in {position} bytes;"
            " the file is damaged: make it again"
        )
    return tokens, None if eot == -1 else eot


def split_tokens(raw: bytes, count: int) -> tuple[list[bytes], int]:
    """The tokens behind the header of a tokenizer file, up to `count`, and how many bytes they take."""
    tokens: list[bytes] = []
    position = 0
    while len(tokens) < count and position < len(raw):
        length = raw[position]
        tokens.append(raw[position + 1 : position + 1 + length])
        position += 1 + length
    return tokens, position


def read_added_tokens(path: AnyPath) -> list[int]:
    """Returns the ids of the added tokens in a tokenizer file, in order."""
    who = "read_added_tokens"
    with _open(who, path) as file:
        header, count, eot = _read_tokenizer_header(who, path, file)
    found = header[ADDED_AT + 1 : ADDED_AT + 1 + 2 * min(max(int(header[ADDED_AT]), 0), ADDED_RANGES)].tolist()
    ids: list[int] = []
    last = -1
    for begin, end in zip(found[::2], found[1::2]):
        if not last < begin <= end < count or begin <= eot <= end:
            raise FormatError(
                f"{who}: {path}: expected added tokens from {last + 1} to {count - 1}, found {begin} to {end} in the header;"
                " the file is damaged: make it again"
            )
        ids += range(begin, end + 1)
        last = end
    return ids


def _read_tokenizer_header(who, path, file):
    header, _ = _read_header(who, path, file, {TOKENIZER_MAGIC: TOKENIZER_VERSIONS})
    count, eot, size = int(header[2]), int(header[3]), os.path.getsize(path) - HEADER_BYTES
    if not 0 <= count <= LARGEST_VOCABULARY or not -1 <= eot < count:
        raise FormatError(
            f"{who}: {path}: expected up to {LARGEST_VOCABULARY:,} tokens, found {count} tokens and end of text {eot} in the"
            " header; make the file again"
        )
    # A token is its length, a byte, and its bytes.
    if not 2 * count <= size <= (1 + LONGEST_TOKEN) * count:
        raise FormatError(
            f"{who}: {path}: expected {count} tokens, found {size} bytes after the header; the file is damaged: make it"
            " again"
        )
    return header, count, eot

"""The sizes of a GPT-2, the one list of its tensors, and bfloat16."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from llm_mojo.formats.header import num_elements


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
    return sum(num_elements(shape) for shape in parameter_shapes(config).values())


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

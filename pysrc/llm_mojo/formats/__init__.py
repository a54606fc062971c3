"""Reads and writes the files shared with the Mojo programs and llm.c. The only Python files that know magic numbers.

All values are little-endian. A file starts with a header of 256 int32 (1024 bytes), unused fields zero. Readers check the
magic number, the version and the sizes against the length of the file, and raise FormatError. Writers are atomic: they
write beside the file under a temporary name, flush it to the disk and rename, so a file is either whole or not there.
"""

from llm_mojo.formats.checkpoint import (
    CHECKPOINT_BYTES,
    map_checkpoint,
    read_checkpoint,
    write_checkpoint,
    write_checkpoint_blocks,
)
from llm_mojo.formats.choices import Choice, read_hellaswag, write_hellaswag
from llm_mojo.formats.debug_state import read_debug_state, write_debug_state
from llm_mojo.formats.header import HEADER_BYTES, INT32_MAX, KINDS, TOKENS_MAGIC, FormatError
from llm_mojo.formats.model import (
    TENSORS,
    ModelConfig,
    bfloat16_to_float32,
    float32_to_bfloat16,
    num_parameters,
    pad_vocab,
    parameter_shapes,
)
from llm_mojo.formats.state import STATE_RNG, TrainingState, read_state, write_state
from llm_mojo.formats.tokens import read_tokens, token_dtype, tokens_header, write_tokens
from llm_mojo.formats.vocabulary import ADDED_RANGES, read_added_tokens, read_tokenizer, split_tokens, write_tokenizer

__all__ = [
    "ADDED_RANGES",
    "CHECKPOINT_BYTES",
    "Choice",
    "FormatError",
    "HEADER_BYTES",
    "INT32_MAX",
    "KINDS",
    "ModelConfig",
    "STATE_RNG",
    "TENSORS",
    "TOKENS_MAGIC",
    "TrainingState",
    "bfloat16_to_float32",
    "float32_to_bfloat16",
    "map_checkpoint",
    "num_parameters",
    "pad_vocab",
    "parameter_shapes",
    "read_added_tokens",
    "read_checkpoint",
    "read_debug_state",
    "read_hellaswag",
    "read_state",
    "read_tokenizer",
    "read_tokens",
    "split_tokens",
    "token_dtype",
    "tokens_header",
    "write_checkpoint",
    "write_checkpoint_blocks",
    "write_debug_state",
    "write_hellaswag",
    "write_state",
    "write_tokenizer",
    "write_tokens",
]

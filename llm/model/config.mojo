"""Sizes of a GPT-2 and the names under which people know them."""

from llm.base.numbers import parse_integer
from llm.base.strings import part
from llm.formats.checkpoint import MAX_CHANNELS, MAX_LAYERS, MAX_LENGTH

comptime VOCAB_ALIGNMENT = 128
"""The vocabulary is padded to a multiple of this in every llm.c file."""


@fieldwise_init
struct GPT2Config(Copyable, Equatable, Movable, Writable):
    """The six numbers that determine every tensor of a GPT-2."""

    var max_seq_len: Int
    """Longest context, rows of wpe (maxT)."""
    var vocab_size: Int
    """Number of tokens (V)."""
    var padded_vocab_size: Int
    """Rows of wte (Vp): V rounded up to a multiple of 128."""
    var num_layers: Int
    """Transformer blocks (L)."""
    var num_heads: Int
    """Attention heads (NH); divides C."""
    var channels: Int
    """Width of the residual stream (C)."""

    def __init__(out self, *, max_seq_len: Int, vocab_size: Int, num_layers: Int, num_heads: Int, channels: Int) raises:
        """Checks the sizes and derives Vp.

        Raises:
            If a size is not positive or C is not a multiple of NH.
        """
        self.max_seq_len = max_seq_len
        self.vocab_size = vocab_size
        self.padded_vocab_size = pad_vocab(vocab_size)
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.channels = channels
        self.validate()

    def validate(self) raises:
        """Raises if no GPT-2 can have these sizes."""
        _require("max sequence length", self.max_seq_len, MAX_LENGTH)
        _require("vocabulary size", self.vocab_size, MAX_LENGTH)
        _require("number of layers", self.num_layers, MAX_LAYERS)
        _require("number of heads", self.num_heads, MAX_CHANNELS)
        _require("number of channels", self.channels, MAX_CHANNELS)
        if self.padded_vocab_size < self.vocab_size:
            raise Error(
                t"config: padded vocabulary {self.padded_vocab_size} is smaller than the vocabulary {self.vocab_size}"
            )
        if self.channels % self.num_heads != 0:
            raise Error(
                t"config: {self.channels} channels do not divide into {self.num_heads} heads;"
                t" choose a width (--n-embd) that is a multiple of the heads (--n-head)"
            )

    def head_size(self) -> Int:
        """Channels of one attention head (HS = C / NH)."""
        return self.channels // self.num_heads

    def flops_per_token(self, T: Int) -> Int:
        """Counts the floating-point operations of one training step per token, forward and backward.

        6 (12 L C^2 + V C) for the matrix products and 6 L C T for causal attention, of which half the square is
        computed.
        """
        var products = 12 * self.num_layers * self.channels * self.channels + self.vocab_size * self.channels
        return 6 * products + 6 * self.num_layers * self.channels * T


def pad_vocab(vocab_size: Int) -> Int:
    """Rounds up to the multiple of 128 that llm.c's files use."""
    return (vocab_size + VOCAB_ALIGNMENT - 1) // VOCAB_ALIGNMENT * VOCAB_ALIGNMENT


def _require(what: String, value: Int, limit: Int) raises:
    if value < 1:
        raise Error(t"config: {what} must be at least 1, got {value}")
    if value > limit:
        raise Error(t"config: {what} must be at most {limit}, got {value}")


def named_config(name: String) raises -> GPT2Config:
    """Returns the sizes of `gpt2`, `gpt2-medium`, `gpt2-large`, `gpt2-xl` or of llm.c's depth names `d6` .. `d60`.

    Depth names are those of llm.c's train_gpt2.cu: the depth fixes width and heads; V = 50257, maxT = 1024.

    Raises:
        If the name is none of these.
    """
    var depth: Int
    if name == "gpt2":
        depth = 12
    elif name == "gpt2-medium":
        depth = 24
    elif name == "gpt2-large":
        depth = 36
    elif name == "gpt2-xl":
        depth = 48
    elif name.startswith("d"):
        depth = parse_integer(part(name, 1, name.byte_length())).or_else(0)
    else:
        depth = 0

    var channels: Int
    var heads: Int
    if depth == 6:
        channels, heads = 384, 6
    elif depth == 12:
        channels, heads = 768, 12
    elif depth == 24:
        channels, heads = 1024, 16
    elif depth == 36:
        channels, heads = 1280, 20
    elif depth == 48:
        channels, heads = 1600, 25
    elif depth == 60:
        channels, heads = 1920, 30
    else:
        raise Error(
            t"config: no model is called '{name}'; known are gpt2, gpt2-medium, gpt2-large, gpt2-xl, d6, d12, d24, d36,"
            t" d48, d60"
        )
    return GPT2Config(max_seq_len=1024, vocab_size=50257, num_layers=depth, num_heads=heads, channels=channels)

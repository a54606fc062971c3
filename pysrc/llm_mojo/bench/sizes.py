"""What is trained: a model, a batch, and how much arithmetic and memory traffic a step of it takes at least."""

from dataclasses import dataclass

from llm_mojo.bench.runner import Pace
from llm_mojo.formats import ModelConfig, num_parameters

GPT2 = ModelConfig(max_seq_len=1024, vocab_size=50257, num_layers=12, num_heads=12, channels=768)
CHARACTERS = ModelConfig(max_seq_len=64, vocab_size=65, num_layers=4, num_heads=4, channels=128)
ADAMW_BYTES = 28
"""Bytes that AdamW moves for a parameter: it reads four float32 and writes three."""


@dataclass(frozen=True)
class Size:
    """One table of the bench."""

    name: str
    title: str
    config: ModelConfig
    B: int
    T: int
    rarer: int = 1
    """It gets one round where others get so many."""
    seconds: float = 4
    """How long the steps of a process are counted."""
    turn_s: float = 6
    """A turn lasts at least so long: further processes follow."""
    expected_s: int = 0
    """What three rounds of it take on the machine of the published results."""

    @property
    def tokens(self):
        """Tokens of a step."""
        return self.B * self.T

    def rounds(self, rounds):
        """Rounds of this size where others get so many."""
        return -(-rounds // self.rarer)

    def pace(self, warm_up, quick):
        """How long a process of this size is, of a program that needs so many steps to warm up."""
        if quick:
            return Pace(seconds=min(1, self.seconds), most=5, warm_up=warm_up)
        return Pace(seconds=self.seconds, warm_up=warm_up)

    @property
    def flops(self):
        """Floating-point operations of a step: the matrix products, and attention below the diagonal."""
        c = self.config
        products = 6 * (12 * c.num_layers * c.channels**2 + c.vocab_size * c.channels) * self.tokens
        return products + 6 * c.num_layers * c.channels * self.T**2 * self.B

    @property
    def bytes(self):
        """Bytes that a step has to move whatever the caches hold: AdamW's."""
        return ADAMW_BYTES * num_parameters(self.config)


SIZES = [
    Size("124m", "GPT-2 124M, B=4, T=64", GPT2, 4, 64, expected_s=570),
    Size(
        "characters",
        "nanoGPT's character model, B=12, T=64",
        CHARACTERS,
        12,
        64,
        seconds=0.6,
        turn_s=2,
        expected_s=150,
    ),
    Size("124m-t1024", "GPT-2 124M, B=4, T=1024", GPT2, 4, 1024, rarer=3, seconds=10, turn_s=30, expected_s=630),
]


def scaling_sizes():
    """The steps of the scaling plot: contexts of one model, and models of one context."""
    sizes = [Size(f"124m-t{T}", f"GPT-2 124M, T={T}", GPT2, 1024 // T, T) for T in (64, 128, 256, 512, 1024)]
    for depth, heads, channels in ((6, 6, 384), (12, 12, 768), (24, 16, 1024)):
        config = ModelConfig(1024, 50257, depth, heads, channels)
        sizes.append(Size(f"d{depth}", f"{num_parameters(config) // 10**6}M parameters", config, 4, 64))
    return sizes

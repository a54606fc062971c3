"""Runs of tests/programs/passes.mojo, and the models for them."""

import numpy as np

from llm_mojo import formats, reference

# More positions than logits exist at once, three attention tiles, no size a multiple of the vector width.
SMALL = formats.ModelConfig(max_seq_len=140, vocab_size=307, num_layers=3, num_heads=3, channels=63)
# The sizes of GPT-2 124M but for the depth: every product, tile and block is one that the 124M model has.
WIDE = formats.ModelConfig(max_seq_len=64, vocab_size=50257, num_layers=2, num_heads=12, channels=768)


def make_files(folder, config, num_tokens, spread):
    """Writes a random model and random tokens for it."""
    formats.write_checkpoint(folder / "model.bin", config, reference.init_tensors(config, seed=1, spread=spread))
    tokens = np.random.default_rng(2).integers(config.vocab_size, size=num_tokens)
    formats.write_tokens(folder / "tokens.bin", tokens)
    return folder


def run(program, folder, *arguments):
    """The lines that the program prints on the files of `make_files`."""
    return program.output("model.bin", "tokens.bin", *arguments, cwd=folder).splitlines()

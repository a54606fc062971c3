"""The same bits for any number of threads and in every run; and a batch in pieces is the same batch."""

import numpy as np
import pytest

from llm_mojo import formats, reference

# More positions than logits exist at once, three attention tiles, no size a multiple of the vector width.
SMALL = formats.ModelConfig(max_seq_len=140, vocab_size=307, num_layers=3, num_heads=3, channels=63)
# The sizes of GPT-2 124M but for the depth: every product, tile and block is one that the 124M model has.
WIDE = formats.ModelConfig(max_seq_len=64, vocab_size=50257, num_layers=2, num_heads=12, channels=768)


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("tests/programs/passes.mojo")


def make_files(folder, config, num_tokens, spread):
    formats.write_checkpoint(folder / "model.bin", config, reference.init_tensors(config, seed=1, spread=spread))
    tokens = np.random.default_rng(2).integers(config.vocab_size, size=num_tokens)
    formats.write_tokens(folder / "tokens.bin", tokens)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("small"), SMALL, 20_000, spread=True)


def run(program, folder, *arguments):
    return program.output("model.bin", "tokens.bin", *arguments, cwd=folder).splitlines()


@pytest.mark.parametrize("pieces", [1, 2])
def test_bits_do_not_depend_on_threads(pieces, program, small):
    sizes = dict(B=6, T=131, pieces=pieces, steps=4).values()
    expected = run(program, small, 1, *sizes)
    assert len(expected) == 4 * (pieces + 16 + 1 + 16) and len(set(expected)) == len(expected)
    for threads in (2, 3, 3, 5, 1):
        assert run(program, small, threads, *sizes) == expected


def test_bits_do_not_depend_on_threads_at_the_width_of_124m(program, tmp_path):
    make_files(tmp_path, WIDE, 257, spread=False)
    sizes = dict(B=4, T=64, pieces=1, steps=1).values()
    expected = run(program, tmp_path, 1, *sizes)
    for threads in (2, 3):
        assert run(program, tmp_path, threads, *sizes) == expected


@pytest.mark.parametrize("pieces", [2, 3, 6])
def test_pieces_add_up_to_the_batch(pieces, program, small, tmp_path):
    """Gradients of n pieces, each weighted 1/n, against those of PyTorch for all at once."""
    B, T = 6, 37
    run(program, small, 2, B, T, pieces, 1, tmp_path / "grads.bin")
    _, grads = formats.read_checkpoint(tmp_path / "grads.bin")
    config, tensors = formats.read_checkpoint(small / "model.bin")
    trainer = reference.Trainer(config, tensors, reference.torch.float64)
    tokens = formats.read_tokens(small / "tokens.bin")[: B * T + 1].astype(np.int32)
    trainer.backward(tokens[:-1].reshape(B, T), tokens[1:].reshape(B, T))
    for name, parameter in trainer.params.items():
        expected = parameter.grad.numpy()
        error = np.abs(grads[name] - expected).max() / np.abs(expected).max()
        assert error < 1e-5, name

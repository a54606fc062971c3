"""The same bits for any number of threads and in every run; and a batch in pieces is the same batch."""

import numpy as np
import pytest

from llm_mojo import formats, reference
from passes import SMALL, WIDE, make_files, run


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("tests/programs/passes.mojo")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_files(tmp_path_factory.mktemp("small"), SMALL, 20_000, spread=True)


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


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_recomputing_changes_no_bit(dtype, program, small, tmp_path):
    arguments = [6, 131, 2, 3, tmp_path / "grads.bin", dtype]
    expected = run(program, small, 2, *arguments)
    for threads in (1, 3):
        assert run(program, small, threads, *arguments, "recompute") == expected

"""llm/random.mojo and llm/sampler.mojo against numpy, PyTorch and a xorshift64* written from Vigna's paper."""

import numpy as np
import pytest
import torch

SEEDS = [42, 43, 137, 0, 2**32 - 1]


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("tests/programs/files.mojo")


def numbers(output):
    return [int(line) for line in output.splitlines()]


@pytest.mark.parametrize("seed", SEEDS)
def test_mt19937(seed, program):
    drawn = numbers(program.output("mt19937", seed, 2000))
    assert drawn == np.random.RandomState(seed).randint(2**32, size=2000, dtype=np.uint32).tolist()
    torch.manual_seed(seed)
    # PyTorch's fractions are the lower 24 bits of a draw.
    assert [number % 2**24 for number in drawn] == (torch.rand(2000) * 2**24).tolist()


def xorshift(seed):
    """Yields 32 bits at a time."""
    state = seed or 1
    while True:
        state ^= state >> 12
        state = (state ^ state << 25) % 2**64
        state ^= state >> 27
        yield state * 0x2545F4914F6CDD1D % 2**64 >> 32


def fractions(seed, count):
    return [(bits >> 8) / 2**24 for bits, _ in zip(xorshift(seed), range(count))]


@pytest.mark.parametrize("seed", [1337, 1, 0, 2**62 + 12345])
def test_xorshift(seed, program):
    lines = [line.split() for line in program.output("xorshift", seed, 500).splitlines()]
    assert [int(line[0]) for line in lines] == [bits for bits, _ in zip(xorshift(seed), range(500))]
    assert [float(line[1]) for line in lines] == fractions(seed, 500)


def sample(program, tmp_path, logits, count=1, seed=1337, temperature=1.0, top_k=0, top_p=1.0, run="output"):
    (tmp_path / "logits.bin").write_bytes(np.asarray(logits, dtype="<f4").tobytes())
    return getattr(program, run)("sample", tmp_path / "logits.bin", count, seed, temperature, top_k, top_p)


def referee(logits, count, seed, temperature, top_k):
    """One draw a token from the cumulative softmax, in float64."""
    logits = np.asarray(logits, dtype="f4").astype("f8")
    if top_k:
        logits = np.where(logits >= np.sort(logits)[-top_k], logits, -np.inf)
    likelihood = np.exp((logits - logits.max()) / temperature)
    cumulative = np.cumsum(likelihood / likelihood.sum())
    return np.searchsorted(cumulative, fractions(seed, count), side="right").tolist()


@pytest.mark.parametrize("seed", [1337, 7])
@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.7, 0), (3.0, 10), (1.0, 1), (1.0, 37), (1.0, 38)])
def test_draws_follow_the_softmax(seed, temperature, top_k, program, tmp_path):
    logits = np.random.default_rng(5).normal(scale=2, size=37)
    drawn = numbers(sample(program, tmp_path, logits, 2000, seed, temperature, top_k))
    expected = referee(logits, 2000, seed, temperature, min(top_k, 37))
    # A draw within float32's rounding of a boundary may fall on either side of it.
    assert np.mean(np.asarray(drawn) == expected) >= 0.999


def test_large_and_equal_logits(program, tmp_path):
    assert set(numbers(sample(program, tmp_path, [1e38, -3e38, 1e38], 50))) == {0, 2}
    # Several share the last place: all of them take part.
    assert set(numbers(sample(program, tmp_path, [5, 1, 5, 5], 100, top_k=1))) == {0, 2, 3}


def test_temperature_0_takes_the_most_likely(program, tmp_path):
    assert numbers(sample(program, tmp_path, [0, 3, -1, 3], 5, temperature=0)) == [1] * 5


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_model_that_has_diverged(value, program, tmp_path):
    error = sample(program, tmp_path, [0, 0, float(value)], run="error")
    assert f"the logit of token 2 is {value}" in error and "diverged" in error


@pytest.mark.parametrize(("temperature", "top_k"), [(-1, 0), ("nan", 0), (1, -1)])
def test_settings_that_make_no_sense(temperature, top_k, program, tmp_path):
    error = sample(program, tmp_path, [0, 1], temperature=temperature, top_k=top_k, run="error")
    assert "expected a temperature and a top_k of at least 0" in error

"""llm/base/random.mojo and llm/infer/sampler.mojo against numpy, PyTorch and a xorshift64* written from Vigna's paper."""

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

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


def kept_by_transformers(logits, temperature, top_k, top_p):
    """The probabilities that are left after transformers' own processors."""
    scores = torch.tensor(np.asarray(logits)[None], dtype=torch.float64)
    steps = [TemperatureLogitsWarper(temperature)] if temperature != 1 else []
    steps += [TopKLogitsWarper(top_k)] if top_k else []
    steps += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    for step in steps:
        scores = step(None, scores)
    return scores.softmax(-1)[0].numpy()


CUTS = [(1.0, 0, 1.0), (0.7, 0, 0.9), (1.0, 5, 1.0), (1.5, 20, 0.8), (2.0, 0, 0.3), (1.0, 0, 1e-6), (0.5, 3, 0.99)]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), CUTS)
@pytest.mark.parametrize("size", [37, 1000])
def test_frequencies_are_those_of_transformers_processors(size, temperature, top_k, top_p, program, tmp_path):
    """100,000 draws: chi-square against the softmax of what the processors keep, and nothing that they remove."""
    count = 100_000
    logits = np.random.default_rng(size).normal(scale=2, size=size).astype("f4")
    drawn = numbers(sample(program, tmp_path, logits, count, 11, temperature, top_k, top_p))
    expected = count * kept_by_transformers(logits, temperature, top_k, top_p)
    observed = np.bincount(drawn, minlength=size)
    assert observed[expected == 0].sum() == 0
    # Rare tokens are counted together, so that each cell expects at least ten.
    rare = expected < 10
    cells = [(observed[~rare], expected[~rare]), ([observed[rare].sum()], [expected[rare].sum()])]
    observed, expected = (np.concatenate(both) for both in zip(*cells))
    observed, expected = observed[expected > 0], expected[expected > 0]
    chi_square = ((observed - expected) ** 2 / expected).sum()
    # Wilson and Hilferty: its cube root is nearly normal. 4 deviations are passed by chance once in 30,000 times.
    freedom = max(len(expected) - 1, 1)
    z = ((chi_square / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
    assert z < 4


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), CUTS[1:])
@pytest.mark.parametrize("scale", [0.1, 3, 30])
def test_what_is_kept_of_a_real_vocabulary(scale, temperature, top_k, top_p, program, tmp_path):
    """Of logits as a GPT-2 has them the sampler tells what it keeps, token by token."""
    logits = np.random.default_rng(3).normal(-80, scale, size=50257).astype("f4")
    (tmp_path / "logits.bin").write_bytes(logits.tobytes())
    kept = numbers(program.output("kept", tmp_path / "logits.bin", temperature, top_k, top_p))
    expected = np.flatnonzero(kept_by_transformers(logits, temperature, top_k, top_p))
    # Where probabilities add up to top_p, rounding may decide about the last.
    difference = set(kept) ^ set(expected.tolist())
    assert len(difference) <= (0 if top_p == 1 else 1)


def test_top_p_0_keeps_the_most_likely(program, tmp_path):
    assert set(numbers(sample(program, tmp_path, [1, 5, 4.9], 50, top_p=0))) == {1}


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


@pytest.mark.parametrize("top_p", [-0.1, 1.1, "nan"])
def test_top_p_outside_of_0_to_1(top_p, program, tmp_path):
    assert "expected a top_p from 0 to 1" in sample(program, tmp_path, [0, 1], top_p=top_p, run="error")

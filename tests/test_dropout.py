"""Dropout: the model's masks, drawn once more in NumPy, give PyTorch the same losses, gradients and parameters."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llm_mojo import formats, reference
from llm_mojo.reference import embedding, gelu, layernorm, linear
from small_model import SMALL, make_files, shuffled_batches
from tiny_run import copy_back_to, final, flags, log, settings

LONG = formats.ModelConfig(max_seq_len=140, vocab_size=131, num_layers=2, num_heads=2, channels=20)
GOLDEN = 0x9E3779B97F4A7C15
SEED = 1337  # the trainer's own


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


# The masks, after llm/base/random.mojo and llm/cpu/dropout.mojo.


def scramble(x):
    x %= 2**64
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) % 2**64
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) % 2**64
    return x ^ x >> 31


def draw_at(key, place):
    return scramble(key + place * GOLDEN)


def scramble32(x):
    x = ((x ^ x >> 16) * 0x7FEB352D) % 2**32
    x = ((x ^ x >> 15) * 0x846CA68B) % 2**32
    return x ^ x >> 16


def factors(rate, key, shape):
    """0 or 1 / (1 - rate)."""
    places = np.arange(math.prod(shape), dtype=np.uint64) % 2**32
    bits = scramble32(scramble32(places ^ np.uint64(key % 2**32)) ^ np.uint64(key >> 32))
    rate = np.float32(rate)
    return np.where(bits < int(float(rate) * 2**32), 0, 1 / (1 - float(rate))).reshape(shape)


def pass_key(step, micro_pass):
    return draw_at(draw_at(scramble(~SEED), step), micro_pass)


def forward(p, config, tokens, targets, rate, key):
    """GPT-2 with dropout; returns the mean loss."""
    (B, T), C, NH = tokens.shape, config.channels, config.num_heads

    def drop(x, key):
        return x * torch.tensor(factors(rate, key, tuple(x.shape)))

    x = drop(embedding(tokens, p["wte"][: config.vocab_size], p["wpe"]), key)
    for l in range(config.num_layers):
        keys = [draw_at(key, 1 + 3 * l + i) for i in range(3)]
        qkv = linear(layernorm(x, p["ln1w"][l], p["ln1b"][l]), p["qkvw"][l], p["qkvb"][l])
        q, k, v = (part.view(B, T, NH, C // NH).transpose(1, 2) for part in qkv.split(C, dim=2))
        scores = q @ k.transpose(2, 3) / math.sqrt(C // NH)
        probabilities = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -math.inf).softmax(3)
        h = (drop(probabilities, keys[0]) @ v).transpose(1, 2).reshape(B, T, C)
        x = x + drop(linear(h, p["attprojw"][l], p["attprojb"][l]), keys[1])
        h = gelu(linear(layernorm(x, p["ln2w"][l], p["ln2b"][l]), p["fcw"][l], p["fcb"][l]))
        x = x + drop(linear(h, p["fcprojw"][l], p["fcprojb"][l]), keys[2])
    logits = linear(layernorm(x, p["lnfw"], p["lnfb"]), p["wte"][: config.vocab_size])
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def pytorch_run(config, tensors, batches, steps, passes, rate):
    """Trains as the flags of the test below say; returns losses, norms and parameters."""
    trainer = reference.Trainer(config, tensors, torch.float64)
    losses, norms = [], []
    for step in range(1, steps + 1):
        total = 0
        for p in trainer.params.values():
            p.grad = None
        for i in range(passes):
            x, y = (torch.tensor(ids).long() for ids in next(batches))
            loss = forward(trainer.params, config, x, y, rate, pass_key(step, i)) / passes
            loss.backward()
            total += loss.item()
        losses.append(total)
        norms.append(float(sum((p.grad**2).sum() for p in trainer.params.values()) ** 0.5))
        trainer.update(lr=0.002, betas=(0.8, 0.99), eps=1e-8, weight_decay=0)
    return losses, norms, trainer.params


@pytest.mark.parametrize(
    ("config", "B", "T", "passes", "rate"),
    [(SMALL, 3, 17, 1, 0.2), (SMALL, 2, 13, 3, 0.5), (LONG, 1, 131, 1, 0.3)],
    ids=["ragged", "accumulated", "three tiles of attention"],
)
def test_equals_pytorch_with_the_same_masks(config, B, T, passes, rate, program, tmp_path):
    make_files(tmp_path, config)
    batches = shuffled_batches(sorted(tmp_path.glob("train_*.bin")), B, T)
    tensors = formats.read_checkpoint(tmp_path / "model.bin")[1]
    losses, norms, params = pytorch_run(config, tensors, batches, 5, passes, rate)

    files = ["-i", "train_*.bin", "-j", "val_0.bin", "-e", "model.bin", "-o", "run", "-v", 0, "-s", 0]
    optimizer = ["-x", 5, "-l", 0.002, "--beta1", 0.8, "--beta2", 0.99, "-d", B * T * passes]
    program.output(*files, *optimizer, "-b", B, "-t", T, "--dropout", rate, cwd=tmp_path)
    rows = log(tmp_path / "run")
    files[files.index("run")] = "again"
    program.output(*files, *optimizer, "-b", B, "-t", T, "--dropout", rate, "--recompute", 1, cwd=tmp_path)
    last = "model_00000005.bin"
    assert (tmp_path / "again" / last).read_bytes() == (tmp_path / "run" / last).read_bytes()
    assert [row["loss"] for row in rows] == pytest.approx(losses, rel=1e-5)
    assert [row["norm"] for row in rows] == pytest.approx(norms, rel=1e-4)
    for name, values in formats.read_checkpoint(tmp_path / "run/model_00000005.bin")[1].items():
        differences = np.abs(values - params[name].detach().numpy())
        if name == "qkvb":  # the softmax is blind to the bias of the keys: rounding noise, which AdamW scales up
            differences[:, config.channels : 2 * config.channels] = 0
        assert np.quantile(differences, 0.99) < 1e-5, name


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5, 0.9])
def test_masks_are_random(rate, mojo_program, tmp_path):
    """Right in number, and independent of neighbours, of other keys, and along and across rows: within 5 sigma."""
    n = (1 << 20) + 37
    key = pass_key(7, 0)
    keys = [key, draw_at(key, 1), draw_at(key, 2), pass_key(8, 0), pass_key(7, 1)]
    signed = [key - (key >> 63 << 64) for key in keys]
    mojo_program("tests/programs/masks.mojo").output(rate, n, tmp_path / "masks.bin", *signed)
    found = np.fromfile(tmp_path / "masks.bin", dtype="<f4").reshape(len(keys), n)
    masks = found > 0
    np.testing.assert_allclose(found[masks], 1 / (1 - rate), rtol=1e-6)
    assert (found[~masks] == 0).all()
    sigma = math.sqrt(rate * (1 - rate) / n)
    for mask in masks:
        assert abs(mask.mean() - (1 - rate)) < 5 * sigma
    centred = [(mask - (1 - rate)) / math.sqrt(rate * (1 - rate)) for mask in masks]
    for i, a in enumerate(centred):
        for b in centred[:i]:
            assert abs((a * b).mean()) < 5 / math.sqrt(n)
        for distance in (1, 2, 16, 64, 128, 1024, 4096):
            assert abs((a[distance:] * a[:-distance]).mean()) < 5 / math.sqrt(n - distance)


@pytest.fixture(scope="module")
def whole(program, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    program.output(*flags(data, out, "--dropout", 0.2))
    return out


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_resumed_on_any_number_of_threads(threads, program, whole, tmp_path):
    out = copy_back_to(whole, 9, tmp_path / "run")
    program.output("-o", out, "-y", 1, "--threads", threads)
    assert final(out) == final(whole)


def test_the_seed_decides(program, data, whole, tmp_path):
    for name, seed in {"a": SEED, "b": 1}.items():
        start = ["-i", data / "train_*.bin", "-j", data / "val_*.bin", "-e", whole / "model_00000003.bin"]
        program.output(
            *start, "-b", 2, "-t", 8, "-x", 1, "-s", 0, "--dropout", 0.2, "--seed", seed, "-o", tmp_path / name
        )
    assert log(tmp_path / "a")[0] == log(tmp_path / "b")[0]
    assert log(tmp_path / "a")[1]["loss"] != log(tmp_path / "b")[1]["loss"]


def test_validation_drops_nothing(program, data, tmp_path):
    runs = {rate: settings(data, tmp_path / str(rate), "-x", 1, "-v", 1, "--dropout", rate) for rate in (0, 0.5)}
    for arguments in runs.values():
        program.output(*arguments)
    (val, step, _), (other_val, other_step, _) = (log(tmp_path / str(rate)) for rate in runs)
    assert val == other_val and step["loss"] != other_step["loss"]

"""--dtype bf16: errors beside those of PyTorch's bf16 autocast, and the same bits whatever the threads."""

import re

import numpy as np
import pytest
import torch

from llm_mojo import formats, reference
from passes import SMALL, WIDE, make_files, run
from tiny_run import copy_back_to, final, flags, log, settings

GPT2_124M = formats.ModelConfig(max_seq_len=1024, vocab_size=50257, num_layers=12, num_heads=12, channels=768)
SLACK = 1.1
STEPS = 10


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("tests/programs/passes.mojo")


def gradients(config, tensors, x, y, dtype, autocast=False):
    """Returns PyTorch's gradients as float64 arrays."""
    trainer = reference.Trainer(config, tensors, dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        trainer.backward(x, y)
    return {name: parameter.grad.double().numpy() for name, parameter in trainer.params.items()}


def distances(grads, expected):
    """Returns each tensor's error: the length of the difference in parts of the expected length."""
    return {name: np.linalg.norm(grads[name] - expected[name]) / np.linalg.norm(expected[name]) for name in expected}


def check_gradients(program, folder, B, T, dtype):
    run(program, folder, 2, B, T, 1, 1, "grads.bin", "bf16")
    config, tensors = formats.read_checkpoint(folder / "model.bin")
    tokens = formats.read_tokens(folder / "tokens.bin")[: B * T + 1].astype(np.int32)
    x, y = tokens[:-1].reshape(B, T), tokens[1:].reshape(B, T)
    exact = gradients(config, tensors, x, y, dtype)
    ours = distances(formats.read_checkpoint(folder / "grads.bin")[1], exact)
    pytorch = distances(gradients(config, tensors, x, y, torch.float32, autocast=True), exact)
    print(*(f"{name:9} ours {ours[name]:.5f} PyTorch {pytorch[name]:.5f}" for name in ours), sep="\n")
    assert {name for name in ours if ours[name] > SLACK * pytorch[name]} == set()


@pytest.mark.parametrize(("config", "B", "T"), [(SMALL, 3, 131), (WIDE, 2, 64)], ids=["small", "wide"])
def test_gradients_are_as_near_as_those_of_pytorch(config, B, T, program, tmp_path):
    check_gradients(program, make_files(tmp_path, config, B * T + 1, spread=config is SMALL), B, T, torch.float64)


@pytest.mark.long
def test_gradients_are_as_near_as_those_of_pytorch_at_124m(program, tmp_path):
    check_gradients(program, make_files(tmp_path, GPT2_124M, 257, spread=False), 4, 64, torch.float32)


def test_bits_do_not_depend_on_threads(program, tmp_path):
    make_files(tmp_path, SMALL, 20_000, spread=True)
    sizes = dict(B=6, T=131, pieces=2, steps=3, grads="grads.bin", dtype="bf16").values()
    expected = run(program, tmp_path, 1, *sizes)
    for threads in (2, 3, 3, 5):
        assert run(program, tmp_path, threads, *sizes) == expected


def losses(lines):
    return np.array([float(line.split()[-1]) for line in lines if " loss " in line])


def test_losses_follow_those_of_fp32(program, tmp_path):
    """Ten AdamW steps within 1%, and not the same numbers."""
    make_files(tmp_path, SMALL, 20_000, spread=True)
    fp32 = losses(run(program, tmp_path, 2, 6, 131, 1, STEPS))
    bf16 = losses(run(program, tmp_path, 2, 6, 131, 1, STEPS, "grads.bin", "bf16"))
    assert len(fp32) == STEPS and not np.array_equal(fp32, bf16)
    np.testing.assert_allclose(bf16, fp32, rtol=0.01)


# ----- the trainer


@pytest.fixture(scope="session")
def trainer(mojo_program):
    return mojo_program("train_gpt2.mojo")


@pytest.mark.parametrize(("saved_as", "dropout"), [("fp32", 0), ("bf16", 0), ("bf16", 0.2)])
def test_resumed_equals_uninterrupted(saved_as, dropout, trainer, data, tmp_path):
    dtypes = ["--dtype", "bf16", "--save-dtype", saved_as, "--dropout", dropout]
    output = trainer.output(*flags(data, tmp_path / "whole", *dtypes))
    assert re.search("^products +bf16", output, re.M)
    out = copy_back_to(tmp_path / "whole", 9, tmp_path / "run")
    trainer.output("-o", out, "-y", 1, "--threads", 3)
    assert final(out) == final(tmp_path / "whole")


def test_models_in_bf16_are_the_rounded_weights(trainer, data, tmp_path):
    """As llm.c's version 5, the weights themselves in the state; training does not notice."""
    for dtype in ("fp32", "bf16"):
        trainer.output(*settings(data, tmp_path / dtype, "--save-dtype", dtype))
    name = "model_00000004.bin"
    config, exact = formats.read_checkpoint(tmp_path / "fp32" / name)
    _, rounded = formats.read_checkpoint(tmp_path / "bf16" / name)
    assert (tmp_path / "bf16" / name).stat().st_size == 1024 + 2 * sum(tensor.size for tensor in exact.values())
    state = formats.read_state(tmp_path / "bf16" / "state_00000004_00000.bin", config)
    for tensor, weights in exact.items():
        expected = torch.tensor(weights).bfloat16().float().numpy()
        np.testing.assert_array_equal(rounded[tensor], expected)
    np.testing.assert_array_equal(state.master, np.concatenate([weights.ravel() for weights in exact.values()]))
    assert log(tmp_path / "fp32") == log(tmp_path / "bf16")


def test_the_trainer_says_what_a_plan_takes(trainer, data):
    plans = {}
    for dtype in ("fp32", "bf16"):
        output = trainer.output(*settings(data, None, "--dtype", dtype, "--n-embd", 512, "--dry-run"))
        plans[dtype] = int(re.search(r"activations ([\d,]+) MB", output)[1].replace(",", ""))
    assert plans["bf16"] < plans["fp32"]
    error = trainer.error(*settings(data, None, "--dtype", "fp16"), status=2)
    assert "--dtype: expected fp32|bf16, got 'fp16'" in error

"""test_gpt2.mojo against the PyTorch reference: it passes on right files, and fails on a single wrong number."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from llm_mojo import formats, reference
from llm_mojo.__main__ import main

# max_seq_len, vocab_size, num_layers, num_heads, channels; then B and T.
SHAPES = {
    "ragged": (20, 131, 2, 3, 36, 3, 17),
    "one sequence over three attention tiles": (150, 300, 2, 2, 40, 1, 149),
    "one head, two words": (9, 2, 1, 1, 10, 2, 9),
    "one position": (1, 19, 3, 2, 6, 4, 1),
    "one channel a head": (7, 257, 1, 5, 5, 1, 7),
    "the logits in two parts": (131, 150, 1, 4, 68, 5, 131),
    "products longer than a block of K": (33, 129, 1, 7, 119, 2, 33),
}
BIG = formats.ModelConfig(max_seq_len=1024, vocab_size=50257, num_layers=12, num_heads=12, channels=768)
TENSORS = list(formats.parameter_shapes(BIG))
COMPARISONS = ["logits", "loss", *(f"d{name}" for name in TENSORS), *(f"step {i}" for i in range(1, 11))]


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("test_gpt2.mojo")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Checkpoint, debug state and losses of the first shape."""
    folder = tmp_path_factory.mktemp("small")
    write_files(folder, *SHAPES["ragged"])
    return folder


@pytest.fixture
def files(small, tmp_path):
    """A copy of them to be spoilt."""
    return shutil.copytree(small, tmp_path / "files")


def write_files(folder, max_seq_len, vocab_size, num_layers, num_heads, channels, B, T):
    config = formats.ModelConfig(max_seq_len, vocab_size, num_layers, num_heads, channels)
    tensors = reference.init_tensors(config, seed=T, spread=True)
    formats.write_checkpoint(folder / "model.bin", config, tensors)
    batch = reference.random_batch(config, B, T, seed=B)
    reference.write_reference(folder / "model", config, tensors, *batch, torch.float64)


def arguments(folder):
    """The flags for files that `write_files` or `reference --name model` has written."""
    names = {"init": "model.bin", "debug-state": "model_debug_state.bin", "losses": "model_losses.txt"}
    return [word for flag, name in names.items() for word in (f"--{flag}", folder / name)]


def verdicts(output):
    """What the program printed on each comparison: name -> ok or OFF. No name may come twice."""
    lines = re.findall(r"^(\w+(?: \d+)?) +(ok|OFF) +error", output, re.M)
    assert len(dict(lines)) == len(lines), output
    return dict(lines)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_small(shape, program, tmp_path):
    write_files(tmp_path, *shape)
    output = program.output(*arguments(tmp_path), "--tolerance", 1e-5)
    assert verdicts(output) == dict.fromkeys(COMPARISONS, "ok")


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """The files of the 124M shape, written by the command; 1 GB, removed afterwards."""
    folder = tmp_path_factory.mktemp("big")
    # glibc otherwise gives every large array back to the system when it is freed, which costs more than the arithmetic.
    keep_memory = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 36)}
    command = [sys.executable, "-m", "llm_mojo", "reference", "--init", "d12", "--name", "model"]
    subprocess.run(command, cwd=folder, check=True, env=os.environ | keep_memory)
    yield folder
    shutil.rmtree(folder)


def test_124m(big, program):
    output = program.output(*arguments(big))
    assert "124475904 parameters, B=4, T=64" in output
    assert verdicts(output) == dict.fromkeys(COMPARISONS, "ok")


def test_124m_with_one_weight_changed(big, program):
    """The one weight is in the middle of the model, and 0.1 more than it should be."""
    offset = formats.HEADER_BYTES
    for name, shape in formats.parameter_shapes(BIG).items():
        count = int(np.prod(shape))
        if name == "fcw":
            break
        offset += 4 * count
    weights = np.memmap(big / "model.bin", "<f4", "r+", offset, shape=(count,))
    weights[count // 2] += 0.1
    weights.flush()
    try:
        result = program.run(*arguments(big))
    finally:
        weights[count // 2] -= 0.1
        weights.flush()
    assert result.returncode == 1 and "OFF" in verdicts(result.stdout).values()


@pytest.mark.parametrize("name", TENSORS)
def test_one_wrong_weight_is_found(name, files, program):
    config, tensors = formats.read_checkpoint(files / "model.bin")
    tensors = {key: np.array(values) for key, values in tensors.items()}
    tensors[name].flat[0] += 0.1
    formats.write_checkpoint(files / "model.bin", config, tensors)
    result = program.run(*arguments(files))
    assert result.returncode == 1 and "OFF" in verdicts(result.stdout).values()


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 9.0])
def test_one_wrong_gradient_is_found(value, name, files, program):
    rewrite_debug_state(files, lambda state: state.grads[name].flat.__setitem__(-1, value))
    result = program.run(*arguments(files))
    assert result.returncode == 1
    assert [key for key, verdict in verdicts(result.stdout).items() if verdict == "OFF"] == [f"d{name}"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda state: state.logits.flat.__setitem__(-1, np.nan), "logits"),
        (lambda state: state.logits.flat.__setitem__(7, state.logits.flat[7] + 0.01), "logits"),
        (lambda state: state._replace(loss=np.nan), "loss"),
        (lambda state: state._replace(loss=state.loss * 1.001), "loss"),
    ],
)
def test_wrong_logits_and_loss_are_found(change, name, files, program):
    rewrite_debug_state(files, change)
    result = program.run(*arguments(files))
    assert result.returncode == 1
    assert [key for key, verdict in verdicts(result.stdout).items() if verdict == "OFF"] == [name]


def rewrite_debug_state(folder, change):
    """Applies `change` to a DebugState of plain arrays; it may alter them or return another state."""
    config, _ = formats.read_checkpoint(folder / "model.bin")
    state = formats.read_debug_state(folder / "model_debug_state.bin", config)
    arrays = {name: np.array(values) for name, values in state.grads.items()}
    state = state._replace(logits=np.array(state.logits), grads=arrays)
    state = change(state) or state
    formats.write_debug_state(folder / "model_debug_state.bin", *state, config)


@pytest.mark.parametrize("step", [0, 4, 9])
@pytest.mark.parametrize("change", [lambda loss: 1.0002 * loss, lambda loss: float("nan")])
def test_one_wrong_loss_is_found(change, step, files, program):
    path = files / "model_losses.txt"
    losses = [float(line) for line in path.read_text().split()]
    losses[step] = change(losses[step])
    path.write_text("".join(f"{loss}\n" for loss in losses))
    result = program.run(*arguments(files))
    assert result.returncode == 1
    assert [key for key, verdict in verdicts(result.stdout).items() if verdict == "OFF"] == [f"step {step + 1}"]


def test_missing_files_are_named_with_the_command_that_makes_them(program, tmp_path):
    def error():
        return program.error(cwd=tmp_path)

    assert "gpt2_124M.bin is not here" in error() and "python -m llm_mojo weights gpt2" in error()
    (tmp_path / "gpt2_124M.bin").touch()
    assert "gpt2_124M_debug_state.bin is not here" in error() and "python -m llm_mojo reference" in error()
    (tmp_path / "gpt2_124M_debug_state.bin").touch()
    assert "gpt2_124M_losses.txt is not here" in error()


def test_transformers_gives_the_same_numbers(program, tmp_path, monkeypatch):
    """A GPT2LMHeadModel with random weights, saved, converted by our command: the debug state is transformers' own."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    sizes = GPT2Config(vocab_size=261, n_positions=24, n_embd=36, n_layer=3, n_head=3, attn_implementation="eager")
    model = GPT2LMHeadModel(sizes).eval()  # no dropout
    with torch.no_grad():  # no tensor is constant
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained("saved")
    assert main(["weights", "saved", "--out", "model.bin"]) == 0

    config, _ = formats.read_checkpoint("model.bin")
    x, y = (torch.tensor(tokens).long() for tokens in reference.random_batch(config, 2, 23))
    model.double()
    logits = model(x).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
    loss.backward()
    grads = {name: np.zeros(shape, "f4") for name, shape in formats.parameter_shapes(config).items()}
    formats.write_debug_state("model_debug_state.bin", x, y, logits.detach().float(), loss.item(), grads, config)
    (tmp_path / "model_losses.txt").write_text(f"{loss.item()}\n" * 10)

    result = verdicts(program.run(*arguments(tmp_path), "--tolerance", 1e-5).stdout)
    assert [result[name] for name in ("logits", "loss", "step 1")] == ["ok", "ok", "ok"]

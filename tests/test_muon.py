"""--optimizer muon against an implementation in float64, its bits, its files, and what it refuses."""

import numpy as np
import pytest
import torch

from llm_mojo import formats, reference
from mojo_programs import ENVIRONMENT
from small_model import SMALL, make_files, shuffled_batches
from tiny_run import SIZES, copy_back_to, final, flags

RATE, MUON_RATE, DECAY = 3e-3, 0.01, 0.1
# Wide enough for symmetric products to be computed by halves, with rows that no tile divides.
WIDE = formats.ModelConfig(max_seq_len=8, vocab_size=67, num_layers=1, num_heads=4, channels=388)
MATRICES = {"qkvw": 3, "attprojw": 1, "fcw": 1, "fcprojw": 1}


@pytest.fixture(scope="module")
def program(mojo_program):
    return mojo_program("train_gpt2.mojo")


def orthogonalized(matrix):
    """Newton and Schulz's iteration with the published coefficients, in float64."""
    x = matrix / (np.linalg.norm(matrix) + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


def muon(parameter, gradient, momentum, rate):
    momentum *= 0.95
    momentum += 0.05 * gradient
    ahead = 0.95 * momentum + 0.05 * gradient
    step = orthogonalized(ahead) * 0.2 * np.sqrt(max(parameter.shape))
    parameter -= rate * (step + DECAY * parameter)


def expected_run(config, batches, tensors, steps):
    """The parameters after so many steps in float64, cosine from RATE to a tenth after two steps of warm-up, clipped to 1."""
    trainer = reference.Trainer(config, tensors, torch.float64)
    momenta = {name: np.zeros(trainer.params[name].shape) for name in MATRICES}
    losses = []
    for step in range(1, steps + 1):
        losses.append(trainer.backward(*next(batches))[1])
        part = step / 2 if step <= 2 else 0.1 + 0.45 * (1 + np.cos(np.pi * (step - 1 - 2) / (steps - 2)))
        norm = float(sum((p.grad**2).sum() for p in trainer.params.values()) ** 0.5)
        for name, p in trainer.params.items():
            grad = p.grad * min(1, 1 / norm)
            if name not in MATRICES:
                decay = DECAY if name in ("wte", "wpe") else 0
                settings = dict(lr=RATE * part, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay)
                reference.adamw(p.detach(), grad, *trainer.moments[name], step, **settings)
                continue
            apart = MATRICES[name]
            for l in range(config.num_layers):
                whole = (p.detach().numpy()[l], grad.numpy()[l], momenta[name][l])
                for arrays in zip(*(np.split(array, apart) for array in whole)):
                    muon(*arrays, MUON_RATE * part)
    return trainer, losses


@pytest.mark.parametrize(("config", "B", "T", "steps"), [(SMALL, 3, 17, 20), (WIDE, 2, 8, 5)], ids=["small", "wide"])
def test_steps_equal_those_in_float64(config, B, T, steps, program, tmp_path):
    make_files(tmp_path, config)
    batches = shuffled_batches(sorted(tmp_path.glob("train_*.bin")), B, T)
    trainer, losses = expected_run(config, batches, formats.read_checkpoint(tmp_path / "model.bin")[1], steps)
    flags = ["-i", "train_*.bin", "-j", "val_0.bin", "-e", "model.bin", "-b", B, "-t", T, "-x", steps, "-v", 0, "-s", 0]
    flags += ["--optimizer", "muon", "-l", RATE, "--muon-rate", MUON_RATE, "-c", DECAY, "--beta2", 0.95]
    flags += ["-k", "cosine", "-u", 2, "-q", 0.1, "--grad-clip", 1, "-o", "run", "--tokenizer", ""]
    program.output(*flags, cwd=tmp_path)
    _, saved = formats.read_checkpoint(tmp_path / f"run/model_{steps:08}.bin")
    for name, parameter in trainer.params.items():
        differences = np.abs(saved[name] - parameter.detach().numpy())
        if name == "qkvb":
            # The softmax is blind to the bias of the keys: its gradient is rounding noise, which AdamW scales up.
            C = config.channels
            differences[:, C : 2 * C] = 0
        if name in MATRICES:
            assert differences.max() < 1e-4, name
        assert np.quantile(differences, 0.99) < 1e-4, name


MUON = ["--optimizer", "muon", "--muon-rate", 0.01]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_bits_do_not_depend_on_threads_and_a_resumed_run_is_the_whole_one(dtype, program, data, tmp_path):
    more = [*MUON, "--dtype", dtype]
    program.output(*flags(data, tmp_path / "whole", *more, "--threads", 1))
    program.output(*flags(data, tmp_path / "three", *more, "--threads", 3))
    assert final(tmp_path / "whole") == final(tmp_path / "three")
    part = copy_back_to(tmp_path / "whole", 9, tmp_path / "part")
    program.output(*flags(data, part, *more, "-y", 1, "--threads", 2))
    assert final(part) == final(tmp_path / "whole")


def test_the_state_has_no_second_moment_of_what_muon_updates(program, data, tmp_path):
    program.output(*flags(data, tmp_path / "adamw"))
    program.output(*flags(data, tmp_path / "muon", *MUON))
    sizes = [(tmp_path / name / "state_00000024_00000.bin").stat().st_size for name in ("adamw", "muon")]
    config, tensors = formats.read_checkpoint(tmp_path / "muon/model_00000024.bin")
    assert sizes[0] - sizes[1] == 4 * sum(tensors[name].size for name in MATRICES)
    assert '"optimizer": "muon"' in (tmp_path / "muon/extra_00000024.json").read_text()


@pytest.mark.parametrize(("first", "second"), [([], MUON), (MUON, ["--optimizer", "adamw"])])
def test_another_optimizer_is_refused_on_resume_and_a_fresh_start_is_named(first, second, program, data, tmp_path):
    out = tmp_path / "run"
    program.output(*flags(data, out, *first))
    before = final(out)
    said = program.error(*flags(data, out, *second, "-y", 1, "-x", 30))
    assert "optimizer" in said and "--init" in said
    assert final(out) == before


def test_a_rate_that_muon_cannot_follow_is_refused(program, data):
    words = ["-i", data / "train_*.bin", "-j", data / "val_*.bin", *SIZES, *MUON, "-l", 0]
    assert "expected a --learning-rate above 0" in program.error(*words, status=2, env=ENVIRONMENT)

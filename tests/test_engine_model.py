"""GPT2 in Python against PyTorch, through the public API alone; its arrays, its errors, and where it lives."""

import gc
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch

import llm_mojo
from llm_mojo import formats, reference
from passes import SMALL as RAGGED
from small_model import SMALL

pytestmark = pytest.mark.engine
LEARNING_RATE = 2e-3


def tensors_of(config, seed=2):
    """Random parameters without wte's padding rows, as the API has them."""
    tensors = reference.init_tensors(config, seed=seed, spread=True)
    return tensors, tensors | {"wte": tensors["wte"][: config.vocab_size]}


def make(config, seed=2, **settings):
    """A model with random parameters, and PyTorch's trainer of the same in float64."""
    whole, given = tensors_of(config, seed)
    model = llm_mojo.GPT2(config, **settings)
    model.load_parameters(given)
    return model, reference.Trainer(config, whole, torch.float64)


def batch(config, B, T, seed=3):
    tokens = np.random.default_rng(seed).integers(config.vocab_size, size=(B, T + 1))
    return tokens[:, :-1], tokens[:, 1:]


def expect_equal(found, expected, name, tolerance):
    expected = expected.detach().numpy()[: len(found)]
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max(), name


def expect_equal_steps(model, trainer):
    """All parameters but a few are equal: where a gradient is almost nothing, its sign alone decides on a first step."""
    for name, found in model.parameters().items():
        differences = np.abs(found - trainer.params[name].detach().numpy()[: len(found)])
        if name == "qkvb":
            # The softmax is blind to the bias of the keys: its gradient is rounding noise, which AdamW scales up.
            C = model.config.channels
            differences[:, C : 2 * C] = 0
        assert differences.max() < LEARNING_RATE and np.quantile(differences, 0.99) < 1e-6, name


def compare_with_pytorch(config, B, T, steps, tolerance):
    model, trainer = make(config, threads=2)
    optimizer = llm_mojo.AdamW(LEARNING_RATE, betas=(0.8, 0.99), weight_decay=0)
    for step in range(steps):
        model.load_parameters(
            {
                name: p.detach()[: config.vocab_size] if name == "wte" else p.detach()
                for name, p in trainer.params.items()
            }
        )
        x, y = batch(config, B, T, step)
        logits, loss = trainer.backward(x, y)
        expect_equal(model.logits(x), logits.reshape(B, T, -1)[..., : config.vocab_size], "logits", tolerance)
        assert model.loss(x, y) == pytest.approx(float(loss), rel=1e-5)
        assert model.losses(x, y).mean() == pytest.approx(float(loss), rel=1e-5)
        assert model.backward(x, y) == pytest.approx(float(loss), rel=1e-5)
        for name, found in model.gradients().items():
            expect_equal(found, trainer.params[name].grad, name, tolerance)
        norm = float(sum((p.grad**2).sum() for p in trainer.params.values()) ** 0.5)
        assert model.step(optimizer) == pytest.approx(norm, rel=1e-4)
        trainer.update(lr=LEARNING_RATE, betas=(0.8, 0.99), eps=1e-8, weight_decay=0)
        expect_equal_steps(model, trainer)


@pytest.mark.parametrize(("config", "B", "T"), [(SMALL, 3, 17), (RAGGED, 2, 131)], ids=["small", "ragged"])
def test_passes_and_steps_equal_pytorch(config, B, T):
    compare_with_pytorch(config, B, T, 4, 1e-5)


@pytest.mark.long
def test_passes_and_steps_equal_pytorch_at_124m():
    compare_with_pytorch(formats.ModelConfig(1024, 50257, 12, 12, 768), 2, 64, 2, 1e-4)


def test_a_batch_in_pieces_is_a_batch():
    x, y = batch(SMALL, 4, 9)
    whole, _ = make(SMALL)
    whole.backward(x, y)
    pieces, _ = make(SMALL)
    pieces.backward(x[:2], y[:2], weight=0.5)
    pieces.backward(x[2:], y[2:], weight=0.5, accumulate=True)
    for name, gradient in whole.gradients().items():
        np.testing.assert_allclose(pieces.gradients()[name], gradient, rtol=1e-4, atol=1e-6)
    assert pieces.gradient_norm() == pytest.approx(whole.gradient_norm(), rel=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_steps_have_the_bits_of_the_trainer(kind, mojo_program, tmp_path):
    """Ten steps of `train_gpt2` on one batch, clipped and decayed, and ten from Python."""
    from small_model import make_files

    make_files(tmp_path, SMALL)
    tokens = formats.read_tokens(tmp_path / "val_0.bin")[: 3 * 17 + 1].astype(np.int64)
    formats.write_tokens(tmp_path / "one_0.bin", tokens)
    flags = ["-i", "one_0.bin", "-j", "one_0.bin", "-e", "model.bin", "-b", 3, "-t", 17, "-x", 10, "-v", 0, "-s", 0]
    flags += ["-l", 2e-3, "--grad-clip", 1, "-c", 0.1, "--beta2", 0.95, "--shuffle", 0, "-o", "run", "--tokenizer", ""]
    flags += ["--optimizer", kind]
    mojo_program("train_gpt2.mojo").output(*flags, cwd=tmp_path)
    model = llm_mojo.GPT2.from_pretrained(tmp_path / "model.bin")
    optimizer = {"adamw": llm_mojo.AdamW, "muon": llm_mojo.Muon}[kind](2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    x, y = tokens[:-1].reshape(3, 17), tokens[1:].reshape(3, 17)
    for _ in range(10):
        model.backward(x, y)
        model.step(optimizer, grad_clip=1)
    model.save(tmp_path / "python.bin")
    assert (tmp_path / "python.bin").read_bytes() == (tmp_path / "run/model_00000010.bin").read_bytes()


def test_bits_do_not_depend_on_threads_nor_on_what_came_before():
    x, y = batch(RAGGED, 2, 131)
    results = []
    for threads in (1, 2, 3):
        model, _ = make(RAGGED, threads=threads)
        if threads == 2:
            # Room for other passes before, and after.
            model.logits([[1] * 140] * 3)
        model.backward(x, y)
        results.append({name: array.tobytes() for name, array in model.gradients().items()})
    assert results[0] == results[1] == results[2]


def test_bf16_is_near_fp32():
    x, y = batch(RAGGED, 2, 64)
    exact, _ = make(RAGGED)
    rounded, _ = make(RAGGED, dtype="bf16")
    assert rounded.backward(x, y) == pytest.approx(exact.backward(x, y), rel=1e-2)
    assert len(rounded.generate([[1, 2, 3]], 5)[0].tokens) == 5


def test_arrays_are_views_that_cannot_be_written_and_outlive_the_model():
    model, _ = make(SMALL)
    parameters = model.parameters()
    before = parameters["fcw"].copy()
    x, y = batch(SMALL, 2, 5)
    model.backward(x, y)
    model.step(llm_mojo.AdamW(1e-2))
    assert not np.array_equal(parameters["fcw"], before)
    with pytest.raises(ValueError, match="read-only"):
        parameters["fcw"][0] = 1
    after = parameters["fcw"].copy()
    del model
    gc.collect()
    assert np.array_equal(parameters["fcw"], after)


def test_saved_models_come_back(tmp_path):
    model, _ = make(SMALL)
    model.save(tmp_path / "saved.bin")
    again = llm_mojo.GPT2.from_pretrained(tmp_path / "saved.bin")
    assert again.config == SMALL and again.tokenizer is None
    for name, array in model.parameters().items():
        assert np.array_equal(again.parameters()[name], array)
    assert formats.read_checkpoint(tmp_path / "saved.bin")[0] == SMALL


def test_a_hugging_face_folder_is_loaded(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=131, n_positions=20, n_embd=36, n_layer=2, n_head=3)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path / "hf")
    ours = llm_mojo.GPT2.from_pretrained(tmp_path / "hf")
    tokens = np.arange(14) * 7 % 131
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)[None]).logits[0].numpy()
    np.testing.assert_allclose(ours.logits(tokens), expected, atol=2e-5)


def test_hidden_states_and_attention_equal_those_of_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=131, n_positions=20, n_embd=36, n_layer=2, n_head=3, attn_implementation="eager"
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path / "hf")
    ours = llm_mojo.GPT2.from_pretrained(tmp_path / "hf")
    tokens = np.arange(14) * 5 % 131
    with torch.no_grad():
        out = theirs(torch.tensor(tokens)[None], output_hidden_states=True, output_attentions=True)
    hidden = ours.hidden_states(tokens)
    for l in range(2):
        np.testing.assert_allclose(hidden[l], out.hidden_states[l][0].numpy(), atol=1e-5)
        np.testing.assert_allclose(ours.attention(tokens, l), out.attentions[l][0].numpy(), atol=1e-5)
    assert ours.attention(tokens[None], 1).shape == (1, 3, 14, 14)


WRONG = {
    "too long": (lambda m: m.logits([1] * 21), "expected at most 20"),
    "unknown token": (lambda m: m.logits([131]), "from 0 to 130, found 131"),
    "negative token": (lambda m: m.loss([1], [-1]), "from 0 to 130, found -1"),
    "huge token": (lambda m: m.logits([2**40]), "found 1099511627776"),
    "floats": (lambda m: m.logits([1.5]), "expected integers, found float64"),
    "bools": (lambda m: m.logits([True]), "expected integers, found bool"),
    "nothing": (lambda m: m.logits([]), "found \\(0,\\)"),
    "three dimensions": (lambda m: m.logits([[[1]]]), "found \\(1, 1, 1\\)"),
    "ragged": (lambda m: m.logits([[1], [1, 2]]), "expected token ids"),
    "text without a tokenizer": (lambda m: m.logits("hello"), "no tokenizer"),
    "targets of another shape": (lambda m: m.backward([[1, 2]], [[1]]), "expected a target for each token"),
    "a step without gradients": (lambda m: m.step(llm_mojo.AdamW()), "expected gradients"),
    "nothing to accumulate to": (lambda m: m.backward([1], [2], accumulate=True), "expected gradients"),
    "a weight that is no number": (lambda m: m.backward([1], [2], weight=float("nan")), "expected a finite number"),
    "no such layer": (lambda m: m.attention([1], 2), "from 0 to 1, got 2"),
    "no such parameter": (lambda m: m.load_parameters({"x": 1}), "expected names of wte"),
    "a parameter of another shape": (
        lambda m: m.load_parameters({"wte": [1]}),
        "expected \\(131, 36\\), found \\(1,\\)",
    ),
    "a parameter of text": (lambda m: m.load_parameters({"wte": "x"}), "expected numbers"),
    "no optimizer": (lambda m: m.step(None), "expected an optimizer"),
    "no dtype": (lambda m: llm_mojo.GPT2(SMALL, dtype="fp64"), "expected fp32 or bf16"),
    "no config": (lambda m: llm_mojo.GPT2(None), "expected a GPT2Config"),
    "heads that do not divide": (lambda m: llm_mojo.GPT2(formats.ModelConfig(8, 9, 1, 5, 36)), "heads"),
    "no room": (lambda m: llm_mojo.GPT2(formats.ModelConfig(8, 2**20, 2**14, 16, 2**14)), "memory|sizes|at most"),
    "no threads": (lambda m: llm_mojo.GPT2(SMALL, threads=0), "from 1 to 1024"),
    "a rate below zero": (lambda m: llm_mojo.AdamW(-1), "at least 0"),
    "betas beyond one": (lambda m: m.backward([1], [2]) and m.step(llm_mojo.AdamW(betas=(1.0, 0.9))), "beta1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_makes_no_sense_is_a_value_error(name):
    model, _ = make(SMALL)
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        call(model)
    assert model.logits([1, 2]).shape == (2, 131)


def test_missing_and_damaged_files_are_errors(tmp_path):
    with pytest.raises(llm_mojo.Error, match="no such|cannot"):
        llm_mojo.GPT2.from_pretrained(tmp_path / "none.bin")
    (tmp_path / "bad.bin").write_bytes(b"x" * 2000)
    with pytest.raises(llm_mojo.Error, match="bad.bin"):
        llm_mojo.GPT2.from_pretrained(tmp_path / "bad.bin")
    (tmp_path / "empty").mkdir()
    with pytest.raises(llm_mojo.Error, match="checkpoint"):
        llm_mojo.GPT2.from_pretrained(tmp_path / "empty")


def test_an_optimizer_belongs_to_one_model():
    first, _ = make(SMALL)
    second, _ = make(SMALL)
    optimizer = llm_mojo.AdamW()
    for model in (first, second):
        model.backward([1, 2], [2, 3])
    first.step(optimizer)
    with pytest.raises(ValueError, match="make one for each"):
        second.step(optimizer)


def test_threads_wait_for_each_other_and_models_work_side_by_side():
    models = [make(SMALL)[0] for _ in range(2)]
    x, y = batch(SMALL, 2, 20)
    expected = models[0].loss(x, y)
    found, errors = [], []

    def work(model):
        try:
            found.extend(model.loss(x, y) for _ in range(50))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(model,)) for model in models for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(found) == 300 and set(found) == {expected}


def logits_in_another_process(tokens):
    return make(SMALL)[0].logits(tokens)


def test_processes_that_are_spawned_have_engines_of_their_own():
    expected = make(SMALL)[0].logits([1, 2, 3])
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        for found in pool.map(logits_in_another_process, [[1, 2, 3]] * 3):
            assert np.array_equal(found, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork() with threads: it is what is tested
def test_after_fork_a_call_is_an_error_and_the_parent_goes_on():
    model, _ = make(SMALL)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            model.logits([1])
            said = "nothing"
        except llm_mojo.Error as error:
            said = str(error)
        os.write(write, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"fork() took no threads" in os.read(read, 1000)
    assert model.logits([1]).shape == (1, 131)


def test_models_that_are_dropped_give_memory_and_threads_back():
    def now():
        gc.collect()
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        return int(status["VmRSS"].split()[0]), int(status["Threads"])

    def make_and_drop(count):
        for _ in range(count):
            model = llm_mojo.GPT2(SMALL, threads=3)
            model.backward([1, 2], [2, 3])
            model.step(llm_mojo.AdamW())
            model.generate([1], 2)

    make_and_drop(20)
    memory, threads = now()
    make_and_drop(1000)
    memory_after, threads_after = now()
    assert threads_after == threads
    assert memory_after - memory < 20_000  # kB; one model's arenas touched are about 1,000

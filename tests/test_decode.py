"""llm/model/decoder.mojo: cached logits against PyTorch and against our own forward pass, alone and side by side."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from llm_mojo import formats, reference
from llm_mojo.__main__ import main
from llm_mojo.formats import ModelConfig

CONFIGS = {
    "tiny": ModelConfig(max_seq_len=5, vocab_size=11, num_layers=1, num_heads=1, channels=3),
    "ragged": ModelConfig(max_seq_len=150, vocab_size=61, num_layers=3, num_heads=3, channels=24),
    "vectors": ModelConfig(max_seq_len=200, vocab_size=300, num_layers=2, num_heads=2, channels=160),
}

FEW = 8
"""Positions read at once up to which the activations stay float32."""


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("tests/programs/decode.mojo")


@pytest.fixture(scope="module", params=CONFIGS)
def model(request, tmp_path_factory):
    """A checkpoint, tokens for a whole context, and PyTorch's logits (T,V) for them."""
    config = CONFIGS[request.param]
    path = tmp_path_factory.mktemp("model") / "model.bin"
    tensors = reference.init_tensors(config, 3, spread=True)
    formats.write_checkpoint(path, config, tensors)
    tokens = np.random.default_rng(1).integers(config.vocab_size, size=config.max_seq_len, dtype=np.int32)
    tokens.tofile(path.with_name("tokens.bin"))
    return path, config, tokens, logits_of(tensors, config, tokens)


def logits_of(tensors, config, tokens):
    with torch.no_grad():
        double = {name: torch.tensor(tensor, dtype=torch.float64) for name, tensor in tensors.items()}
        return reference.forward(double, config, torch.tensor(tokens[None].astype(np.int64)))[0][0].numpy()


def decode(program, model, read, texts=1, dtype="fp32", threads=2, run="output"):
    """Reads some tokens at once and steps through the others; returns logits (steps, texts, V)."""
    path, config, tokens, _ = model
    out = path.with_name("logits.bin")
    arguments = [path, path.with_name("tokens.bin"), dtype, threads, config.max_seq_len, read, texts, out]
    said = getattr(program, run)("logits", *arguments)
    if run == "error":
        return said
    return np.fromfile(out, dtype="<f4").reshape(len(tokens) - read, texts, config.vocab_size)


def reads(config):
    """Nothing; few positions, which matvec reads; pages not full, full, and just over; all but the last."""
    return [read for read in (0, 1, 7, 8, 9, 63, 64, 65, 129) if read < config.max_seq_len - 1] + [
        config.max_seq_len - 1
    ]


def test_cached_logits_are_pytorchs(program, model):
    _, config, _, expected = model
    for read in reads(config):
        logits = decode(program, model, read)
        np.testing.assert_allclose(logits[:, 0], expected[read:], atol=2e-5, err_msg=f"{read} tokens read at once")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_text_is_the_same_beside_others_and_on_any_number_of_threads(dtype, program, model):
    config = model[1]
    for read in reads(config)[::3]:
        alone = decode(program, model, read, 1, dtype, threads=1)
        for texts, threads in [(1, 3), (2, 2), (7, 5)]:
            beside = decode(program, model, read, texts, dtype, threads)
            assert (beside == alone).all(), f"{read} tokens read, {texts} texts, {threads} threads"


def test_bfloat16_weights(program, model, tmp_path):
    """With weights rounded to bfloat16 and nothing else, whether they are so in the file or become so."""
    path, config, tokens, _ = model
    _, tensors = formats.read_checkpoint(path)
    rounded = {}
    for name, tensor in tensors.items():
        narrow = torch.tensor(np.asarray(tensor)).to(torch.bfloat16).float().numpy()
        rounded[name] = narrow
    expected = logits_of(rounded, config, tokens)
    short = tmp_path / "model.bin"
    formats.write_checkpoint(short, config, rounded, dtype="bfloat16")
    np.copyto(np.memmap(tmp_path / "tokens.bin", dtype=np.int32, mode="w+", shape=tokens.shape), tokens)
    for dtype in ["fp32", "bf16"]:
        read = min(config.max_seq_len // 2, FEW)
        logits = decode(program, (short, config, tokens, None), read, dtype=dtype)
        np.testing.assert_allclose(logits[:, 0], expected[read:], atol=2e-5)
    from_float = decode(program, model, 0, dtype="bf16")
    assert (from_float == decode(program, (short, config, tokens, None), 0, dtype="bf16")).all()


def test_a_long_prompt_in_bfloat16(program, model):
    """Read with rounded activations, where the processor multiplies such; nearer to the truth than PyTorch's bf16."""
    path, config, tokens, exact = model
    read = config.max_seq_len * 3 // 4
    if read <= FEW:
        pytest.skip("its prompts are short")
    _, tensors = formats.read_checkpoint(path)
    tensors = {name: torch.tensor(np.array(tensor)) for name, tensor in tensors.items()}

    def error(logits):
        return np.linalg.norm(logits - exact[read:]) / np.linalg.norm(exact[read:])

    def pytorch(dtype, autocast):
        ids = torch.tensor(tokens[None].astype(np.int64))
        weights = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return error(reference.forward(weights, config, ids)[0][0, read:].double().numpy())

    ours = error(decode(program, model, read, dtype="bf16")[:, 0])
    narrow, autocast = pytorch(torch.bfloat16, False), pytorch(torch.float32, True)
    print(f"ours {ours:.5f}, PyTorch with such weights {narrow:.5f}, with autocast {autocast:.5f}")
    assert 0 < ours < min(narrow, autocast)


def test_more_than_the_context_holds(program, model):
    path, config, tokens, _ = model
    np.append(tokens, tokens[:1]).tofile(path.with_name("tokens.bin"))
    longer = (path, config, np.append(tokens, tokens[:1]), None)
    try:
        assert f"the context of {config.max_seq_len} tokens is full" in decode(program, longer, 2, run="error")
        error = decode(program, longer, len(tokens) + 1, run="error")
        assert f"{len(tokens) + 1} tokens do not fit into a context of {config.max_seq_len}" in error
    finally:
        tokens.tofile(path.with_name("tokens.bin"))


@pytest.mark.long
@pytest.mark.parametrize("lengths", [[1, 2, 5, 8, 9], [33, 64, 65, 300, 824]])
def test_greedy_text_of_124m_is_that_of_transformers(lengths, program, tmp_path):
    """200 tokens after each of five prompts, random weights in GPT-2's own size; saved by transformers, converted by us."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    model.save_pretrained(tmp_path / "saved")
    assert not main(["weights", str(tmp_path / "saved"), "--out", str(tmp_path / "model.bin")])
    random = np.random.default_rng(0)
    for length in lengths:
        prompt = random.integers(50257, size=length, dtype=np.int32)
        prompt.tofile(tmp_path / "prompt.bin")
        output = program.output("greedy", tmp_path / "model.bin", tmp_path / "prompt.bin", "fp32", 2, 1024, 200)
        ids = torch.tensor(prompt[None].astype(np.int64))
        settings = dict(do_sample=False, min_new_tokens=200, max_new_tokens=200, pad_token_id=0, eos_token_id=None)
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, length:]
        assert [int(token) for token in output.split()] == expected.tolist(), f"a prompt of {length} tokens"

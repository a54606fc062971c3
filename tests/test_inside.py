"""Hidden states and attention maps of a model against those of transformers."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from llm_mojo import formats
from llm_mojo.formats import ModelConfig

CONFIGS = {
    "tiny": (ModelConfig(max_seq_len=5, vocab_size=11, num_layers=1, num_heads=1, channels=3), 1, 5),
    "ragged": (ModelConfig(max_seq_len=90, vocab_size=61, num_layers=3, num_heads=3, channels=24), 2, 71),
}


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("tests/programs/inside.mojo")


@pytest.fixture(scope="module", params=CONFIGS)
def model(request, tmp_path_factory):
    """A checkpoint made by transformers, a batch, and transformers' hidden states and attentions for it."""
    config, B, T = CONFIGS[request.param]
    folder = tmp_path_factory.mktemp("inside")
    torch.manual_seed(2)
    sizes = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.max_seq_len,
        n_embd=config.channels,
        n_layer=config.num_layers,
        n_head=config.num_heads,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    theirs = GPT2LMHeadModel(sizes).double().eval()
    tensors = weights_of(theirs, config)
    formats.write_checkpoint(folder / "model.bin", config, tensors)
    tokens = np.random.default_rng(1).integers(config.vocab_size, size=(B, T), dtype=np.int32)
    tokens.tofile(folder / "tokens.bin")
    with torch.no_grad():
        ids = torch.tensor(tokens.astype(np.int64))
        output = theirs.transformer(ids, output_hidden_states=True, output_attentions=True)
    # transformers puts the final layernorm's output last, in place of what goes into it.
    hidden = [state.numpy() for state in output.hidden_states[:-1]]
    attentions = np.stack([attention.numpy() for attention in output.attentions], axis=1)
    return folder, config, B, T, hidden, attentions


def weights_of(theirs, config):
    """The tensors of a transformers model as llm.c lays them out."""
    named = {name: tensor.detach().float().numpy() for name, tensor in theirs.transformer.state_dict().items()}
    wte = np.zeros((config.padded_vocab_size, config.channels), np.float32)
    wte[: config.vocab_size] = named["wte.weight"]
    tensors = {"wte": wte, "wpe": named["wpe.weight"], "lnfw": named["ln_f.weight"], "lnfb": named["ln_f.bias"]}
    for ours, name in {"ln1": "ln_1", "qkv": "attn.c_attn", "attproj": "attn.c_proj", "ln2": "ln_2"}.items():
        tensors |= layers(named, config, ours, name)
    tensors |= layers(named, config, "fc", "mlp.c_fc") | layers(named, config, "fcproj", "mlp.c_proj")
    return {name: tensors[name] for name in formats.parameter_shapes(config)}


def layers(named, config, ours, name):
    weight = [named[f"h.{l}.{name}.weight"] for l in range(config.num_layers)]
    bias = [named[f"h.{l}.{name}.bias"] for l in range(config.num_layers)]
    return {f"{ours}w": np.stack([each.T for each in weight]), f"{ours}b": np.stack(bias)}


def inside(program, model, dtype="fp32", threads=2):
    folder, config, B, T, hidden, attentions = model
    out = folder / "inside.bin"
    program.output(folder / "model.bin", folder / "tokens.bin", dtype, threads, B, T, out)
    values = np.fromfile(out, "<f4")
    size = (config.num_layers + 1) * B * T * config.channels
    return values[:size].reshape(-1, B, T, config.channels), values[size:].reshape(attentions.shape)


def test_against_transformers(program, model):
    _, _, _, T, hidden, attentions = model
    states, maps = inside(program, model)
    for l, expected in enumerate(hidden):
        np.testing.assert_allclose(states[l], expected, atol=2e-5, err_msg=f"into block {l}")
    assert np.isfinite(states).all()
    np.testing.assert_allclose(maps, attentions, atol=2e-5)
    assert (maps[..., np.triu(np.ones((T, T), bool), 1)] == 0).all()


def test_threads_and_bfloat16(program, model):
    states, maps = inside(program, model, threads=1)
    again = inside(program, model, threads=3)
    assert (states == again[0]).all() and (maps == again[1]).all()
    narrow = inside(program, model, dtype="bf16")
    assert np.abs(narrow[1] - maps).max() < 0.1
    # Rows are distributions, of whatever queries and keys.
    np.testing.assert_allclose(narrow[1].sum(-1), 1, atol=2e-3)

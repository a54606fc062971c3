"""The PyTorch reference against transformers' GPT-2, against torch's AdamW, and through its files."""

import argparse
import re

import numpy as np
import pytest
import torch
import transformers

from llm_mojo import Error, formats, reference, reference_command

RAGGED = formats.ModelConfig(max_seq_len=13, vocab_size=131, num_layers=3, num_heads=3, channels=36)


def run(*options):
    parser = argparse.ArgumentParser()
    reference_command.add_arguments(parser)
    reference.run(parser.parse_args([str(option) for option in options]))


def size_options(config):
    return [
        *("--n-layer", config.num_layers, "--n-head", config.num_heads, "--n-embd", config.channels),
        *("--block-size", config.max_seq_len, "--vocab-size", config.vocab_size),
    ]


def hugging_face_names(config):
    """Pairs (our tensor, layer or None, their parameter, whether theirs is transposed)."""
    yield from [("wte", None, "wte.weight", False), ("wpe", None, "wpe.weight", False)]
    yield from [("lnfw", None, "ln_f.weight", False), ("lnfb", None, "ln_f.bias", False)]
    modules = {"ln1": "ln_1", "qkv": "attn.c_attn", "attproj": "attn.c_proj", "ln2": "ln_2", "fc": "mlp.c_fc"}
    for ours, theirs in (modules | {"fcproj": "mlp.c_proj"}).items():
        for l in range(config.num_layers):
            yield ours + "w", l, f"h.{l}.{theirs}.weight", not ours.startswith("ln")
            yield ours + "b", l, f"h.{l}.{theirs}.bias", False


def hugging_face_model(config, tensors):
    """transformers' GPT-2 in float64 with these weights."""
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.max_seq_len,
            n_embd=config.channels,
            n_layer=config.num_layers,
            n_head=config.num_heads,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).double()
    parameters = dict(model.transformer.named_parameters())
    with torch.no_grad():
        for ours, l, theirs, transposed in hugging_face_names(config):
            x = torch.tensor(tensors[ours] if l is None else tensors[ours][l])
            x = x[: config.vocab_size] if ours == "wte" else x
            parameters.pop(theirs).copy_(x.T if transposed else x)
    assert not parameters
    return model


@pytest.mark.parametrize("spread", [False, True])
def test_equals_transformers(spread):
    config = RAGGED
    tensors = reference.init_tensors(config, seed=1, spread=spread)
    tokens, targets = reference.random_batch(config, 3, 11, seed=2)
    trainer = reference.Trainer(config, tensors, torch.float64)
    logits, loss = trainer.backward(tokens, targets)

    model = hugging_face_model(config, tensors)
    expected = model(torch.tensor(tokens).long()).logits
    expected_loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), torch.tensor(targets).long().flatten())
    expected_loss.backward()

    torch.testing.assert_close(logits, expected.detach(), rtol=1e-11, atol=1e-12)
    assert loss == pytest.approx(expected_loss.item(), rel=1e-12)
    parameters = dict(model.transformer.named_parameters())
    for ours, l, theirs, transposed in hugging_face_names(config):
        grad = trainer.params[ours].grad if l is None else trainer.params[ours].grad[l]
        grad = grad[: config.vocab_size] if ours == "wte" else grad
        expected_grad = parameters[theirs].grad.T if transposed else parameters[theirs].grad
        torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-13, msg=f"{ours}[{l}]")
    assert trainer.params["wte"].grad[config.vocab_size :].count_nonzero() == 0


def test_adamw_equals_torch():
    config = RAGGED
    tensors = reference.init_tensors(config, seed=3, spread=True)
    tokens, targets = reference.random_batch(config, 2, 13, seed=4)
    ours = reference.Trainer(config, tensors, torch.float64)
    theirs = reference.Trainer(config, tensors, torch.float64)
    optimizer = torch.optim.AdamW(theirs.params.values(), **reference.OPTIMIZER)
    for _ in range(10):
        assert ours.backward(tokens, targets)[1] == pytest.approx(theirs.backward(tokens, targets)[1], rel=1e-12)
        ours.update(**reference.OPTIMIZER)
        optimizer.step()
    for name in tensors:
        torch.testing.assert_close(ours.params[name], theirs.params[name], rtol=1e-10, atol=1e-12)


def test_spread_hides_no_gradient():
    config = RAGGED
    trainer = reference.Trainer(config, reference.init_tensors(config, spread=True), torch.float64)
    trainer.backward(*reference.random_batch(config, 4, 13))
    grads = {name: p.grad for name, p in trainer.params.items()}
    for name in ("qkvw", "qkvb"):
        grads["q" + name], grads["k" + name], grads["v" + name] = grads.pop(name).chunk(3, dim=1)
    # A bias on all keys changes no attention: its gradient is zero for any weights.
    assert grads.pop("kqkvb").abs().max() < 1e-15
    for name, grad in grads.items():
        assert grad.abs().max() > 1e-3, name


def test_initialisation_is_gpt2s():
    config = formats.ModelConfig(max_seq_len=64, vocab_size=500, num_layers=8, num_heads=2, channels=64)
    tensors = reference.init_tensors(config, seed=5)
    for name, shape in formats.parameter_shapes(config).items():
        x = tensors[name]
        assert x.shape == shape and x.dtype == np.float32
        if name.startswith("ln"):
            assert (x == (1 if name.endswith("w") else 0)).all()
        elif name.endswith("b"):
            assert (x == 0).all()
        else:
            drawn = x[: config.vocab_size] if name == "wte" else x
            assert drawn.std() == pytest.approx(0.02 / 4 if "proj" in name else 0.02, rel=0.05)
    assert (tensors["wte"][config.vocab_size :] == 0).all()
    assert not (tensors["wte"] == reference.init_tensors(config, seed=6)["wte"]).all()


def test_command_writes_files_that_belong_together(tmp_path):
    config, B, T = RAGGED, 3, 11
    run(*size_options(config), "--seed", 7, "--spread", "-b", B, "-t", T, "--name", tmp_path / "small")
    found, tensors = formats.read_checkpoint(tmp_path / "small.bin")
    assert found == config
    state = formats.read_debug_state(tmp_path / "small_debug_state.bin", config)
    assert state.x.shape == (B, T) and (state.x.flatten()[1:] == state.y.flatten()[:-1]).all()
    losses = [float(line) for line in (tmp_path / "small_losses.txt").read_text().splitlines()]
    assert len(losses) == 10 and losses[0] == pytest.approx(state.loss, abs=1e-6)

    trainer = reference.Trainer(config, tensors, torch.float64)
    logits, loss = trainer.backward(state.x, state.y)
    np.testing.assert_allclose(state.logits, logits, rtol=1e-4, atol=1e-5)
    assert state.loss == pytest.approx(loss, rel=1e-5)
    for name, p in trainer.params.items():
        np.testing.assert_allclose(state.grads[name], p.grad, rtol=1e-3, atol=1e-5 * p.grad.abs().max())
    for expected in losses:
        loss = trainer.backward(state.x, state.y)[1]
        assert loss == pytest.approx(expected, rel=1e-5)
        trainer.update(**reference.OPTIMIZER)

    run("--checkpoint", tmp_path / "small.bin", "-b", B, "-t", T, "--seed", 7, "--dtype", "float64")
    exact = formats.read_debug_state(tmp_path / "small_debug_state.bin", config)
    assert (exact.x == state.x).all()
    np.testing.assert_array_equal(exact.logits, logits.float())


def test_command_takes_the_batch_from_a_shard(tmp_path):
    tokens = np.random.default_rng(8).integers(RAGGED.vocab_size, size=100)
    formats.write_tokens(tmp_path / "shard.bin", tokens)
    run(*size_options(RAGGED), "-b", 4, "-t", 5, "--data", tmp_path / "shard.bin", "--name", tmp_path / "m")
    state = formats.read_debug_state(tmp_path / "m_debug_state.bin", RAGGED)
    assert (state.x.flatten() == tokens[:20]).all() and (state.y.flatten() == tokens[1:21]).all()


def test_command_never_replaces_a_checkpoint_unasked(tmp_path):
    options = [*size_options(RAGGED), "-b", 1, "-t", 2, "--name", tmp_path / "m"]
    run(*options)
    before = (tmp_path / "m.bin").read_bytes()
    with pytest.raises(Error, match="--force"):
        run(*options, "--seed", 9)
    assert (tmp_path / "m.bin").read_bytes() == before
    run(*options, "--seed", 9, "--force")
    assert (tmp_path / "m.bin").read_bytes() != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoint", "none.bin"], "llm_mojo weights gpt2"),
        (["--checkpoint", "none.bin", "--init", "d6"], "leave out --init"),
        (["--n-embd", "10", "--n-head", "3"], "multiple of n_head"),
        (["--n-layer", "1", "--block-size", "8", "-t", "9"], "1 to 8 tokens"),
        (["--n-layer", "1", "--vocab-size", "10", "--data", "shard.bin"], "outside the model's vocabulary of 10"),
        (["--n-layer", "1", "--data", "shard.bin", "-b", "7"], "takes 449 tokens, found 400"),
    ],
)
def test_command_says_what_is_wrong(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    formats.write_tokens("shard.bin", np.arange(400))
    with pytest.raises(Error, match=re.escape(message)):
        run("--name", "m", *options)
    assert [path.name for path in tmp_path.iterdir()] == ["shard.bin"]


def test_layer_goldens_are_consistent(tmp_path):
    reference.layer_goldens(tmp_path, seed=10, B=2, T=7, C=20, NH=4, OC=9, V=33)

    def read(layer, tensor, *shape, dtype="<f4"):
        return np.fromfile(tmp_path / f"{layer}_{tensor}.bin", dtype).reshape(shape).astype(float)

    assert (tmp_path / "attention.txt").read_text() == "B 2\nT 7\nC 20\nNH 4\n"
    inp, weight, bias = read("linear", "inp", 14, 20), read("linear", "weight", 9, 20), read("linear", "bias", 9)
    dout = read("linear", "dout", 14, 9)
    np.testing.assert_allclose(read("linear", "out", 14, 9), inp @ weight.T + bias, atol=1e-5)
    np.testing.assert_allclose(read("linear", "dinp", 14, 20), dout @ weight, atol=1e-5)
    np.testing.assert_allclose(read("linear", "dweight", 9, 20), dout.T @ inp, atol=1e-5)
    np.testing.assert_allclose(read("linear", "dbias", 9), dout.sum(0), atol=1e-5)

    probs = read("cross_entropy", "probs", 14, 33)
    targets = read("cross_entropy", "targets", 14, dtype="<i4").astype(int)
    np.testing.assert_allclose(read("cross_entropy", "losses", 14), -np.log(probs[range(14), targets]), atol=1e-5)
    np.testing.assert_allclose(read("cross_entropy", "dlogits", 14, 33), (probs - np.eye(33)[targets]) / 14, atol=1e-7)

    # Adding a constant to every key changes no attention, so the keys' gradients add up to zero in each head.
    dk = read("attention", "dinp", 2, 7, 3, 4, 5)[:, :, 1]
    np.testing.assert_allclose(dk.sum(1), 0, atol=1e-5)
    assert abs(dk).max() > 0.1
    names = {path.stem for path in tmp_path.glob("*.txt")}
    layers = "layernorm linear attention gelu residual embedding cross_entropy adamw global_norm"
    assert names == set(layers.split())

"""Hugging Face's GPT-2 to llm.c's checkpoint: every value, every layout of the files, and what is refused."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from llm_mojo import formats, reference, weights
from llm_mojo.__main__ import main
from vocabularies import write_toy

SIZES = dict(vocab_size=261, n_positions=16, n_embd=24, n_layer=3, n_head=2)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**SIZES)).eval()
    with torch.no_grad():  # no tensor is constant
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def save(model, **options):
    model.save_pretrained("folder", **options)


def run(*arguments, status=0):
    assert main(["weights", *map(str, arguments)]) == status


def error_of(capsys, *arguments):
    """What a command that must fail says."""
    capsys.readouterr()
    run(*arguments, status=1)
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    return message


def edit(path, **changes):
    """Sets values in a JSON file."""
    path = Path("folder", path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(change):
    """Replaces the tensors of the folder by change(tensors)."""
    path = "folder/model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)


def expected_tensors(model, round_to=torch.float32):
    """llm.c's tensors, made from the state_dict by other means than ours."""
    state = {name: tensor.detach().to(round_to).float() for name, tensor in model.transformer.state_dict().items()}

    def layers(name, transpose=False):
        return torch.stack([state[f"h.{i}.{name}"].T if transpose else state[f"h.{i}.{name}"] for i in range(3)])

    wte = torch.zeros(384, 24)
    wte[:261] = state["wte.weight"]
    return {
        "wte": wte,
        "wpe": state["wpe.weight"],
        "ln1w": layers("ln_1.weight"),
        "ln1b": layers("ln_1.bias"),
        "qkvw": layers("attn.c_attn.weight", True),
        "qkvb": layers("attn.c_attn.bias"),
        "attprojw": layers("attn.c_proj.weight", True),
        "attprojb": layers("attn.c_proj.bias"),
        "ln2w": layers("ln_2.weight"),
        "ln2b": layers("ln_2.bias"),
        "fcw": layers("mlp.c_fc.weight", True),
        "fcb": layers("mlp.c_fc.bias"),
        "fcprojw": layers("mlp.c_proj.weight", True),
        "fcprojb": layers("mlp.c_proj.bias"),
        "lnfw": state["ln_f.weight"],
        "lnfb": state["ln_f.bias"],
    }


def check(path, expected):
    config, tensors = formats.read_checkpoint(path)
    assert config == formats.ModelConfig(16, 261, 3, 2, 24, 384)
    for name, values in expected.items():
        np.testing.assert_array_equal(tensors[name], values.numpy(), err_msg=name)


def test_float32(model, capsys):
    save(model)
    run("folder")
    check("folder.bin", expected_tensors(model))
    assert "wrote folder.bin" in capsys.readouterr().out


def test_our_logits_are_those_of_transformers(model):
    save(model)
    run("folder", "--out", "out/small.bin")
    config, tensors = formats.read_checkpoint("out/small.bin")
    tokens = torch.randint(261, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = model(tokens).logits
        ours, _ = reference.forward({name: torch.tensor(values) for name, values in tensors.items()}, config, tokens)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_16_bit_weights_are_widened(model, stored):
    save(model)
    rewrite(lambda tensors: {name: tensor.to(stored) for name, tensor in tensors.items()})
    run("folder")
    check("folder.bin", expected_tensors(model, stored))


def test_bfloat16_checkpoint(model):
    save(model)
    run("folder", "--dtype", "bfloat16")
    check("folder.bin", expected_tensors(model, torch.bfloat16))
    assert struct.unpack("<2i", Path("folder.bin").read_bytes()[:8]) == (20240326, 5)


def test_names_without_prefix_and_buffers(model):
    """As on the hub: no prefix, attention masks stored as tensors."""
    save(model)

    def as_on_the_hub(tensors):
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 16, 16) for i in range(3)}
        masks["h.0.attn.masked_bias"] = torch.tensor(-1e4)
        masks["h.1.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.uint8)
        return bare | masks

    rewrite(as_on_the_hub)
    run("folder")
    check("folder.bin", expected_tensors(model))


def test_shards(model):
    save(model, max_shard_size="30KB")
    assert len(list(Path("folder").glob("model-*.safetensors"))) > 2
    run("folder")
    check("folder.bin", expected_tensors(model))


def test_missing_shard(model, capsys):
    save(model, max_shard_size="30KB")
    shard = sorted(Path("folder").glob("model-*.safetensors"))[1]
    shard.unlink()
    message = error_of(capsys, "folder")
    assert f"{shard}: no such file, but folder/model.safetensors.index.json names it" in message


def test_lm_head_must_be_the_embedding(model, capsys):
    save(model)
    rewrite(lambda tensors: tensors | {"lm_head.weight": tensors["transformer.wte.weight"].clone()})
    run("folder")
    check("folder.bin", expected_tensors(model))
    rewrite(lambda tensors: tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1})
    assert "expected lm_head.weight to equal wte.weight" in error_of(capsys, "folder")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"activation_function": "relu"}, "expected activation_function gelu_new or gelu_pytorch_tanh, found relu"),
        ({"n_inner": 7}, "expected n_inner None or 96, found 7"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"model_type": "llama"}, "expected model_type gpt2, found llama"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"n_head": None}, "expected n_head, found None"),
        ({"n_head": -2}, "expected n_head, found -2"),
        ({"n_head": True}, "expected n_head, found True"),
        ({"n_layer": 10**30}, "expected n_layer, found 1000000"),
        ({"n_layer": 2_000_000_000}, "expected 2,000,000,000 layers, found 40 tensors in all"),
        ({"n_positions": 2_000_000_000}, "of shape (2000000000, 24), found (16, 24)"),
        ({"vocab_size": 2_000_000_000}, "of shape (2000000000, 24), found (261, 24)"),
        ({"n_inner": [[]]}, "expected n_inner None or 96, found [[]]"),
        ({"n_head": 5}, "not a multiple of num_heads=5"),
        ({"n_layer": 4}, "expected transformer.h.3.attn.c_attn.bias, found no such tensor (12 missing)"),
        ({"n_layer": 2}, "which a GPT-2 of ModelConfig"),
        ({"n_embd": 48}, "of shape (261, 48), found (261, 24)"),
        ({"vocab_size": 262}, "of shape (262, 24), found (261, 24)"),
    ],
)
def test_refused_configs(model, capsys, changes, message):
    save(model)
    edit("config.json", **changes)
    assert message in error_of(capsys, "folder")
    assert not list(Path().glob("*.bin*"))


def test_allowed_configs(model):
    save(model)
    edit("config.json", n_inner=96, activation_function="gelu_pytorch_tanh")
    run("folder")


def test_refused_tensors(model, capsys):
    save(model)
    rewrite(lambda tensors: tensors | {"score.weight": torch.ones(2)})
    assert "found score.weight, which a GPT-2" in error_of(capsys, "folder")
    save(model)
    rewrite(lambda tensors: {name: tensor.double() for name, tensor in tensors.items()})
    assert "as F32 or F16 or BF16, found F64" in error_of(capsys, "folder")


def with_header(text):
    return struct.pack("<Q", len(text)) + text + bytes(96)


def entry(**changes):
    """A file of one tensor."""
    about = {"dtype": "F32", "shape": [24], "data_offsets": [0, 96]} | changes
    return with_header(json.dumps({"transformer.wpe.weight": about}).encode())


def test_damaged_files(model, capsys):
    save(model)
    path = Path("folder/model.safetensors")
    raw = path.read_bytes()
    for damaged, message in [
        (raw[:-1], "the file is cut off: get it again"),
        (raw[:100], "it is cut off or not safetensors"),
        (b"", "it is cut off or not safetensors"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is cut off or not safetensors"),
        (struct.pack("<Q", 4) + b"[1]x", "expected the JSON header"),
        (struct.pack("<Q", 9) + b'{"a": {}}', "expected the JSON header"),
        (raw.replace(b"[261,24]", b"[261,23]"), "expected the JSON header"),
        (with_header(b"[" * 100_000), "expected the JSON header"),
        (with_header(b'{"a": 1}'), "expected the JSON header"),
        (with_header(b'{"__metadata__": []}'), "expected the JSON header"),
        (with_header(b'{"\xff": 1}'), "expected the JSON header"),
        (entry(shape=[-1, -96]), "expected the JSON header"),
        (entry(shape=[24.0]), "expected the JSON header"),
        (entry(shape=[True]), "expected the JSON header"),
        (entry(shape=10**30), "expected the JSON header"),
        (entry(shape=[10**30]), "expected the JSON header"),
        (entry(dtype=["F32"]), "expected the JSON header"),
        (entry(data_offsets=[-96, 0]), "expected the JSON header"),
        (entry(data_offsets=[96, 0]), "expected the JSON header"),
        (entry(data_offsets=[0, 96, 1]), "expected the JSON header"),
        (entry(more=1), "expected the JSON header"),
        (entry(dtype="F32"), "found 1 tensors in all"),
    ]:
        path.write_bytes(damaged)
        assert message in error_of(capsys, "folder")
    path.unlink()
    assert "expected model.safetensors or model.safetensors.index.json, found neither" in error_of(capsys, "folder")
    Path("folder/config.json").write_text("{")
    assert "expected JSON" in error_of(capsys, "folder")
    Path("folder/config.json").unlink()
    assert "config.json: no such file" in error_of(capsys, "folder")
    assert "expected one of gpt2, gpt2-medium, gpt2-large, gpt2-xl or a folder" in error_of(capsys, "gpt3")


def test_tokenizer_from_vocab_json(model, tmp_path):
    save(model)
    write_toy(tmp_path / "toy")
    Path("folder/vocab.json").write_bytes(Path("toy/encoder.json").read_bytes())
    run("folder")
    tokens, eot = formats.read_tokenizer("folder_tokenizer.bin")
    assert len(tokens) == 261 and eot == 260 and tokens[258:] == [b"hell", b" w", b"<|endoftext|>"]


def test_tokenizer_from_tokenizer_json(model, tmp_path, capsys):
    save(model)
    write_toy(tmp_path / "toy")
    vocabulary = json.loads(Path("toy/encoder.json").read_text())
    del vocabulary["<|endoftext|>"]
    tokenizer = {
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["h", "e"], ["l", "l"], "he ll", "Ġ w"]},
        "added_tokens": [{"id": 260, "content": "<|endoftext|>"}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
    }
    Path("folder/tokenizer.json").write_text(json.dumps(tokenizer))
    run("folder")
    assert formats.read_tokenizer("folder_tokenizer.bin")[1] == 260
    Path("folder/tokenizer.json").unlink()
    for vocabulary, message in [
        ({"a": 0, "b": 2}, "found no byte-level BPE"),
        ({"▁a": 0}, "not in GPT-2's byte alphabet"),
        ({}, "found no byte-level BPE or characters"),
        ([1], "expected a JSON object, found list"),
        ({"a": "b"}, "found no byte-level BPE or characters"),
        ({"a": 300}, "are not numbered for a vocabulary of 261"),
        ({"a": 0, "b": 0}, "two of its tokens have the number 0"),
    ]:
        Path("folder/vocab.json").write_text(json.dumps(vocabulary))
        Path("folder_tokenizer.bin").unlink(missing_ok=True)
        run("folder")
        assert message in capsys.readouterr().out
        assert not Path("folder_tokenizer.bin").exists()


def test_published_weights_come_from_the_given_folder(model, toy, tmp_path, monkeypatch):
    """`weights gpt2` with LLM_MOJO_CACHE, at the sizes of the toy."""
    save(model)
    cache = tmp_path / "cache"  # where the toy vocabulary is
    Path("folder/model.safetensors").rename(cache / "gpt2/model.safetensors")
    monkeypatch.setitem(weights.PUBLISHED, "gpt2", (3, 2, 24, "gpt2_124M.bin"))
    monkeypatch.setattr(weights, "ModelConfig", lambda T, V, *sizes: formats.ModelConfig(16, 261, *sizes))
    run("gpt2")
    check("gpt2_124M.bin", expected_tensors(model))
    assert len(formats.read_tokenizer("gpt2_tokenizer.bin")[0]) == 261
    lock = json.loads(Path("data/.cache/gpt2/model.safetensors.lock.json").read_text())
    assert lock["sha256"] == hashlib.sha256((cache / "gpt2/model.safetensors").read_bytes()).hexdigest()

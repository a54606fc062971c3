"""Folders as others have them: added tokens, padded vocabularies, other names of tensors, PyTorch's own files.

What transformers gives for the same folder is right, token for token and logit for logit.
"""

import json
import os
import re
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from llm_mojo import formats, reference, tokenize, weights
from llm_mojo.__main__ import main
from llm_mojo.tokenize import BpeTokenizer, byte_alphabet, read_tokenizer_file
from prepared import shards

pytestmark = pytest.mark.usefixtures("one_thread")
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("r", "i"), ("z", "z"), ("ri", "zz")]
BASE = [*byte_alphabet(), *map("".join, MERGES), "<|endoftext|>"]  # 264 tokens
TEXT = "hello rizzlers, <user>hi<user > xrizzler rizz<|endoftex |> a\u00a0bé 東 <user>rizzler<user>"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def small_model(vocab_size):
    torch.manual_seed(0)
    sizes = dict(n_positions=16, n_embd=24, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def write_vocabulary(folder="folder", merges=MERGES, tokens=BASE):
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))


def added_by_transformers():
    Path("folder/config.json").write_text('{"model_type": "gpt2"}')
    tokenizer = AutoTokenizer.from_pretrained("folder")
    tokenizer.add_tokens(["rizzler", "rizz<"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<user>"]})
    for name in ("vocab.json", "merges.txt"):
        Path("folder", name).unlink()
    tokenizer.save_pretrained("folder")


def added_tokens_json():
    Path("folder/added_tokens.json").write_text(json.dumps({"<user>": 265, "rizzler": 264, "a b": 300}))


def added_tokens_decoder():
    flags = dict.fromkeys(["lstrip", "rstrip", "single_word", "normalized"], False)
    decoder = {"264": {"content": "<user>", "special": True} | flags, "265": {"content": "rizzler"} | flags}
    config = {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": decoder, "pad_token": "<pad>"}
    Path("folder/tokenizer_config.json").write_text(json.dumps(config))


def special_tokens_map():
    special = {"pad_token": {"content": "<pad>"}, "eos_token": "<|endoftext|>"}
    Path("folder/special_tokens_map.json").write_text(json.dumps(special | {"additional_special_tokens": ["<user>"]}))


def special_tokens_first():
    """As a tokenizer that was trained with special tokens has them: before the bytes, in vocab.json."""
    write_vocabulary(tokens=["<s>", "</s>", "<user>", *BASE[:-1]])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "</s>"}
    config = special | {"additional_special_tokens": ["<user>"], "tokenizer_class": "GPT2Tokenizer"}
    Path("folder/tokenizer_config.json").write_text(json.dumps(config))


KINDS = [added_by_transformers, added_tokens_json, added_tokens_decoder, special_tokens_map, special_tokens_first]


@pytest.mark.parametrize("vocab_size", [268, 320])
@pytest.mark.parametrize("add", KINDS, ids=lambda add: add.__name__)
def test_added_tokens(add, vocab_size, capsys):
    """weights, prepare, export and weights again: transformers' ids everywhere, and no byte changes."""
    write_vocabulary()
    add()
    small_model(vocab_size).save_pretrained("folder")
    theirs = AutoTokenizer.from_pretrained("folder")
    expected = theirs.encode(TEXT)
    assert theirs.convert_tokens_to_ids("<user>") in expected
    main(["weights", "folder"])
    assert f"{vocab_size - len(theirs)} of the model's {vocab_size} ids have no token" in capsys.readouterr().out
    ours = read_tokenizer_file("folder_tokenizer.bin")
    assert ours.encode([(TEXT, False)]).tolist() == expected
    assert len(ours.tokens) == vocab_size and ours.tokens[ours.eot].decode() == theirs.eos_token
    Path("t.txt").write_text(TEXT * 20)
    assert main(["prepare", "t.txt", "--tokenizer", "folder_tokenizer.bin"]) == 0
    assert sum(shards("data/t", "t"), []) == [ours.eot, *theirs.encode(TEXT * 20)]
    assert Path("data/t/tokenizer.bin").read_bytes() == Path("folder_tokenizer.bin").read_bytes()
    assert main(["export", "folder.bin", "--to", "exported"]) == 0
    again = AutoTokenizer.from_pretrained("exported")
    assert again.encode(TEXT) == expected and again.decode(expected) == TEXT
    assert again.eos_token_id == theirs.eos_token_id
    main(["weights", "exported", "--out", "back/folder.bin"])
    for name in ("folder.bin", "folder_tokenizer.bin"):
        assert Path("back", name).read_bytes() == Path(name).read_bytes()


@pytest.mark.parametrize("vocab_size", [264, 267, 384])
def test_padded_vocabularies(vocab_size, mojo_program):
    """Ids without a token: the programs take model and tokenizer together, and no text becomes one of them."""
    write_vocabulary()
    small_model(vocab_size).save_pretrained("folder")
    main(["weights", "folder"])
    sample = mojo_program("sample_gpt2.mojo")
    sample.output("-e", "folder.bin", "--tokenizer", "folder_tokenizer.bin", "--prompt", "hello", "-n", 5)
    main(["export", "folder.bin", "--to", "exported"])
    assert GPT2LMHeadModel.from_pretrained("exported").config.vocab_size == vocab_size
    assert AutoTokenizer.from_pretrained("exported").encode("hello") == AutoTokenizer.from_pretrained("folder").encode(
        "hello"
    )


def edit_tokenizer(**changes):
    path = Path("folder/tokenizer.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_model(**changes):
    edit_tokenizer(model=json.loads(Path("folder/tokenizer.json").read_text())["model"] | changes)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda: edit_tokenizer(normalizer={"type": "Lowercase"}), "a normalizer that is not GPT-2's"),
        (lambda: edit_tokenizer(pre_tokenizer={"type": "Whitespace"}), "a pre_tokenizer that is not GPT-2's"),
        (lambda: edit_tokenizer(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}), "a pre_tokenizer"),
        (lambda: edit_tokenizer(pre_tokenizer=None), "a pre_tokenizer"),
        (lambda: edit_tokenizer(model=7), "found no byte-level BPE"),
        (lambda: edit_tokenizer(model={"type": "Unigram"}), "found no byte-level BPE"),
        (
            lambda: edit_tokenizer(added_tokens=[{"content": "<m>", "lstrip": True}]),
            "'<m>' looks at what stands beside",
        ),
        (lambda: edit_tokenizer(added_tokens=[{"content": "he"}]), "not numbered in the order of its merges"),
        (lambda: edit_tokenizer(added_tokens=[{"content": "x" * 256}]), "has 256 bytes"),
        (lambda: edit_tokenizer(added_tokens=[{"content": "\ud800"}]), "has half a character"),
        (lambda: edit_model(byte_fallback=True), "a byte_fallback"),
        (lambda: edit_model(merges=[["l", "l"], ["h", "e"], *map(list, MERGES[2:])]), "in the order of its merges"),
        (lambda: edit_model(merges=[3]), "in the order of its merges"),
        (lambda: edit_model(merges="none"), "in the order of its merges"),
        (lambda: edit_model(vocab={"a": 0}), "found no byte-level BPE"),
        (lambda: edit_model(vocab=[]), "found no byte-level BPE"),
        (lambda: Path("folder/tokenizer.json").write_text("[" * 100_000), "expected JSON"),
        (lambda: Path("folder/tokenizer_config.json").write_text('{"add_prefix_space": true}'), "add_prefix_space"),
    ],
)
def test_vocabularies_that_would_give_other_ids(spoil, message, capsys):
    write_vocabulary()
    added_by_transformers()
    small_model(270).save_pretrained("folder")
    spoil()
    assert main(["weights", "folder"]) == 0
    out = capsys.readouterr().out
    assert "folder: no tokenizer file is written: " in out and message in out
    assert Path("folder.bin").exists() and not Path("folder_tokenizer.bin").exists()


def test_an_added_token_that_the_model_has_no_place_for(capsys):
    write_vocabulary()
    added_tokens_json()
    small_model(265).save_pretrained("folder")
    main(["weights", "folder"])
    assert "the added token '<user>' has no place in a model of 265; it is left out" in capsys.readouterr().out
    tokens, eot = formats.read_tokenizer("folder_tokenizer.bin")
    assert tokens[264] == b"rizzler" and eot == 263 and formats.read_added_tokens("folder_tokenizer.bin") == [264]


def test_the_file_says_which_tokens_are_added(tmp_path):
    tokens = [bytes([value]) for value in range(256)]
    formats.write_tokenizer("t.bin", tokens, None, [3, 4, 5, 9, 255])
    assert struct.unpack("<13i", Path("t.bin").read_bytes()[: 13 * 4])[4:] == (3, 3, 5, 9, 9, 255, 255, 0, 0)
    assert formats.read_added_tokens("t.bin") == [3, 4, 5, 9, 255]
    formats.write_tokenizer("t.bin", tokens, 7)
    assert formats.read_added_tokens("t.bin") == [] and Path("t.bin").read_bytes()[16:1024] == bytes(1008)
    with pytest.raises(formats.FormatError, match="in at most 125 stretches, got 128"):
        formats.write_tokenizer("t.bin", tokens, None, range(0, 256, 2))
    raw = Path("t.bin").read_bytes()
    for fields in [(1, 5, 4), (1, -1, 4), (1, 0, 256), (2, 1, 5, 5, 6), (1, 6, 8)]:
        Path("t.bin").write_bytes(raw[:16] + struct.pack(f"<{len(fields)}i", *fields) + raw[16 + 4 * len(fields) :])
        with pytest.raises(formats.FormatError, match="expected added tokens from"):
            formats.read_added_tokens("t.bin")


# ---------------------------------------------------------------------------------------------------------------------
# white space


@pytest.mark.parametrize("space", [" ", "\n", "\u3000", " \t\n"])
def test_long_white_space(space, monkeypatch):
    """Cut or not, the ids are tiktoken's; and what overflows tiktoken's pattern has an encoding."""
    tokens = [token.encode() if token == "<|endoftext|>" else tokenize.token_bytes(token) for token in BASE]
    tokenizer = BpeTokenizer("t", tokens, 263)
    texts = [
        f"{before}{space * 40}{after}" for before in ("", "a", "a ") for after in ("", "w", " w", "'s", "\x1c", "é")
    ]
    expected = [tokenizer.encode([(text, True)]).tolist() for text in texts]
    together = tokenizer.encode([(text, True) for text in texts]).tolist()
    assert together == sum(expected, [])
    long = f"a{space * 1_000_000}w"
    ids = tokenizer.encode([(long, True)])
    assert b"".join(tokenizer.tokens[id] for id in ids[1:]) == long.encode()
    monkeypatch.setattr(tokenize, "LONG_SPACE", 30)
    monkeypatch.setattr(tokenize, "_LONG_SPACE", re.compile(f"{tokenize.SPACE}{{30,}}"))
    assert [tokenizer.encode([(text, True)]).tolist() for text in texts] == expected
    assert tokenizer.encode([(text, True) for text in texts]).tolist() == together


# ---------------------------------------------------------------------------------------------------------------------
# tensors


def check_logits(model, path="folder.bin"):
    config, tensors = formats.read_checkpoint(path)
    tokens = torch.randint(config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = model(tokens).logits
        ours, _ = reference.forward({name: torch.tensor(values) for name, values in tensors.items()}, config, tokens)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def save_only_lm_head(model):
    model.save_pretrained("folder")
    Path("folder/model.safetensors").unlink()
    save_model(model, "folder/model.safetensors")
    assert "transformer.wte.weight" not in load_file("folder/model.safetensors")


def wrapped(change):
    def save(model):
        model.save_pretrained("folder")
        tensors = load_file("folder/model.safetensors")
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
        save_file({change(name): tensor for name, tensor in tensors.items()}, "folder/model.safetensors")

    return save


def save_torch(model, **options):
    model.save_pretrained("folder")
    Path("folder/model.safetensors").unlink()
    torch.save(model.state_dict(), "folder/pytorch_model.bin", **options)


def save_torch_shards(model):
    model.save_pretrained("folder")
    Path("folder/model.safetensors").unlink()
    names = list(model.state_dict())
    places = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(names)}
    for file in set(places.values()):
        torch.save({name: model.state_dict()[name] for name in names if places[name] == file}, f"folder/{file}")
    Path("folder/pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(save_only_lm_head, id="lm_head"),
        pytest.param(wrapped(lambda name: f"_orig_mod.{name}"), id="compiled"),
        pytest.param(wrapped(lambda name: f"module.{name}"), id="distributed"),
        pytest.param(wrapped(lambda name: f"_orig_mod.module.{name}"), id="both"),
        pytest.param(wrapped(lambda name: name.replace(".h.1.", ".h.1._orig_mod.")), id="a compiled layer"),
        pytest.param(save_torch, id="pytorch"),
        pytest.param(lambda model: save_torch(model, _use_new_zipfile_serialization=False), id="old pytorch"),
        pytest.param(save_torch_shards, id="pytorch shards"),
    ],
)
def test_other_names_and_files(save):
    model = small_model(261)
    save(model)
    assert main(["weights", "folder"]) == 0
    check_logits(model)


def test_names_that_come_twice(capsys):
    small_model(261).save_pretrained("folder")
    tensors = load_file("folder/model.safetensors")
    tensors |= {f"_orig_mod.{name}": tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors, "folder/model.safetensors")
    assert main(["weights", "folder"]) == 1
    assert "found both" in capsys.readouterr().err


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpt(bias, capsys):
    """ckpt.pt: linear layers stored (out, in), a padded vocabulary, perhaps no biases, behind torch.compile."""
    model = small_model(261)
    state = {}
    for name, tensor in model.state_dict().items():
        if not bias and name.endswith(".bias"):
            tensor.zero_()
            continue
        transposed = re.search(r"(c_attn|c_proj|c_fc)\.weight", name)
        state[f"_orig_mod.{name}"] = tensor.T.contiguous() if transposed else tensor.clone()
    sizes = dict(n_layer=2, n_head=2, n_embd=24, block_size=16, vocab_size=261, bias=bias, dropout=0.0)
    Path("out").mkdir()
    torch.save({"model": state, "model_args": sizes, "iter_num": 3, "config": {"init_from": "scratch"}}, "out/ckpt.pt")
    assert main(["weights", "out"]) == 0
    assert "nanoGPT's GELU is exact" in capsys.readouterr().out
    check_logits(model, "out.bin")


def test_torch_files_that_are_none(capsys, monkeypatch):
    model = small_model(261)
    save_torch(model)
    path = Path("folder/pytorch_model.bin")

    class Evil:
        def __reduce__(self):
            return os.mkdir, ("owned",)

    raw = path.read_bytes()
    torch.save({"a": Evil()}, "evil.bin")
    for content, message in [
        (b"", "not a file of tensors"),
        (b"text", "not a file of tensors"),
        (raw[: len(raw) // 2], "not a file of tensors"),
        (Path("evil.bin").read_bytes(), "not a file of tensors"),
    ]:
        path.write_bytes(content)
        assert main(["weights", "folder"]) == 1
        assert message in capsys.readouterr().err
    torch.save([1], path)
    assert main(["weights", "folder"]) == 1
    assert "expected names and tensors, found list" in capsys.readouterr().err
    torch.save({"model": 1}, "folder/ckpt.pt")
    Path("folder/config.json").unlink()
    assert main(["weights", "folder"]) == 1
    assert "expected nanoGPT's model_args and model" in capsys.readouterr().err
    assert not Path("owned").exists() and not Path("folder.bin").exists()
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    assert main(["weights", "folder"]) == 1
    assert "PyTorch is not installed; install it" in capsys.readouterr().err


@pytest.mark.parametrize("names", ["x", {"a": 1}, {"a": "../other/model.safetensors"}, {"a": "/etc/passwd"}, {}, None])
def test_an_index_names_files_of_its_folder(names, capsys):
    small_model(261).save_pretrained("folder")
    Path("folder/model.safetensors").unlink()
    Path("folder/model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert main(["weights", "folder"]) == 1
    assert "expected a weight_map with names of files in the folder" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# what is there already, what changes, what is too large


def test_a_model_that_is_there_stays(capsys):
    small_model(261).save_pretrained("model")
    small_model(400).save_pretrained("other/model")
    assert main(["weights", "model"]) == 0
    before = Path("model.bin").read_bytes()
    assert main(["weights", "model"]) == 0  # the same again is no loss
    assert main(["weights", "other/model"]) == 1
    assert "model.bin is there already, and is not this model; --force replaces it" in capsys.readouterr().err
    Path("model.bin").write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    changed = Path("model.bin").read_bytes()
    assert main(["weights", "model"]) == 1
    assert "model.bin is there already, with other content" in capsys.readouterr().err
    assert Path("model.bin").read_bytes() == changed and not list(Path().glob("*.tmp"))
    assert main(["weights", "model", "--force"]) == 0
    assert Path("model.bin").read_bytes() == before


def test_a_vocabulary_that_is_there_stays(capsys):
    Path("t.txt").write_text("some text " * 30)
    flags = ["tokenizer", "t.txt", "--vocab-size", "260", "--out", "v"]
    assert main(flags) == 0
    before = Path("v/tokenizer.bin").read_bytes()
    Path("t.txt").write_text("other words " * 30)
    assert main(flags) == 1
    assert "v/tokenizer.bin is there already; --force replaces it" in capsys.readouterr().err
    assert Path("v/tokenizer.bin").read_bytes() == before
    assert main([*flags, "--force"]) == 0
    assert Path("v/tokenizer.bin").read_bytes() != before


def test_a_file_that_changes_while_it_is_read(monkeypatch, capsys):
    small_model(261).save_pretrained("folder")
    read = weights.Safetensors.read

    def replaced(self, name, shape):
        if name == "transformer.ln_f.bias":
            os.utime("folder/model.safetensors", ns=(time.time_ns(), time.time_ns()))
        return read(self, name, shape)

    monkeypatch.setattr(weights.Safetensors, "read", replaced)
    assert main(["weights", "folder"]) == 1
    assert "the file changed while it was read; run the command again" in capsys.readouterr().err
    assert not list(Path().glob("folder.bin*"))


def sparse(path, size, *fields):
    with open(path, "wb") as file:
        file.write(np.array(fields, "<i4").tobytes())
        file.truncate(size)


def test_sparse_files_of_a_terabyte(capsys):
    """Sizes are compared before anything is read: nothing is reserved."""
    config = formats.ModelConfig(8, 16, 1, 1, 8)
    size = 10**12
    sparse("tokenizer.bin", size, 20240328, 2, 2**31 - 1, -1)
    sparse("state.bin", size, 20240527, 1, 1)
    sparse("hellaswag.bin", size, 20240522, 1, 65536, 65535)
    sparse("tokens.bin", size, 20240520, 1, 5)
    sparse("model.bin", size, 20240326, 3, 1024, 50257, 2**30, 1, 2**30, 50304)
    sparse("huge.safetensors", size, 0, 100)
    for read in [
        lambda: formats.read_tokenizer("tokenizer.bin"),
        lambda: formats.read_state("state.bin", config),
        lambda: formats.read_hellaswag("hellaswag.bin"),
        lambda: formats.read_tokens("tokens.bin"),
        lambda: formats.read_checkpoint("model.bin"),
        lambda: weights.Safetensors([Path("huge.safetensors")]),
    ]:
        with pytest.raises(formats.FormatError):
            read()
    Path("t.txt").write_text("text " * 50)
    for name in ("tokenizer.bin", "meta.pkl"):
        sparse(name, size, 0)
        assert main(["prepare", "t.txt", "--tokenizer", name]) == 1
        assert f"{name}: expected a tokenizer of up to 1,073,741,824 bytes" in capsys.readouterr().err
    Path("folder").mkdir()
    for name in ("config.json", "vocab.json"):
        sparse(f"folder/{name}", size)
    assert main(["weights", "folder"]) == 1
    assert "expected at most 268,435,456 bytes of JSON" in capsys.readouterr().err


def test_shuffled_states_of_a_terabyte():
    config = formats.ModelConfig(8, 16, 1, 1, 8)
    count = formats.num_parameters(config)
    for length, size in [(2**40, 10**12 + 2**43), (2**33, 2**36)]:
        fields = np.zeros(256, "<i4")
        fields[:6] = 20240527, 1, 1, 0, 0, 1
        with open("state.bin", "wb") as file:
            file.write(fields.tobytes() + bytes(8 * count) + struct.pack("<Q", length))
            file.truncate(size)
        with pytest.raises(formats.FormatError):
            formats.read_state("state.bin", config)

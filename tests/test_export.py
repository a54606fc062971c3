"""Checkpoint to Hugging Face and back: transformers computes our logits, tokenizes as tiktoken, and no byte changes."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiktoken
import tokenizers
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm_mojo import export, formats, reference
from llm_mojo.__main__ import main
from llm_mojo.tokenize import END_OF_TEXT, byte_alphabet, read_bpe, token_bytes

# The pattern of the GPT-2 release.
PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEXT = "It's 1975, and  the naïve café — 東京 🙂 \t\r\nsays: don't\n\n  you'll see; the cat, the dog, the 1975th hen."
CHARACTERS = sorted(set(TEXT))
pytestmark = pytest.mark.usefixtures("one_thread")


def random_texts(count):
    """Texts of the characters of TEXT, so that every vocabulary has them."""
    rng = random.Random(0)
    return ["", " ", *("".join(rng.choices(CHARACTERS, k=rng.randint(1, 30))) for _ in range(count))]


def trained_bpe(size):
    """Tokens of a byte-level BPE that Hugging Face's trainer has found, in order of their ids, then end of text."""
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size - 1, show_progress=False, initial_alphabet=list(byte_alphabet())
    )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    vocab = tokenizer.get_vocab()
    return [token_bytes(token) for token in sorted(vocab, key=vocab.get)] + [END_OF_TEXT.encode()]


def tiktokens_encoder(tokens):
    """tiktoken's ids of a text; the last token is end of text."""
    ranks = {token: id for id, token in enumerate(tokens[:-1])}
    special = {END_OF_TEXT: len(tokens) - 1}
    engine = tiktoken.Encoding("own", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
    return lambda text: engine.encode(text, allowed_special={END_OF_TEXT})


BPE = trained_bpe(310)
BYTES = [bytes([value]) for value in range(256)] + [END_OF_TEXT.encode()]
VOCABULARIES = {  # tokens, end of text, the referee's ids of a text
    "bpe": (BPE, 309, tiktokens_encoder(BPE)),
    "byte": (BYTES, 256, tiktokens_encoder(BYTES)),
    "char": ([c.encode() for c in CHARACTERS], None, lambda text: [CHARACTERS.index(c) for c in text]),
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_model(name, kind="bpe", dtype="float32"):
    """Writes NAME.bin and NAME_tokenizer.bin, 2 layers and a context of 32."""
    tokens, eot, _ = VOCABULARIES[kind]
    config = formats.ModelConfig(32, len(tokens), 2, 2, 24)
    tensors = reference.init_tensors(config, seed=2, spread=True)
    formats.write_checkpoint(f"{name}.bin", config, tensors, dtype)
    formats.write_tokenizer(f"{name}_tokenizer.bin", tokens, eot)
    return config, tensors


def run(*arguments, status=0):
    assert main([*map(str, arguments)]) == status


def error_of(capsys, *arguments):
    capsys.readouterr()
    run("export", *arguments, status=1)
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    return message


def files(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_there_and_back_gives_the_same_bytes(kind, dtype, capsys):
    """From our folder, and from what transformers makes of it after loading it."""
    make_model("m", kind, dtype)
    run("export", "m.bin", "--to", "ours")
    model, tokenizer = AutoModelForCausalLM.from_pretrained("ours"), AutoTokenizer.from_pretrained("ours")
    assert model.dtype == getattr(torch, dtype) and model.lm_head.weight is model.transformer.wte.weight
    model.save_pretrained("theirs")
    tokenizer.save_pretrained("theirs")
    for folder in ("ours", "theirs"):
        run("weights", folder, "--out", "back/m.bin", "--dtype", dtype)
        assert files("back") == {name: Path(name).read_bytes() for name in ("m.bin", "m_tokenizer.bin")}


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_tokenizer(kind):
    tokens, eot, expected = VOCABULARIES[kind]
    make_model("m", kind)
    run("export", "m.bin", "--to", "folder")
    tokenizer = AutoTokenizer.from_pretrained("folder")
    assert len(tokenizer) == tokenizer.vocab_size == len(tokens) and tokenizer.model_max_length == 32
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == eot
    for text in [TEXT, *random_texts(300)]:
        ids = tokenizer.encode(text)
        assert ids == expected(text)
        assert tokenizer.decode(ids) == text
    if eot is None:
        with pytest.raises(Exception, match="Missing"):
            tokenizer.encode("Ω")
    else:
        assert tokenizer.encode(f"a{END_OF_TEXT}b") == expected(f"a{END_OF_TEXT}b")
        assert expected(f"a{END_OF_TEXT}b")[1] == eot


def test_gpt2s_own_vocabulary(gpt2_files):
    merges, vocabulary = gpt2_files
    ranks = read_bpe(merges, vocabulary)
    tokens = sorted(ranks, key=ranks.get) + [END_OF_TEXT.encode()]
    config = formats.ModelConfig(max_seq_len=8, vocab_size=50257, num_layers=1, num_heads=1, channels=2)
    formats.write_checkpoint("m.bin", config, reference.init_tensors(config))
    formats.write_tokenizer("gpt2_tokenizer.bin", tokens, 50256)
    run("export", "m.bin", "--to", "folder")
    # As published: the same merges and the same ids.
    assert json.loads(Path("folder/vocab.json").read_text()) == json.loads(vocabulary.read_text())
    assert Path("folder/merges.txt").read_text().split("\n")[1:] == merges.read_text().split("\n")[1:]
    tokenizer = AutoTokenizer.from_pretrained("folder")
    expected = tiktokens_encoder(tokens)
    for text in [TEXT, *random_texts(300)]:
        assert tokenizer.encode(text) == expected(text)


def test_generation_config():
    make_model("m")
    run("export", "m.bin", "--to", "folder")
    model, tokenizer = AutoModelForCausalLM.from_pretrained("folder"), AutoTokenizer.from_pretrained("folder")
    assert model.generation_config.eos_token_id == model.config.eos_token_id == 309
    prompts = tokenizer(["the"], return_tensors="pt")
    text = tokenizer.batch_decode(model.generate(**prompts, max_new_tokens=5, do_sample=False))
    assert text[0].startswith("the")


def test_transformers_logits_are_ours(mojo_program):
    """test_gpt2.mojo compares its logits with those of transformers, and the rest with the reference."""
    config, tensors = make_model("m")
    run("export", "m.bin", "--to", "folder")
    x, y = reference.random_batch(config, B=3, T=32)
    reference.write_reference("m", config, tensors, x, y)
    state = formats.read_debug_state("m_debug_state.bin", config)
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained("folder")(torch.tensor(x).long()).logits
    formats.write_debug_state("theirs.bin", x, y, theirs.numpy(), state.loss, state.grads, config)
    flags = ["-e", "m.bin", "--debug-state", "theirs.bin", "--losses", "m_losses.txt", "--tolerance", "1e-5"]
    assert "passed: all" in mojo_program("test_gpt2.mojo").output(*flags)


def test_perplexity_as_transformers_has_it(mojo_program):
    """The sliding window of transformers' guide: labels that do not count are -100."""
    config, _ = make_model("m")
    run("export", "m.bin", "--to", "folder")
    model = AutoModelForCausalLM.from_pretrained("folder")
    T, stride, tokens = 16, 7, np.random.default_rng(0).integers(config.vocab_size, size=90)
    formats.write_tokens("shard.bin", tokens)
    total = counted = 0
    for begin in range(0, len(tokens), stride):
        window = torch.tensor(tokens[None, begin : begin + T + 1])
        labels = window.clone()
        if begin:
            labels[:, : T + 1 - stride] = -100
        count = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += model(window, labels=labels).loss.item() * count
        counted += count
        if begin + T + 1 >= len(tokens):
            break
    flags = ["-e", "m.bin", "-j", "shard.bin", "-t", T, "--stride", stride, "--json", "results.json"]
    mojo_program("eval_gpt2.mojo").output(*flags)
    found = json.loads(Path("results.json").read_text())["data"]
    assert found["targets"] == counted == 89
    assert found["loss"] == pytest.approx(total / counted, rel=1e-5)


def test_neither_pytorch_nor_hugging_face_is_needed():
    make_model("m")
    code = "import sys; sys.modules |= dict.fromkeys(['torch', 'transformers', 'tokenizers', 'safetensors']);"
    code += "from llm_mojo.__main__ import main; sys.exit(main())"
    subprocess.run([sys.executable, "-c", code, "export", "m.bin", "--to", "folder"], check=True)
    assert set(files("folder")) == set(export.FILES)


# ---------------------------------------------------------------------------------------------------------------------
# which checkpoint, which tokenizer


def test_a_run(tmp_path, capsys):
    """Its newest complete checkpoint, with the tokenizer that it was given or that lies beside its data."""
    make_model("m")
    Path("run").mkdir()
    for step in (2, 10, 12):
        Path(f"run/model_{step:08}.bin").write_bytes(Path("m.bin").read_bytes())
    for step in (2, 10):
        Path(f"run/DONE_{step:08}").touch()
    assert "expected its tokenizer under one of these names, found none" in error_of(capsys, "run", "--to", "folder")
    Path("data").mkdir()
    Path("data/tokenizer.bin").write_bytes(Path("m_tokenizer.bin").read_bytes())
    Path("run/run.toml").write_text('# train_gpt2\ntrain-data = "data/my_*.bin"\nbatch-size = 4\n')
    run("export", "run", "--to", "folder")
    assert "run/model_00000010.bin" in (out := capsys.readouterr().out) and "data/tokenizer.bin" in out
    Path('its "own".bin').write_bytes(Path("m_tokenizer.bin").read_bytes())
    Path("run/run.toml").write_text('train-data = "data/my_*.bin"\ntokenizer = "its \\"own\\".bin"\n')
    run("export", "run", "--to", "folder")
    assert 'its "own".bin' in capsys.readouterr().out


@pytest.mark.parametrize("name", [b"run \xa9", b"_run $\\x^$", b'it\'s [a] "run"\t\n', "红楼梦".encode()])
def test_a_run_of_any_name(name, capsys):
    """run.toml has the bytes of the names as they are, but for what TOML escapes."""
    make_model("m")
    run_folder, data = Path(os.fsdecode(name)), Path(os.fsdecode(b"data " + name))
    run_folder.mkdir()
    data.mkdir()
    for source, target in [("m.bin", run_folder / "model_00000002.bin"), ("m_tokenizer.bin", data / "tokenizer.bin")]:
        Path(target).write_bytes(Path(source).read_bytes())
    (run_folder / "DONE_00000002").touch()
    text = json.dumps(f"{data}/x_*.bin", ensure_ascii=False)
    (run_folder / "run.toml").write_bytes(b"train-data = " + os.fsencode(text) + b"\n")
    run("export", run_folder, "--to", data / "to")
    assert set(files(data / "to")) == set(export.FILES)
    (run_folder / "log.jsonl").write_text('{"step": 1, "loss": 2, "ms": 1, "tokens": 1}\n')
    run("plot", run_folder, "--out", data / "a.png")
    run("watch", run_folder, "--to", "tensorboard")
    assert list((run_folder / "tensorboard").iterdir())


def test_mistakes(capsys):
    make_model("m")
    make_model("char", "char")
    Path("empty").mkdir()
    assert "expected a run with a complete checkpoint" in error_of(capsys, "empty", "--to", "folder")
    run("export", "none.bin", "--to", "folder", status=1)
    assert "cannot open none.bin" in capsys.readouterr().err
    run("export", "m_tokenizer.bin", "--to", "folder", status=1)
    assert "expected a model checkpoint (20240326), found a tokenizer file" in capsys.readouterr().err
    message = error_of(capsys, "m.bin", "--to", "folder", "--tokenizer", "char_tokenizer.bin")
    assert f"char_tokenizer.bin has {len(CHARACTERS)} tokens, the model 310" in message
    assert "expected the name of a folder, found a file" in error_of(capsys, "m.bin", "--to", "char.bin")
    tokens = list(VOCABULARIES["bpe"][0])
    for change, message in [
        ({300: b"zzz"}, "found b'zzz', which the tokens before it leave in 3 pieces"),
        ({5: b"no byte", 300: b"\xff\xfe"}, "expected a vocabulary with a token for each of the 256 bytes"),
    ]:
        changed = [change.get(id, token) for id, token in enumerate(tokens)]
        formats.write_tokenizer("m_tokenizer.bin", changed, 309)
        assert message in error_of(capsys, "m.bin", "--to", "folder")
    assert not Path("folder").exists()


def test_what_is_there_is_kept(capsys, monkeypatch):
    make_model("m")
    make_model("char", "char")
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    message = error_of(capsys, "m.bin", "--to", "mine")
    assert "mine holds something that is not an export of a model: notes.txt" in message
    run("export", "m.bin", "--to", "mine", "--force")
    assert set(files("mine")) == {"notes.txt", *export.FILES}

    # An export is replaced by a newer one of the same model, by that of another only with --force; and then nothing of
    # it is left that does not belong to the new one.
    run("export", "m.bin", "--to", "folder")
    before = files("folder")
    run("export", "m.bin", "--to", "folder")
    assert "folder holds an export of another run or checkpoint" in error_of(capsys, "char.bin", "--to", "folder")
    assert files("folder") == before
    run("export", "char.bin", "--to", "folder", "--force")
    assert set(files("folder")) == set(export.FILES) - {"vocab.json", "merges.txt"}
    assert AutoTokenizer.from_pretrained("folder").decode([0]) == CHARACTERS[0]
    run("export", "m.bin", "--to", "folder", "--force")
    assert files("folder") == before

    # But transformers' own folder is not.
    AutoModelForCausalLM.from_pretrained("folder").save_pretrained("theirs")
    assert "theirs holds something that is not an export" in error_of(capsys, "m.bin", "--to", "theirs")

    # A disk that is full spoils nothing.
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_safetensors", full)
    for folder in ("folder", "new"):
        run("export", "char.bin", "--to", folder, "--force", status=1)
        assert f"{folder}/model.safetensors: No space left on device" in capsys.readouterr().err
    assert files("folder") == before and not Path("new").exists() and not list(Path().glob("*.tmp"))


def test_a_killed_export_is_tidied_up(capsys):
    """What is provably ours and of no living process goes with the next export; what only looks so stays."""
    make_model("m")
    code = """
import os, signal, sys
from llm_mojo import __main__, export
export.write_safetensors = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
__main__.main(["export", "m.bin", "--to", "folder"])
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    (left,) = Path().glob("folder.*.tmp")
    Path("folder.0123abcd.llm-mojo.tmp").mkdir()
    Path("folder.0123abcd.llm-mojo.tmp/mine").touch()
    Path("folder.123.tmp").touch()
    run("export", "m.bin", "--to", "folder")
    assert not left.exists() and set(files("folder")) == set(export.FILES)
    assert Path("folder.0123abcd.llm-mojo.tmp/mine").exists() and Path("folder.123.tmp").exists()


def test_padding_that_is_not_zero_is_left_out(capsys):
    config, tensors = make_model("m")
    tensors["wte"][config.vocab_size :] = 1
    formats.write_checkpoint("padded.bin", config, tensors)
    run("export", "padded.bin", "--to", "folder", "--tokenizer", "m_tokenizer.bin")
    assert "the padding rows of wte are not zero" in capsys.readouterr().out
    run("weights", "folder", "--out", "back.bin")
    assert Path("back.bin").read_bytes() == Path("m.bin").read_bytes()

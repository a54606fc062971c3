"""Vocabularies of one's own: llm.c's file, tokenizers, transformers and tiktoken give the same ids."""

import json
import math
import random
from pathlib import Path

import pytest
import tokenizers
import transformers

from llm_mojo import formats
from llm_mojo.__main__ import main
from llm_mojo.tokenize import END_OF_TEXT, byte_alphabet, read_tokenizer_file
from vocabularies import TRICKY, assert_equal

V = 4096


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("tests/programs/encode.mojo")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, documents):
    """A vocabulary learnt from Python's documentation."""
    path = tmp_path_factory.mktemp("vocabulary")
    lines = (json.dumps({"text": document}) + "\n" for document in documents)
    (path / "docs.jsonl").write_text("".join(lines))
    assert main(["tokenizer", str(path / "docs.jsonl"), "--vocab-size", str(V), "--out", str(path / "v")]) == 0
    return path / "v"


def test_ids_are_in_the_order_of_the_merges(folder):
    tokens, eot = formats.read_tokenizer(folder / "tokenizer.bin")
    assert len(tokens) == V and eot == V - 1 and tokens[eot] == END_OF_TEXT.encode()
    assert tokens[:256] == [bytes([value]) for value in byte_alphabet().values()]
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    alphabet = byte_alphabet()
    merged = [bytes(alphabet[c] for c in a + b) for a, b in model["merges"]]
    assert merged == tokens[256:-1] and len(set(tokens)) == V


def test_the_files_are_what_the_trainer_has_found(folder, documents):
    """Its own tokenizer.json and ours, which is made from the order of the tokens alone."""
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=V - 1, min_frequency=2, initial_alphabet=alphabet)
    trained.train_from_iterator(documents, trainer)
    ours = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ours.get_vocab() == trained.get_vocab() | {END_OF_TEXT: V - 1}
    assert json.loads(ours.to_str())["model"]["merges"] == json.loads(trained.to_str())["model"]["merges"]


def test_all_readers_give_the_same_ids(folder, documents):
    ours = read_tokenizer_file(folder)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    rng = random.Random(0)
    letters = [*"aeinorst  \n'", "the", " self", "\u00e9", "\u6771", "\U0001f642", "\x00", "__", "  "]
    strings = ["".join(rng.choices(letters, k=rng.randint(0, 40))) for _ in range(3000)]
    for text in [*documents[:1500], *TRICKY, *strings]:
        ids = theirs.encode(text).ids
        assert ours.encode([(text, False)]).tolist() == ids
        assert theirs.decode(ids, skip_special_tokens=False) == text
    for text in [*documents[:50], *TRICKY]:
        assert auto(text)["input_ids"] == theirs.encode(text).ids
        assert auto.decode(auto(text)["input_ids"]) == text
    assert auto(END_OF_TEXT)["input_ids"] == [V - 1] and auto.eos_token_id == V - 1 and len(auto) == V


def test_prepare_with_it(folder, documents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    expected = [id for document in documents for id in [V - 1, *theirs.encode(document).ids]]
    for place in (folder, folder / "tokenizer.bin"):
        assert main(["prepare", str(folder.parent / "docs.jsonl"), "--tokenizer", str(place)]) == 0
        parts = [formats.read_tokens(f"data/docs/docs_{split}.bin").tolist() for split in ("train", "val")]
        assert sum(parts, []) == expected
    assert Path("data/docs/tokenizer.bin").read_bytes() == (folder / "tokenizer.bin").read_bytes()


def make(tmp_path, text, size, status=0):
    (tmp_path / "t.txt").write_text(text)
    command = ["tokenizer", str(tmp_path / "t.txt"), "--vocab-size", str(size), "--out", str(tmp_path / "v")]
    assert main(command) == status
    return formats.read_tokenizer(tmp_path / "v/tokenizer.bin")[0] if status == 0 else None


def test_long_tokens(tmp_path):
    """A line that repeats: without a limit, tokens would double until they have thousands of bytes."""
    tokens = make(tmp_path, "=" * 4000 + "\n" + "-" * 1000, 300)
    assert max(map(len, tokens)) <= 255
    assert len(read_tokenizer_file(tmp_path / "v").encode([("=" * 1000, False)])) < 20


def test_little_text(tmp_path, capsys):
    assert len(make(tmp_path, "ababab ababab", 1000)) < 270
    assert "the text has no more than" in capsys.readouterr().out
    make(tmp_path, "text", 256, status=1)
    assert "--vocab-size: expected 257 or more" in capsys.readouterr().err


def test_the_programs_give_the_same_ids(folder, documents, encode):
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [*documents[:1000], *TRICKY]
    assert_equal(texts, encode(folder / "tokenizer.bin", texts), [theirs.encode(text).ids for text in texts])


def test_training(folder, mojo_program, tmp_path, monkeypatch):
    """From text to text with a vocabulary of one's own; one of another kind is refused."""
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", str(folder.parent / "docs.jsonl"), "--tokenizer", str(folder)]) == 0
    train = mojo_program("train_gpt2.mojo")
    flags = ["-i", "data/docs/*_train.bin", "-j", "data/docs/*_val.bin", "--n-layer", 1, "--n-head", 2, "--n-embd", 16]
    flags += ["-b", 2, "-t", 32, "-x", 3, "-m", 1, "-s", 3, "-g", 20, "-o", "run"]
    assert "step    3/3" in train.output(*flags)
    log = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert abs(log[0]["val_loss"] - math.log(V)) < 0.5
    assert formats.map_checkpoint("run/model_00000003.bin")[0].vocab_size == V
    tokens, eot = formats.read_tokenizer(folder / "tokenizer.bin")
    formats.write_tokenizer("other.bin", [tokens[1], tokens[0], *tokens[2:]], eot)
    error = train.error(*flags, "-y", 0, "--tokenizer", "other.bin")
    assert (
        "data and tokenizer do not agree: the data (data/docs/manifest.json) was made with the tokenizer v of 4096"
        in error
    )
    error = train.error(*flags, "-y", 0, "--vocab-size", 5000, "--tokenizer", "")
    assert "data and model do not agree" in error and "the model has 5000" in error

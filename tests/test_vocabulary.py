"""Vocabularies of one's own: llm.c's file, tokenizers, transformers and tiktoken give the same ids."""

import json
import random
from pathlib import Path

import pytest
import tokenizers
import transformers
from test_tokenize import TRICKY

from llm_mojo import formats, pydocs, vocabulary
from llm_mojo.__main__ import main
from llm_mojo.tokenize import END_OF_TEXT, byte_alphabet, read_tokenizer_file

V = 4096


@pytest.fixture(scope="module")
def documents():
    return pydocs.documents()


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


def test_merges_out_of_order_are_refused():
    """Readers of ranks would merge other pairs than readers of merges."""
    letters = list(byte_alphabet())
    vocab = {text: id for id, text in enumerate([*letters, "abc", "ab"])}
    wrong = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[("b", "c"), ("a", "b")][1:]))
    with pytest.raises(vocabulary.Error, match="not in the order of their ids"):
        vocabulary._check(wrong, [text.encode() for text in vocab])

"""Tokenizers: GPT-2's BPE on a toy vocabulary and on the published one, characters, bytes."""

import pickle
import random

import numpy as np
import pytest
import regex

from llm_mojo import Error, formats, tokenize
from llm_mojo.tokenize import BpeTokenizer, ByteTokenizer, CharTokenizer, UnknownCharacter, gpt2_tokenizer
from vocabularies import EOT_TEXT, TRICKY, write_toy


def decode(tokenizer, ids):
    return b"".join(tokenizer.tokens[id] for id in ids)


def test_bpe_merges_in_order(toy):
    assert toy.eot == 260 and len(toy.tokens) == 261
    assert toy.tokens[256:] == [b"he", b"ll", b"hell", b" w", EOT_TEXT.encode()]
    ids = toy.encode([("hello world", True)]).tolist()
    assert ids == [260, 258, toy.tokens.index(b"o"), 259, *(toy.tokens.index(c.encode()) for c in "orld")]


def test_bpe_ids_of_bytes_are_in_gpt2s_order(toy):
    assert toy.tokens[0] == b"!" and toy.tokens[ord("~") - ord("!")] == b"~"
    assert sorted(toy.tokens[:256]) == [bytes([value]) for value in range(256)]
    assert toy.tokens[188] == b"\x00" and toy.tokens[220] == b" "  # after 188 printable ones


@pytest.mark.parametrize("text", TRICKY)
def test_bpe_decodes_to_the_text(toy, text):
    assert decode(toy, toy.encode([(text, False)])) == text.encode()


def test_bpe_of_several_documents(toy):
    ids = toy.encode([("he", True), ("", True), ("ll", False), ("w", True)]).tolist()
    assert ids == [260, 256, 260, 257, 260, toy.tokens.index(b"w")]


def test_text_that_spells_end_of_text_is_ordinary(toy):
    ids = toy.encode([(f"he{EOT_TEXT}", True), ("he", True)]).tolist()
    assert ids.count(260) == 2 and ids[0] == 260 and ids[-2:] == [260, 256]
    assert decode(toy, ids[1:-2]) == f"he{EOT_TEXT}".encode()


def test_vocabulary_files_that_do_not_belong_together(tmp_path):
    folder, other = write_toy(tmp_path / "a"), write_toy(tmp_path / "b", [("a", "b")])
    with pytest.raises(Error, match="does not belong to"):
        tokenize.read_bpe(folder / "vocab.bpe", other / "encoder.json")


def test_pattern_is_that_of_the_gpt2_release():
    rng = random.Random(1)
    released = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    ours = regex.compile(tokenize.GPT2_PATTERN)
    alphabet = ["ll", *"as'4? \n\té\u3000東"]
    for _ in range(2000):
        text = "".join(rng.choices(alphabet, k=rng.randint(0, 14)))
        assert ours.findall(text) == released.findall(text)


def test_char():
    tokenizer = CharTokenizer(sorted(set("hello é")))
    assert tokenizer.tokens == [b" ", b"e", b"h", b"l", b"o", "é".encode()]
    assert tokenizer.eot is None
    assert tokenizer.encode([("hé", True), ("o", True)]).tolist() == [2, 5, 4]
    with pytest.raises(UnknownCharacter, match=r"character 'x' \(U\+0078\) is not among the 6"):
        tokenizer.encode([("he", True), ("x", False)])
    with pytest.raises(UnknownCharacter, match=r"'東'"):
        tokenizer.encode([("東", True)])


def test_char_ids_are_in_the_order_given():
    tokenizer = CharTokenizer("cba")
    assert tokenizer.tokens == [b"c", b"b", b"a"]
    assert tokenizer.encode([("abc", True)]).tolist() == [2, 1, 0]


def test_byte():
    tokenizer = ByteTokenizer()
    assert tokenizer.encode([("é", True), (b"\xff\x00", False)]).tolist() == [256, 0xC3, 0xA9, 0xFF, 0]
    assert len(tokenizer.tokens) == 257 and tokenizer.tokens[65] == b"A" and tokenizer.tokens[256] == EOT_TEXT.encode()
    everything = bytes(range(256))
    assert decode(tokenizer, tokenizer.encode([(everything, False)])) == everything


def test_published_gpt2(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = gpt2_tokenizer()
    assert len(tokenizer.tokens) == 50257 and tokenizer.eot == 50256
    assert tokenizer.tokens[50256] == EOT_TEXT.encode() and tokenizer.tokens[262] == b" the"
    assert tokenizer.encode([("Hello world", True)]).tolist() == [50256, 15496, 995]
    for text in TRICKY:
        assert decode(tokenizer, tokenizer.encode([(text, False)])) == text.encode()


def test_published_gpt2_is_tiktokens(gpt2_files, monkeypatch):
    """The same ranks as tiktoken's own reader makes from the two files."""
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    ranks = data_gym_to_mergeable_bpe_ranks(*map(str, gpt2_files))
    assert tokenize.read_bpe(*gpt2_files) == ranks
    assert np.array_equal(sorted(ranks.values()), np.arange(50256))


# ---------------------------------------------------------------------------------------------------------------------
# tokenizers from files


def test_meta_is_nanogpts(tmp_path):
    """nanoGPT's own lines: what its prepare.py dumps is read, what we dump its train.py and sample.py can use."""
    characters = sorted(set("hello wörld"))
    meta = {
        "vocab_size": len(characters),
        "itos": {i: c for i, c in enumerate(characters)},
        "stoi": {c: i for i, c in enumerate(characters)},
    }
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps(meta))
    assert tokenize.read_meta(path) == characters
    assert tokenize.read_tokenizer_file(tmp_path).encode([("hello", True)]).tolist() == [
        meta["stoi"][c] for c in "hello"
    ]
    tokenize.write_meta(path, characters)
    assert pickle.loads(path.read_bytes()) == meta


def doubling(times):
    """A pickle of a dictionary whose key is a tuple of tuples, twice as many each time: its hash takes for ever."""
    value = ()
    for _ in range(times):
        value = (value, value)
    return b"\x80\x02}" + pickle.dumps(value, 2)[2:-1] + b"K\x01s."


@pytest.mark.parametrize(
    "content",
    [
        b"no pickle",
        pickle.dumps([1]),
        pickle.dumps({"vocab_size": 1, "itos": {0: "ab"}, "stoi": {"ab": 0}}),
        pickle.dumps({"vocab_size": 2, "itos": {0: "a"}, "stoi": {"a": 0}}),
        pickle.dumps({"vocab_size": 1, "itos": {0: "a"}, "stoi": {"a": 1}}),
        pickle.dumps(print),
        b"",
        pickle.dumps({"vocab_size": 2**62, "itos": {0: "a"}, "stoi": {"a": 0}}),
        pickle.dumps({"vocab_size": True, "itos": {0: "a"}, "stoi": {"a": 0}}),
        pickle.dumps({"vocab_size": 1, "itos": 7, "stoi": {"a": 0}}),
        pickle.dumps({"vocab_size": 1, "itos": {0: "\ud800"}, "stoi": {"\ud800": 0}}),
        b"\x80\x04}r\xff\xff\xff\xff.",  # a place in a memory of 4 billion
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",  # a text of 8 EB
        b"(" * 100_000 + b"d" * 100_000 + b".",
        doubling(60),
    ],
)
def test_meta_of_another_kind(tmp_path, content):
    """Also one that would run code when it is read."""
    (tmp_path / "meta.pkl").write_bytes(content)
    with pytest.raises(Error, match="meta.pkl: expected nanoGPT's meta.pkl"):
        tokenize.read_meta(tmp_path / "meta.pkl")


def test_tokenizer_files(tmp_path, toy):
    for tokenizer in (toy, ByteTokenizer(), CharTokenizer("bé a")):
        path = tmp_path / "mine.bin"
        formats.write_tokenizer(path, tokenizer.tokens, tokenizer.eot)
        again = tokenize.read_tokenizer_file(path)
        assert type(again) is type(tokenizer) and (again.tokens, again.eot) == (tokenizer.tokens, tokenizer.eot)
        assert again.encode([("a bé", True)]).tolist() == tokenizer.encode([("a bé", True)]).tolist()
    assert tokenize.read_tokenizer_file(path).name == "char"


def test_tokenizer_files_of_another_kind(tmp_path):
    with pytest.raises(Error, match="expected tokenizer.bin or meta.pkl in the folder"):
        tokenize.read_tokenizer_file(tmp_path)
    with pytest.raises(Error, match="name the tokenizer.bin beside the .json"):
        tokenize.read_tokenizer_file(tmp_path / "tokenizer.json")
    formats.write_tokenizer(tmp_path / "words.bin", [b"two", b"words"], None)
    with pytest.raises(Error, match="expected the 256 bytes first"):
        tokenize.read_tokenizer_file(tmp_path / "words.bin")


def test_bpe_crosses_to_another_process(toy):
    again = pickle.loads(pickle.dumps(toy))
    assert isinstance(again, BpeTokenizer) and again.encode([("hell", True)]).tolist() == [260, 258]

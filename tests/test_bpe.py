"""llm/text/tokenizer.mojo's encoder against tiktoken (GPT-2's vocabulary) and Hugging Face tokenizers (one's own)."""

import numpy as np
import pytest
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from llm_mojo import formats, unicode_table
from llm_mojo.tokenize import END_OF_TEXT, ByteTokenizer, read_bpe, token_bytes
from mojo_programs import ROOT
from vocabularies import assert_equal

CODES = np.array([code for code in range(0x110000) if not 0xD800 <= code < 0xE000], dtype="<u4")


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("tests/programs/encode.mojo")


@pytest.fixture(scope="session")
def gpt2(gpt2_files):
    ranks = read_bpe(*gpt2_files)
    special = {END_OF_TEXT: len(ranks)}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


@pytest.fixture(scope="session")
def gpt2_file(gpt2, tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt2") / "tokenizer.bin"
    tokens = [gpt2.decode_single_token_bytes(token) for token in range(gpt2.n_vocab)]
    formats.write_tokenizer(path, tokens, gpt2.eot_token)
    return path


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """All pairs of bytes, in random order of merging, for tiktoken and in a file.

    GPT-2 has no tokens of both letters and digits, say, so a wrong cut between them shows only with others.
    """
    tokens = [bytes([value]) for value in range(256)]
    tokens += [bytes(divmod(int(pair), 256)) for pair in np.random.default_rng(0).permutation(65_536)]
    path = tmp_path_factory.mktemp("pairs") / "tokenizer.bin"
    formats.write_tokenizer(path, tokens, None)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return tiktoken.Encoding("pairs", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={}), path


def assert_as_tiktoken(encode, engine, path, texts):
    assert_equal(texts, encode(path, texts), [engine.encode_ordinary(text) for text in texts])


def test_two_megabytes_of_pydocs(documents, encode, gpt2, gpt2_file):
    text = "".join(documents)
    assert_as_tiktoken(encode, gpt2, gpt2_file, [(text + text[::-1])[:2_000_000]])


def test_every_character(encode, gpt2, gpt2_file):
    assert_as_tiktoken(encode, gpt2, gpt2_file, list(map(chr, CODES.tolist())))


def test_every_character_in_pairs(encode, gpt2, gpt2_file, pairs):
    """With a letter, a space, a digit and an apostrophe before and after it, a line each."""
    blocks = np.array_split(CODES, 64)
    texts = ["".join(f"a{c}a\n {c} \n1{c}1\n'{c}'\n" for c in map(chr, block)) for block in blocks]
    for engine, path in ((gpt2, gpt2_file), pairs):
        assert_equal(texts, encode(path, texts), [engine.encode_to_numpy(text) for text in texts])


@pytest.mark.long
@pytest.mark.parametrize("part", range(16))
def test_every_pair_by_itself(part, encode, gpt2, gpt2_file):
    texts = [pair for c in map(chr, CODES[part::16]) for other in "a 1'" for pair in (other + c, c + other)]
    assert_as_tiktoken(encode, gpt2, gpt2_file, texts)


ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz" * 2,
    "'''''sdmtlvreSDMTLVRE  ",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789²½Ⅷ٣१৭一〇",
    " " * 8,
    " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2003\u2007\u200a\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff",
    "".join(map(chr, range(0x21, 0x30))) + "[]{}()<>|\\~`^_@:;?",
    "".join(map(chr, [*range(32), *range(0x7F, 0xA0)])),
    "àéîõüßçñøåæœŁžİıſǅʰˢ",
    "абвгдежзийклмнопѐђ",
    "αβγδεζάέήίΰϊϋ",
    "אבגדהוזחְֱֲֳ",
    "ابتثجحخدذًٌٍَُِّْ",
    "अआइईउऊकखगघािीुूृ्ंः",
    "กขฃคฅฆงจฉช่้๊๋็ัิี",
    "中文字符日本語漢字ひらがなカタカナー々〆。、「」",
    "한국어한글ㄱㄴㄷ각",
    "😀😁😂🤣🧑‍🚀👨‍👩‍👧‍👦🏳️‍🌈🇩🇪🇫🇷👍🏽❤️✨",
    "\u0300\u0301\u0308\u0323\u0327\u034f\u20dd\ufe0f\u200d\u200c",
    "\u1c89\ua7cb\U000105c0\U00016d40\u088f\U00011de0\U0001ccf0\U0010ffff\ue000\ufffd\U000e0001\u0378",
]


def random_strings(count, seed):
    """Strings of up to 40 characters, each from one to four alphabets, one of which may be all of Unicode."""
    random = np.random.default_rng(seed)
    alphabets = [np.array(list(map(ord, alphabet)), dtype="<u4") for alphabet in ALPHABETS] + [CODES]
    strings = []
    for length in random.integers(1, 41, size=count):
        chosen = random.integers(len(alphabets), size=random.integers(1, 5))
        parts = [random.choice(alphabets[i], size=length) for i in chosen]
        strings.append(random.permutation(np.concatenate(parts))[:length].tobytes().decode("utf-32-le"))
    return strings


def test_random_strings(encode, gpt2, gpt2_file, pairs):
    texts = random_strings(100_000, seed=1)
    assert_as_tiktoken(encode, gpt2, gpt2_file, texts)
    assert_as_tiktoken(encode, *pairs, texts)


def test_long_pieces(encode, gpt2, gpt2_file):
    """Words too long for a search from end to end, with many merges of one kind and with many kinds."""
    random = np.random.default_rng(2)
    texts = [character * n for character in "a =-😀é中" for n in [*range(250, 262), 500, 1001, 4097]]
    for alphabet in ("ab", "abcdefghijklmnopqrstuvwxyz", "etaoinsrh", "=-", "中文字符"):
        texts += ["".join(random.choice(list(alphabet), size=n)) for n in (17, 255, 256, 257, 1000, 20_000)]
    assert_as_tiktoken(encode, gpt2, gpt2_file, texts + texts[::-1])


def test_words_that_come_again(encode, gpt2, gpt2_file):
    """Among them some that differ only in zeros at the end, and more different ones than are kept."""
    random = np.random.default_rng(7)
    zeros = [character + "\0" * n for character in ("", "~", "\x01") for n in range(1, 20)]
    words = ["".join(random.choice(list("abcdefgh"), size=n)) for n in random.integers(1, 30, size=20_000)]
    texts = [" ".join(random.choice(choices, size=50_000)) for choices in (zeros, words, words[:500])]
    texts += [word + "a" + word + "\0" for word in zeros]
    assert_as_tiktoken(encode, gpt2, gpt2_file, texts)


LINES = {
    "letter": lambda: "a" * 10_000_000,
    "letters": lambda: "".join(np.random.default_rng(6).choice(list("etaoinshrdlu"), size=10_000_000)),
    "spaces": lambda: " " * 10_000_000,
    "emoji": lambda: "😀" * 2_500_000,
    "apostrophes": lambda: "'" * 10_000_000,
    "space and letter": lambda: " " * 5_000_000 + "a" * 5_000_000,
}


@pytest.mark.parametrize("line", LINES)
def test_ten_megabytes_without_a_break(line, encode, gpt2_file):
    """Takes seconds; where it grew with the square of the length it would take longer than the program may."""
    text = LINES[line]()
    counts, tokens = encode(gpt2_file, [text])
    assert len(tokens) == counts[0] > 100_000


def test_bytes_that_are_no_utf8(encode, gpt2_file):
    """No referee here: tiktoken's byte interface merges differently. The program checks that all comes back."""
    random = np.random.default_rng(3)
    noise = random.integers(256, size=2_000_000, dtype=np.uint8).tobytes()
    cuts = np.sort(random.integers(len(noise), size=100_001))
    texts = [noise[begin:end] + b"\xff" for begin, end in zip(cuts[:-1], cuts[1:])]
    whole = "".join(random_strings(2_000, seed=4)).encode()
    texts += [whole[at : at + 9] for at in range(20_000)]
    encode(gpt2_file, texts)


SPECIAL = [
    "",
    END_OF_TEXT,
    END_OF_TEXT * 3,
    f"a{END_OF_TEXT}b",
    f"a  {END_OF_TEXT}  b",
    f"\n\n{END_OF_TEXT}\n\nb'{END_OF_TEXT}s",
    "<|endoftext|",
    "<<|endoftext|>",
    "<|endoftext<|endoftext|>|>",
    "<|ENDOFTEXT|>",
    "日本 <|endoftext|>語",
]


def test_special_tokens(encode, gpt2, gpt2_file):
    ordinary = [gpt2.encode_ordinary(text) for text in SPECIAL]
    special = [gpt2.encode(text, allowed_special={END_OF_TEXT}) for text in SPECIAL]
    assert_equal(SPECIAL, encode(gpt2_file, SPECIAL), ordinary)
    assert_equal(SPECIAL, encode(gpt2_file, SPECIAL, "special"), special)


@pytest.fixture(scope="module")
def own(documents, tmp_path_factory):
    """A vocabulary of 4,096 learnt from pydocs, for Hugging Face and in a file."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4095, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(documents[::4], trainer)
    tokens = [token_bytes(tokenizer.id_to_token(id)) for id in range(4095)] + [END_OF_TEXT.encode()]
    path = tmp_path_factory.mktemp("own") / "tokenizer.bin"
    formats.write_tokenizer(path, tokens, 4095)
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer, path


def test_a_vocabulary_of_one_s_own(own, documents, encode):
    tokenizer, path = own
    random = np.random.default_rng(5)
    words = [
        "the",
        "def",
        "self",
        " ",
        "  ",
        "\n",
        "\n    ",
        "'s",
        "''",
        "12",
        "0.5",
        "é",
        "日本",
        "😀",
        "_",
        "(x)",
        "\t",
    ]
    texts = ["".join(random.choice(words, size=30)) for _ in range(3000)]
    texts += ["".join(documents), "a" * 5000, "x=" * 3000, "".join(random.choice(list("etaoinsr"), size=5000))]
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    assert_equal(texts, encode(path, texts), [encoding.ids for encoding in encodings])
    texts = [text for text in SPECIAL if text]
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    assert_equal(texts, encode(path, texts, "special"), [encoding.ids for encoding in encodings])


def test_bytes(encode, tmp_path):
    formats.write_tokenizer(tmp_path / "tokenizer.bin", ByteTokenizer.tokens, ByteTokenizer.eot)
    texts = [bytes(range(256)), "a  été😀".encode(), END_OF_TEXT.encode(), b""]
    assert_equal(texts, encode(tmp_path / "tokenizer.bin", texts), texts)
    assert_equal(texts, encode(tmp_path / "tokenizer.bin", texts, "special"), [*texts[:2], [256], []])


def test_characters(encode, tmp_path):
    characters = sorted("\n !abcdeé日😀", reverse=True)
    formats.write_tokenizer(tmp_path / "tokenizer.bin", [character.encode() for character in characters], None)
    texts = ["abc de\n", "é日😀!", "", "日" * 100]
    for mode in ("ordinary", "special"):
        tokens = [list(map(characters.index, text)) for text in texts]
        assert_equal(texts, encode(tmp_path / "tokenizer.bin", texts, mode), tokens)


UNKNOWN = {
    "x": "character 'x' (U+0078) at position 0 (line 1)",
    "ab\nc\nde日X日": "character 'X' (U+0058) at position 8 (line 3)",
    "日日f": "character 'f' (U+0066) at position 2 (line 1)",
    "a\u1234": "character '\u1234' (U+1234) at position 1 (line 1)",
    "a\U0010ffff": "character '\U0010ffff' (U+10FFFF) at position 1 (line 1)",
    b"ab\xe9": "byte 0xE9, which is not UTF-8, at position 2 (line 1)",
    b"\x8a": "byte 0x8A, which is not UTF-8, at position 0 (line 1)",
}


@pytest.mark.parametrize("text", UNKNOWN, ids=repr)
def test_an_unknown_character_is_named(text, program, tmp_path):
    formats.write_tokenizer(tmp_path / "tokenizer.bin", [c.encode() for c in "abcde\n日"], None)
    raw = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "texts").write_bytes(np.array([1, 0, len(raw)], dtype="<i8").tobytes() + raw)
    error = program.error(tmp_path / "tokenizer.bin", tmp_path / "texts", tmp_path / "tokens", "ordinary")
    assert f"tokenizer: {UNKNOWN[text]} is not among the 7 characters of the vocabulary; remove it" in error


def test_other_vocabularies_only_decode(program, tmp_path):
    formats.write_tokenizer(tmp_path / "tokenizer.bin", [b"a", b"bc", b"\xff"], None)
    (tmp_path / "texts").write_bytes(np.array([1, 0, 1], dtype="<i8").tobytes() + b"a")
    error = program.error(tmp_path / "tokenizer.bin", tmp_path / "texts", tmp_path / "tokens", "ordinary")
    assert "expected a vocabulary with every byte or of single characters, found another one" in error


def test_the_tables_are_those_of_the_installed_tiktoken():
    """If this fails, run `python -m llm_mojo.unicode_table`: the engine knows another version of Unicode."""

    def tables(source):
        return source[source.index("comptime UNICODE_VERSION") :]

    assert tables((ROOT / "llm/text/unicode_table.mojo").read_text()) == tables(unicode_table.source())

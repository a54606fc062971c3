"""Tokenizers in Python: `Tokenizer.load("gpt2")`, `encode`, `decode`, natively; and `Tokenizer.train` for one's own."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from llm_mojo import Error
from llm_mojo.arguments import integer, token_array, utf8
from llm_mojo.engine import Handle, address_of, bytes_argument, call
from llm_mojo.files import AnyPath
from llm_mojo.formats import HEADER_BYTES, split_tokens

END_OF_TEXT = "<|endoftext|>"


class Tokenizer:
    """A vocabulary, and how text becomes its tokens: byte-level BPE (GPT-2's or one's own), bytes, or characters.

    The ids of GPT-2's vocabulary are tiktoken's. Text that spells <|endoftext|> is ordinary text unless `allow_special`.
    """

    def __init__(self, path: AnyPath):
        """Opens a tokenizer file, as `prepare`, `weights` and llm.c write them. Raises Error if it is none."""
        self.path = Path(path)
        name, size, keeper = bytes_argument(os.fsencode(self.path))
        sizes = np.zeros(2, dtype=np.int64)
        self._handle = Handle("tokenizer", name, size, after=(address_of(sizes),))
        del keeper
        # After the engine has looked at its size.
        self._file = self.path.read_bytes()
        self.vocab_size = int(sizes[0])
        self.end_of_text = int(sizes[1]) if sizes[1] >= 0 else None
        self._bytes: list[bytes] | None = None

    @classmethod
    def load(cls, name: AnyPath) -> "Tokenizer":
        """The tokenizer called "gpt2" or "byte"; or that of a tokenizer file, a folder with tokenizer.bin, or a meta.pkl."""
        path = Path(name)
        if path.is_dir() and (path / "tokenizer.bin").is_file():
            return cls(path / "tokenizer.bin")
        if path.suffix == ".bin":
            return cls(path)
        from llm_mojo.tokenize import open_tokenizer

        opened: Any = open_tokenizer(name if name in ("gpt2", "byte") else path)
        return cls._of(opened.tokens, opened.eot, getattr(opened, "added", ()))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learns a byte-level BPE of so many tokens from texts; the last token is the end of text.

        It may get fewer, if no further pair of tokens comes twice. Needs the package tokenizers.
        """
        from llm_mojo.vocabulary import learn

        size = integer("vocab_size", vocab_size, 257, 1 << 21)
        texts = [texts] if isinstance(texts, str) else texts
        tokens = learn((utf8("texts", text).decode(errors="replace") for text in texts), size - 1)
        return cls._of([*tokens, END_OF_TEXT.encode()], len(tokens))

    @classmethod
    def _of(cls, tokens: list[bytes], eot: int | None, added: Iterable[int] = ()) -> "Tokenizer":
        from llm_mojo.formats import write_tokenizer

        folder = tempfile.mkdtemp()
        try:
            write_tokenizer(Path(folder) / "tokenizer.bin", tokens, eot, added)
            return cls(Path(folder) / "tokenizer.bin")
        finally:
            shutil.rmtree(folder)

    def save(self, path: AnyPath) -> None:
        """Writes the tokenizer file, which the programs take as --tokenizer."""
        from llm_mojo.files import atomic_file

        with atomic_file(path) as file:
            file.write(self._file)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the tokenizer file, by which a run knows its own."""
        return hashlib.sha256(self._file).hexdigest()

    def __len__(self) -> int:
        return self.vocab_size

    def encode_to_numpy(self, text: str | bytes, *, allow_special: bool = False) -> np.ndarray:
        """The token ids of a text, int32. Raises ValueError if the vocabulary has only some characters, and not these."""
        raw = utf8("text", text)
        tokens = np.empty(len(raw), dtype=np.int32)
        count = np.zeros(1, dtype=np.int64)
        address, size, keeper = bytes_argument(raw)
        special = int(bool(allow_special))
        call("tokenizer_encode", self._handle.address, address, size, special, address_of(tokens), address_of(count))
        del keeper
        return tokens[: count[0]].copy()

    def encode(self, text: str | bytes, *, allow_special: bool = False) -> list[int]:
        """The token ids of a text. Raises ValueError if the vocabulary has only some characters, and not these."""
        return self.encode_to_numpy(text, allow_special=allow_special).tolist()

    def decode_bytes(self, tokens: Any) -> bytes:
        """The bytes that tokens stand for."""
        if not np.size(tokens):
            return b""
        ids = token_array("tokens", np.atleast_1d(tokens), self.vocab_size).ravel()
        words = self.words()
        return b"".join(words[id] for id in ids.tolist())

    def decode(self, tokens: Any) -> str:
        """The text that tokens stand for; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(tokens).decode(errors="replace")

    @property
    def first_token(self) -> int:
        """What a text begins with: the end of text, or in a vocabulary without one the newline, else token 0."""
        if self.end_of_text is not None:
            return self.end_of_text
        words = self.words()
        return words.index(b"\n") if b"\n" in words else 0

    def words(self) -> list[bytes]:
        """The bytes of each token, by its id."""
        if self._bytes is None:
            self._bytes, _ = split_tokens(self._file[HEADER_BYTES:], self.vocab_size)
        return self._bytes

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size:,} tokens)"


def find_tokenizer(checkpoint: Path, vocab_size: int) -> Tokenizer | None:
    """The tokenizer of a checkpoint, or None where none is found that has its vocabulary."""
    from llm_mojo import run_files

    try:
        found = Tokenizer(run_files.find_tokenizer(checkpoint, vocab_size))
    except Error:
        return None
    return found if found.vocab_size == vocab_size else None

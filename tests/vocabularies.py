"""A toy vocabulary, texts that are hard to tokenize, and the comparison of tokens."""

import itertools
import json

import numpy as np
import pytest

from llm_mojo import tokenize

EOT_TEXT = "<|endoftext|>"
TRICKY = [
    *("", " ", "\n", "\n\n ", "a", "don't", "\x1c!\x1f ?"),
    "I'll  go\tto\r\n the 3rd\u00a0floor\u3000!!  ",
    "naïve café — 東京 🙂",
]


def write_toy(folder, merges=(("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"))):
    """vocab.bpe and encoder.json with the 256 bytes and a few merges. Ġ stands for the space."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [*tokenize.byte_alphabet(), *("".join(merge) for merge in merges), EOT_TEXT]
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (folder / "encoder.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}))
    return folder


def assert_equal(texts, ours, theirs):
    """Compares (number of tokens of each text, all tokens) with a list or array of tokens for each text."""
    counts, tokens = ours
    expected_counts = np.array([len(each) for each in theirs])
    expected = np.fromiter(itertools.chain.from_iterable(theirs), dtype=np.int32)
    if np.array_equal(counts, expected_counts) and np.array_equal(tokens, expected):
        return
    length = min(len(tokens), len(expected))
    first = next(iter(np.flatnonzero(tokens[:length] != expected[:length])), length)
    i = int(np.searchsorted(np.cumsum(expected_counts), first, side="right"))
    start = int(expected_counts[:i].sum())
    pytest.fail(
        f"text {i}, {texts[i][:200]!r}, from token {first - start} on: {tokens[start:][:50]} != {theirs[i][:50]}"
    )

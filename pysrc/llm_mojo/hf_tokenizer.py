"""Turns a vocabulary into the tokenizer files of Hugging Face, without their packages.

A vocabulary is what llm.c's tokenizer file holds, the bytes of every token. Two kinds are known: byte-level BPE as
GPT-2's (its own, one's own, or none but the 256 bytes) and single characters.
"""

import json

from llm_mojo import Error
from llm_mojo.tokenize import END_OF_TEXT, byte_alphabet

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
BYTES = sorted(bytes([value]) for value in range(256))
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def tokenizer_files(tokens, eot, max_length):
    """Returns file name -> text. `tokens`: the bytes of every id; `eot`: the end-of-text id or None.

    Raises Error if the vocabulary is of neither kind.
    """
    words = [token for id, token in enumerate(tokens) if id != eot]
    config = {"model_max_length": max_length, "clean_up_tokenization_spaces": False}
    if eot is not None:
        config |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
    if sorted(token for token in words if len(token) == 1) == BYTES:
        vocab, merges = _byte_level_bpe(tokens, eot)
        lines = [f"{left} {right}\n" for left, right in merges]
        return {
            "tokenizer.json": _dump(_tokenizer(_bpe(vocab, merges), BYTE_LEVEL, BYTE_LEVEL, eot)),
            "tokenizer_config.json": _dump(config | {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}),
            "vocab.json": _dump(vocab),
            "merges.txt": "".join(["#version: 0.2\n", *lines]),
        }
    characters = [_character(token) for token in words]
    if None in characters or len(set(characters)) < len(characters):
        raise Error(
            "expected a vocabulary with a token for each of the 256 bytes, or one of different characters,"
            f" found {tokens[0]!r}, {tokens[1 % len(tokens)]!r} ...; Hugging Face's tokenizers cannot have it"
        )
    vocab = {END_OF_TEXT if id == eot else token.decode(): id for id, token in enumerate(tokens)}
    # Every character is a word: split at each, and leave nothing between them when words become a text.
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    # A character without an id raises an exception, as there is no unk_token.
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": ""}
    return {
        "tokenizer.json": _dump(_tokenizer(model, split, {"type": "Fuse"}, eot)),
        "tokenizer_config.json": _dump(config | {"tokenizer_class": "PreTrainedTokenizerFast"}),
    }


def _byte_level_bpe(tokens, eot):
    """Returns (spelling -> id, pairs of spellings in order): tokens spelled in GPT-2's byte alphabet."""
    alphabet = {value: character for character, value in byte_alphabet().items()}

    def spelled(token):
        return "".join(alphabet[value] for value in token)

    vocab = {END_OF_TEXT if id == eot else spelled(token): id for id, token in enumerate(tokens)}
    merges = [tuple(map(spelled, pair)) for pair in find_merges(tokens, eot)]
    return vocab, merges


def find_merges(tokens, eot):
    """Returns the pair of tokens that each longer token is merged from, in the order of merging, which is that of ids.

    A token's pair is what the merges before it leave of its bytes. Raises Error if that is not a pair.
    """
    ranks = {token: id for id, token in enumerate(tokens) if id != eot}
    merges = []
    for id, token in enumerate(tokens):
        if id == eot or len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            rank, at = min((ranks.get(left + right, id), at) for at, (left, right) in enumerate(zip(parts, parts[1:])))
            if rank >= id:
                break
            parts[at : at + 2] = [tokens[rank]]
        if len(parts) != 2:
            raise Error(
                f"expected tokens in the order of a BPE's merges, found token {id}, {token!r}, which the tokens before"
                f" it leave in {len(parts)} pieces; give the tokenizer file that `prepare` or `tokenizer` wrote"
            )
        merges.append(parts)
    return merges


def _character(token):
    """The character that a token is, or None."""
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return None
    return text if len(text) == 1 else None


def _bpe(vocab, merges):
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocab,
        "merges": [list(pair) for pair in merges],
    }


def _tokenizer(model, pre_tokenizer, decoder, eot):
    """The content of tokenizer.json."""
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [] if eot is None else [{"id": eot, "content": END_OF_TEXT} | special],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _dump(value):
    return json.dumps(value, ensure_ascii=False, indent=None if len(value) > 256 else 2) + "\n"

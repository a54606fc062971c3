"""Turns a vocabulary into the tokenizer files of Hugging Face, without their packages.

A vocabulary is what llm.c's tokenizer file holds, the bytes of every token. Two kinds are known: byte-level BPE as
GPT-2's (its own, one's own, or none but the 256 bytes) and single characters.
"""

import json

from llm_mojo import Error
from llm_mojo.tokenize import byte_alphabet, is_unused

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
BYTES = sorted(bytes([value]) for value in range(256))
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def tokenizer_files(tokens, eot, max_length, added=()):
    """Returns file name -> text. `tokens`: the bytes of every id; `eot`: the end-of-text id or None; `added`: ids.

    Raises Error if the vocabulary is of neither kind.
    """
    texts = {} if eot is None else {eot: _text(tokens[eot], eot)}
    texts |= {id: _text(tokens[id], id) for id in added if not is_unused(tokens[id])}
    words = [token for id, token in enumerate(tokens) if id != eot and id not in {*added}]
    config = {"model_max_length": max_length, "clean_up_tokenization_spaces": False}
    if eot is not None:
        config |= {"bos_token": texts[eot], "eos_token": texts[eot], "unk_token": texts[eot]}
    special = _added_tokens(texts, eot)
    if sorted(token for token in words if len(token) == 1) == BYTES:
        vocab, merges = _byte_level_bpe(tokens, texts)
        lines = [f"{left} {right}\n" for left, right in merges]
        return {
            "tokenizer.json": _dump(_tokenizer(_bpe(vocab, merges), BYTE_LEVEL, BYTE_LEVEL, special)),
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
    vocab = {texts[eot] if id == eot else token.decode(): id for id, token in enumerate(tokens)}
    # Every character is a word: split at each, and leave nothing between them when words become a text.
    split = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    # A character without an id raises an exception, as there is no unk_token.
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": ""}
    return {
        "tokenizer.json": _dump(_tokenizer(model, split, {"type": "Fuse"}, special)),
        "tokenizer_config.json": _dump(config | {"tokenizer_class": "PreTrainedTokenizerFast"}),
    }


def _text(token, id):
    try:
        return token.decode()
    except UnicodeDecodeError:
        raise Error(
            f"expected an added token that is UTF-8, found {token!r} ({id}); Hugging Face cannot have it"
        ) from None


def _byte_level_bpe(tokens, texts):
    """Returns (spelling -> id, pairs of spellings in order). `texts`: id -> text of the tokens that are not spelled."""
    alphabet = {value: character for character, value in byte_alphabet().items()}

    def spelled(token):
        return "".join(alphabet[value] for value in token)

    words = {id: token for id, token in enumerate(tokens) if id not in texts and not is_unused(token)}
    vocab = {spelled(token): id for id, token in words.items()}
    if twice := [text for text in texts.values() if text in vocab]:
        raise Error(
            f"expected added tokens that are no tokens of the BPE, found {twice[0]!r}; Hugging Face cannot have both"
        )
    vocab |= {text: id for id, text in texts.items()}
    merges = [tuple(map(spelled, pair)) for pair in find_merges(list(words.values()))]
    return dict(sorted(vocab.items(), key=lambda item: item[1])), merges


def find_merges(tokens):
    """Returns the pair of tokens that each longer token is merged from, in the order of merging, which is that of ids.

    `tokens`: those of the BPE, without end of text and added ones, in order. A token's pair is what the merges before it
    leave of its bytes. Raises Error if that is not a pair.
    """
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for own, token in enumerate(tokens):
        if len(token) == 1:
            continue
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            rank, at = min((ranks.get(left + right, own), at) for at, (left, right) in enumerate(zip(parts, parts[1:])))
            if rank >= own:
                break
            parts[at : at + 2] = [tokens[rank]]
        if len(parts) != 2:
            raise Error(
                f"expected tokens in the order of a BPE's merges, found {token!r}, which the tokens before"
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


def _added_tokens(texts, eot):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [{"id": id, "content": texts[id]} | flags | {"special": id == eot} for id in sorted(texts)]


def _tokenizer(model, pre_tokenizer, decoder, added):
    """The content of tokenizer.json."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def _dump(value):
    return json.dumps(value, ensure_ascii=False, indent=None if len(value) > 256 else 2) + "\n"

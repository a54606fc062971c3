"""Reads the vocabulary of a Hugging Face folder, without their packages: what transformers gives for a text, we must give too.

Added tokens stand beside the BPE: where a text has one, whole, it becomes that token before anything is merged. They come
from tokenizer.json, added_tokens.json, tokenizer_config.json and special_tokens_map.json, and are numbered as
transformers numbers them: a known one keeps its id, a new one gets the next.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from llm_mojo import Error
from llm_mojo.files import AnyPath
from llm_mojo.formats import FormatError
from llm_mojo.hf_tokenizer import BYTES, find_merges
from llm_mojo.tokenize import END_OF_TEXT, token_bytes, unused_token

LONGEST = 255  # bytes of a token in llm.c's file
LARGEST_JSON = 1 << 28  # bytes
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MORE_SPECIAL = ("additional_special_tokens", "extra_special_tokens")


class Vocabulary(NamedTuple):
    """`tokens`: the bytes of every id; `eot`: the end-of-text id or None; `added`: the ids of the other added tokens."""

    tokens: list
    eot: int | None
    added: list


class Unusable(Exception):
    """Why the vocabulary of a folder cannot be written as llm.c's tokenizer file."""


def read_vocabulary(folder: AnyPath, vocab_size: int) -> Vocabulary:
    """Returns the Vocabulary of a folder for a model of `vocab_size` tokens, or raises Unusable.

    Ids without a token, as padded models have them, get one that no text has.
    """
    folder = Path(folder)
    config = _optional(folder / "tokenizer_config.json")
    tokenizer = _optional(folder / "tokenizer.json")
    model = tokenizer.get("model")
    if isinstance(model, dict) and model.get("type") == "WordLevel":
        return _words(model, vocab_size)
    if tokenizer:
        _check_tokenizer(tokenizer)
        spelled, merges = model.get("vocab"), model.get("merges")
        added = [entry for entry in _list(tokenizer.get("added_tokens")) if isinstance(entry, dict)]
        added.sort(key=lambda entry: _number_or_0(entry.get("id")))
    else:
        spelled, merges, added = _optional(folder / "vocab.json"), _merges(folder / "merges.txt"), []
    if not _is_numbered(spelled):
        raise Unusable("found no byte-level BPE or characters in tokenizer.json or vocab.json")
    if config.get("add_prefix_space"):
        raise Unusable("its tokenizer puts a space before every text (add_prefix_space)")
    ids = _number(spelled, [*added, *_more_added(folder, config)])
    special = _special(folder, config)
    if END_OF_TEXT in spelled:
        ids.setdefault(END_OF_TEXT, spelled[END_OF_TEXT])
    tokens: list[Any] = [None] * vocab_size
    base: list[tuple[int, bytes]] = []
    for text, id in spelled.items():
        if text not in ids:
            base.append((id, _spelled_bytes(text)))
    if max((id for id, _ in base), default=0) >= vocab_size:
        raise Unusable(f"its tokens are not numbered for a vocabulary of {vocab_size}")
    for id, token in [*base, *((id, _utf8(text)) for text, id in ids.items())]:
        if id < vocab_size:
            if tokens[id] is not None:
                raise Unusable(f"two of its tokens have the number {id}")
            if not 1 <= len(token) <= LONGEST:
                raise Unusable(f"its token {id} has {len(token)} bytes; llm.c's file holds 1 to {LONGEST}")
            tokens[id] = token
    _check_merges([token for _, token in sorted(base)], merges)
    eot = next((ids[text] for text in [special.get("eos_token"), END_OF_TEXT] if text in ids), None)
    eot = eot if eot is None or eot < vocab_size else None
    holes = [id for id, token in enumerate(tokens) if token is None]
    for id in holes:
        tokens[id] = unused_token(id)
    if holes:
        print(f"{folder}: {len(holes)} of the model's {vocab_size:,} ids have no token; they are kept, unused")
    if beyond := [text for text, id in ids.items() if id >= vocab_size]:
        print(f"{folder}: the added token {beyond[0]!r} has no place in a model of {vocab_size:,}; it is left out")
    others = {id for id in ids.values() if id < vocab_size} | {*holes}
    return Vocabulary(tokens, eot, sorted(others - {eot}))


def _words(model, vocab_size):
    """Single characters, as `export` writes them."""
    vocab = model.get("vocab")
    if not _is_numbered(vocab) or sorted(vocab.values()) != list(range(vocab_size)):
        raise Unusable(f"its tokens are not numbered for a vocabulary of {vocab_size}")
    tokens = [_utf8(text) for text in sorted(vocab, key=vocab.get)]
    return Vocabulary(tokens, vocab.get(END_OF_TEXT), [])


def _is_numbered(vocab):
    return isinstance(vocab, dict) and len(vocab) > 0 and all(type(id) is int and id >= 0 for id in vocab.values())


def _spelled_bytes(text):
    try:
        return token_bytes(text)
    except KeyError as error:
        raise Unusable(f"its tokenizer has {error}, which is not in GPT-2's byte alphabet") from None


def _utf8(text):
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise Unusable(f"its token {text!r} has half a character") from None


def _check_tokenizer(tokenizer):
    """Raises Unusable for what would make other tokens than GPT-2's splitting and merging."""
    model, splitter = tokenizer.get("model"), tokenizer.get("pre_tokenizer")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise Unusable("found no byte-level BPE or characters in tokenizer.json or vocab.json")
    wrong = [
        key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback") if model.get(key)
    ]
    if tokenizer.get("normalizer") is not None:
        wrong.append("normalizer")
    as_gpt2 = isinstance(splitter, dict) and splitter.get("type") == "ByteLevel" and splitter.get("use_regex", True)
    if not as_gpt2 or splitter.get("add_prefix_space", True):
        wrong.append("pre_tokenizer")
    if wrong:
        raise Unusable(f"its tokenizer.json has a {wrong[0]} that is not GPT-2's")


def _more_added(folder, config):
    """What the other files add: entries as in tokenizer.json."""
    decoder = config.get("added_tokens_decoder")
    decoder = decoder if isinstance(decoder, dict) else {}
    entries = [decoder[id] for id in sorted(decoder, key=lambda id: int(id) if id.isdecimal() else 0)]
    older = _optional(folder / "added_tokens.json")
    entries += sorted(older, key=lambda text: _number_or_0(older[text]))
    return entries + [text for text in _special(folder, config).values() if isinstance(text, str)]


def _special(folder, config):
    """name -> text of the special tokens."""
    found = {}
    for source in (_optional(folder / "special_tokens_map.json"), config):
        for name in SPECIAL:
            if source.get(name):
                found[name] = _content(source[name])
        for name in MORE_SPECIAL:
            for number, token in enumerate(_list(source.get(name))):
                found[f"{name}{number}"] = _content(token)
    return found


def _number_or_0(value):
    return value if type(value) is int else 0


def _content(token):
    return token.get("content") if isinstance(token, dict) else token


def _number(spelled, entries):
    """Returns text -> id of the added tokens."""
    ids = {}
    for entry in entries:
        text = _content(entry)
        if not isinstance(text, str) or text in ids:
            continue
        if isinstance(entry, dict) and (
            flags := [key for key in ("lstrip", "rstrip", "single_word") if entry.get(key)]
        ):
            raise Unusable(f"its added token {text!r} looks at what stands beside it ({flags[0]})")
        if text in spelled:
            ids[text] = spelled[text]
        else:
            ids[text] = max([len(spelled), *(id + 1 for id in ids.values() if id >= len(spelled))])
    return ids


def _merges(path):
    """The pairs of merges.txt, or None."""
    if not path.is_file():
        return None
    if path.stat().st_size > LARGEST_JSON:
        raise Unusable(f"{path} has more than {LARGEST_JSON:,} bytes")
    try:
        return [
            line for line in path.read_text(encoding="utf-8").split("\n") if line and not line.startswith("#version")
        ]
    except UnicodeDecodeError:
        raise Unusable(f"{path} is not UTF-8") from None


def _check_merges(tokens, merges):
    """Raises Unusable if merging by the order of ids would not do what the merges say. `tokens`: without added ones."""
    if sorted(token for token in tokens if len(token) == 1) != BYTES:
        raise Unusable("found no byte-level BPE: a token for each of the 256 bytes")
    if merges is None:
        return
    try:
        wanted = [
            [token_bytes(part) for part in (pair.split(" ") if isinstance(pair, str) else pair)] for pair in merges
        ]
        found = find_merges(tokens)
    except (KeyError, TypeError, ValueError, Error):
        found = wanted = None
    if found is None or found != wanted:
        raise Unusable("its tokens are not numbered in the order of its merges")


def _list(value):
    return value if isinstance(value, list) else []


def _optional(path):
    return read_json_object(path) if path.is_file() else {}


def read_json_object(path: Path) -> dict:
    """The object in a JSON file of Hugging Face; FormatError if there is none."""
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise FormatError(
            f"weights: {path}: expected at most {LARGEST_JSON:,} bytes of JSON, found {size:,}; get it again"
        )
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"weights: {path}: expected JSON, found something else ({error}); get the file again"
        ) from None
    if not isinstance(value, dict):
        raise FormatError(f"weights: {path}: expected a JSON object, found {type(value).__name__}; get the file again")
    return value

"""Reads TinyStories: an archive of JSON files, each a list of stories."""

import codecs
import functools
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llm_mojo import Error, readers
from llm_mojo.readers import Block

VALIDATION_STORIES = "data00.json"  # of data00.json .. data49.json, as in llm.c


@dataclass(frozen=True)
class StoriesReader:
    """TinyStories' .tar.gz of JSON files, each a list of {"story": text}. data00.json is for validation."""

    def blocks(self, path, start=None, whole=False) -> Iterator[Block]:
        """Blocks of stories of one JSON file, white space around them removed; the start is a number of stories."""
        count, found_validation = 0, False
        with open(path, "rb") as raw:
            try:
                with tarfile.open(fileobj=raw, mode="r|gz") as archive:
                    for member in archive:
                        name = Path(member.name).name
                        if not member.isfile() or not name.endswith(".json") or name.startswith("."):
                            continue
                        split = "val" if name == VALIDATION_STORIES else "train"
                        found_validation |= split == "val"
                        place = f"{path}:{member.name}"
                        for stories in _batches(json_stories(archive.extractfile(member), place)):
                            before, count = count, count + len(stories)
                            stories = stories[max((start or 0) - before, 0) :]
                            if stories:
                                size = sum(map(len, stories))
                                yield Block(stories, size, True, False, count, raw.tell(), place, split=split)
            except (tarfile.TarError, EOFError, OSError) as error:
                raise Error(
                    f"{path}: not a whole .tar.gz archive ({error}); move it away to download it again"
                ) from None
        if not found_validation:
            raise Error(f"{path}: expected {VALIDATION_STORIES} in the archive, found none; get the right archive")

    def documents(self, block, as_bytes=False):
        """(story, True) of each story."""
        for story in block.data:
            yield story, True


def json_stories(file, name):
    """Yields the stripped "story" of each object in a JSON list, parsing as it reads: one block is in memory at a time."""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    decoder, between, position = json.JSONDecoder(), re.compile(r"[\s,]*"), 1
    blocks = iter(functools.partial(file.read, readers.BLOCK_BYTES), b"")
    text = _decode_next(utf8, blocks, name)
    if not text.startswith("["):
        raise Error(f"{name}: expected a JSON list of stories; the archive is damaged or of another layout")
    while True:
        position = between.match(text, position).end()  # type: ignore[union-attr]  # it matches everywhere
        if text.startswith("]", position):
            return
        try:
            item, position = decoder.raw_decode(text, position)
        except RecursionError:
            raise Error(f"{name}: expected objects, found lists within lists; the archive is damaged") from None
        except ValueError:
            if len(text) - position > readers.LONGEST_DOCUMENT:
                raise Error(
                    f"{name}: expected stories of up to {readers.LONGEST_DOCUMENT:,} characters, found a longer item; the"
                    " archive is damaged"
                ) from None
            more = _decode_next(utf8, blocks, name)
            if not more:
                raise Error(f"{name}: expected a JSON list, found its end in an item; the archive is damaged") from None
            text, position = text[position:] + more, 0
            continue
        if not isinstance(item, dict) or not isinstance(item.get("story"), str):
            raise Error(
                f'{name}: expected objects with a "story", found {str(item)[:60]!r}; the archive is of another layout'
            )
        yield item["story"].strip()


def _decode_next(decoder, blocks, name):
    try:
        for block in blocks:
            if text := decoder.decode(block):
                return text
        return decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise Error(f"{name}: expected UTF-8 text, found byte 0x{byte:02x}; the archive is damaged") from None


def _batches(texts):
    """Lists of texts, of about a megabyte each."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= readers.BLOCK_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
